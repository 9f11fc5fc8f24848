"""Models, weights, data and preprocessing from what the user names on the command line."""
