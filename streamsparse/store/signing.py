"""Objects of a bucket for those who have no keys: sizes, and URLs that are good for a while."""

from __future__ import annotations

from datetime import timedelta

from streamsparse.errors import UsageError
from streamsparse.store.bucket import Bucket
from streamsparse.store.failures import storage_errors
from streamsparse.store.run import Run


def signed_url(run: Run, key: str, seconds: float) -> str:
    """A URL that reads one object, with GET alone, for so long; nothing is sent.

    Raises:
        UsageError: the run is not in a bucket.
        StorageError: there are no keys to sign with.
    """
    import obstore

    bucket = _bucket(run)
    with storage_errors(key):
        return obstore.sign(bucket.store, "GET", key, timedelta(seconds=seconds))


def object_sizes(run: Run, prefix: str) -> dict[str, int]:
    """Bytes of the objects directly below a prefix, by name.

    Raises:
        UsageError: the run is not in a bucket.
    """
    import obstore

    bucket = _bucket(run)
    with storage_errors(prefix):
        found = obstore.list_with_delimiter(bucket.store, prefix)["objects"]
    return {item["path"].rpartition("/")[2]: item["size"] for item in found}


def _bucket(run: Run) -> Bucket:
    if not isinstance(run.store, Bucket):
        raise UsageError("This needs a run in a bucket.", expected="s3://BUCKET/PREFIX", got=run.url)
    return run.store
