"""Rates: a bucket of requests per caller that fills up again with time."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_CALLERS_KEPT = 10_000


class RateLimit:
    """Token buckets, by caller.

    Args:
        per_second: requests in the long run.
        burst: requests at once.
        clock: seconds.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when

    def wait_seconds(self, caller: str) -> float:
        """0 if the caller may go on, and one request is taken from its bucket; else how long to wait."""
        now = self._clock()
        left, when = self._buckets.pop(caller, (float(self._burst), now))
        left = min(float(self._burst), left + (now - when) * self._per_second)
        allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if allowed else left, now)
        while len(self._buckets) > _CALLERS_KEPT:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._per_second
