"""BLAS threads in proportion to the problem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

_COLUMNS_WORTH_THREADS = 768


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """For fronts, whatever their size: a search is thousands of small products between a few large ones.

    The front of 512 channels of 9 taps took 65 s on one thread and 75 s on two; cores are better spent on
    several groups side by side.
    """
    with threadpool_limits(1, user_api="blas"):
        yield


@contextmanager
def blas_threads(columns: int) -> Iterator[None]:
    """One BLAS thread for Gram matrices of few columns, as many as there are for large ones.

    The solver calls BLAS thousands of times. On small matrices a second thread gains nothing, and on a busy
    machine threads that wait for each other in a loop cost minutes.
    """
    with threadpool_limits(1 if columns < _COLUMNS_WORTH_THREADS else None, user_api="blas"):
        yield
