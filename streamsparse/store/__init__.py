"""Everything on disk or in a bucket: the only package that imports zarr and numcodecs."""

from streamsparse.store.run import Run

__all__ = ["Run"]
