"""What a process holds before it works."""

from __future__ import annotations

import psutil

GROWTH_BYTES = 64 * 2**20


def process_bytes() -> int:
    """Resident memory of this process now, and what threads and libraries will take when they start to work."""
    return int(psutil.Process().memory_info().rss) + GROWTH_BYTES
