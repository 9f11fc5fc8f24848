"""Pure functions on arrays: no paths, no modules, no logging, explicit accumulation dtypes."""
