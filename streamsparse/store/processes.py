"""Who a process is, in words that another process can check."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")


def identity() -> dict[str, str | int]:
    """This process. `machine` is equal for two processes exactly if they see each other's process numbers;
    it is "" where the operating system does not tell.
    """
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": _start_time(os.getpid()) or "",
    }


def is_alive(other: Mapping[str, object]) -> bool | None:
    """Whether the process with this `identity` still runs; None if that cannot be seen from here."""
    process, machine, started = other.get("process"), other.get("machine"), other.get("started")
    if not machine or not started or machine != _machine() or not isinstance(process, int):
        return None
    return _start_time(process) == started


def is_own(other: Mapping[str, object]) -> bool:
    """Whether it is the `identity` of this process."""
    return all(other.get(name) == value for name, value in identity().items())


def _machine() -> str:
    """The boot of the kernel and the name space of process numbers (a container has its own)."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(process: int) -> str | None:
    """In clock ticks since the boot: a process number that is used again has another; None for a dead process."""
    try:
        fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start = fields[0], fields[19]
    return None if state in ("Z", "X") else start
