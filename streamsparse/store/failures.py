"""Failures of storage, translated into our error tree."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from streamsparse.errors import CorruptDataError, StorageError
from streamsparse.store.refusals import REQUEST_FAILED, bucket_error

_REMEDIES = {
    errno.ENOSPC: "free space on the device or choose another RUN, then run the same command again: it resumes",
    errno.EDQUOT: "raise the quota or choose another RUN, then run the same command again: it resumes",
    errno.EACCES: "check the permissions of the run directory",
    errno.EPERM: "check the permissions of the run directory",
    errno.EROFS: "the file system is read-only; choose another RUN",
}


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn the errors of the operating system, the object store and the codecs into StorageError and
    CorruptDataError.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and REQUEST_FAILED in str(error):  # obstore's FileNotFoundError: no such bucket
            raise bucket_error(error, where) from error
        raise storage_error(error, where) from error
    except (ValueError, RuntimeError) as error:
        # zarr's codecs raise plain ValueError (checksum) and RuntimeError (decompressors) on damaged bytes
        raise CorruptDataError(
            "Stored data is damaged.",
            expected="bytes that match their checksum",
            got=str(error),
            where=where,
            remedy="restore the file from a copy, or delete the stage's output and run the stage again",
        ) from error
    except Exception as error:
        if _is_of_object_store(error):
            raise bucket_error(error, where) from error
        raise


def storage_error(error: OSError, where: str) -> StorageError:
    """The StorageError for an operating system error."""
    return StorageError(
        "The store could not be read or written.",
        got=error.strerror or str(error),
        where=where,
        remedy=_REMEDIES.get(error.errno or 0, "check the device, then run the same command again: it resumes"),
    )


def _is_of_object_store(error: Exception) -> bool:
    """Whether obstore raised it; if it was never imported, it did not."""
    exceptions = sys.modules.get("obstore.exceptions")
    return exceptions is not None and isinstance(error, exceptions.BaseError)
