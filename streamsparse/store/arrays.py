"""Arrays that somebody else wrote as Zarr: images and labels of a data set."""

from __future__ import annotations

from typing import Any

import zarr

from streamsparse.errors import DataError
from streamsparse.store.opening import open_store


def read_arrays(url: str) -> dict[str, Any]:
    """The arrays of a Zarr group by name, or one array under the name "images"; nothing is read yet.

    The arrays have `shape`, `dtype`, `chunks` and are indexed like NumPy's.

    Raises:
        DataError: there is no array or group.
        UsageError: a kind of URL that is not supported.
    """
    try:
        found = zarr.open(store=open_store(url), mode="r")
    except Exception as error:  # zarr, its stores and its codecs each raise their own kinds
        raise DataError(
            "There is no Zarr array or group.",
            expected="an array of images, or a group with images and labels",
            got=error,
            where=url,
            remedy="Check the path, and that the store is not empty or damaged.",
        ) from error
    return {"images": found} if isinstance(found, zarr.Array) else dict(found.arrays())
