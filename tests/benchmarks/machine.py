"""What the figures of a benchmark depend on: date, processor, load, versions."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch


def about() -> dict[str, str | int | float | None]:
    """Committed with every table of results."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Model name of the CPU, where the system tells."""
    info = Path("/proc/cpuinfo")
    listed = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in listed if line.startswith("model name")), platform.processor())
