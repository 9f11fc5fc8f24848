"""How long a plan takes: one client asks a service of its own for budgets that it never asked for before.

    POST /api/v1/runs/{run}/plan    wall time by the client, CPU time by the server's process, machine's load

The first plan of a run loads its fronts, and stands apart: that of fresh services, one after the other. Budgets
are of parameters, MACs and bytes, in turn with and without rounding and a least number of channels; a budget that
cannot be met is an answer like any other.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from streamsparse.store import Run

QUANTITIES = ("params", "macs", "bytes")
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"round_to": 8}, {"min_channels": 4, "round_to": 4})
PAUSE_SECONDS = 0.05


def budgets(count: int) -> list[dict[str, Any]]:
    """So many requests, no two alike."""
    fractions = np.geomspace(0.08, 0.95, count)
    return [
        {"budget": f"{QUANTITIES[number % 3]}={fraction:.5f}", **OPTIONS[number // 3 % 3]}
        for number, fraction in enumerate(fractions)
    ]


def first_plan_ms(url: str, run: Path) -> float:
    """Wall time of the first plan that a service is asked for; it has answered a health check before."""
    with httpx.Client(base_url=url, timeout=600) as http:
        http.get("/healthz").raise_for_status()
        started = time.perf_counter()
        http.post(f"/api/v1/runs/{run.name}/plan", json={"budget": "params=0.5"}).raise_for_status()
        return 1000 * (time.perf_counter() - started)


def plans(process: subprocess.Popen[str], url: str, run: Path, count: int) -> dict[str, Any]:
    """Figures of one run that the service knows by its directory's name."""
    opened = Run.at(run)
    manifest = opened.manifest()
    server, path = psutil.Process(process.pid), f"/api/v1/runs/{run.name}/plan"
    walls, statuses, processor = [], [], 0.0
    with httpx.Client(base_url=url, timeout=600) as http:
        http.post(path, json={"budget": "params=0.5"}).raise_for_status()
        for asked in budgets(count):
            before, started = _processor_seconds(server), time.perf_counter()
            statuses.append(http.post(path, json=asked).status_code)
            walls.append(1000 * (time.perf_counter() - started))
            processor += 1000 * (_processor_seconds(server) - before)
            time.sleep(PAUSE_SECONDS)
    return {
        "model": manifest["model"]["spec"] or manifest["model"]["class"],
        "groups": len(opened.documents.names("solution/fronts")),
        "plans": statuses.count(200), "not_met": statuses.count(422), "wall_ms": _spread(walls),
        "processor_ms": processor / count, "load_1_minute": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def told(found: Sequence[dict[str, Any]]) -> list[str]:
    """A table to read."""
    lines = ["| model | groups | plans | wall p50, p99, most (ms) | CPU, mean (ms) | first plans (ms) | load |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for one in found:
        wall, first = one["wall_ms"], sorted(one["first_ms"])
        lines.append(
            f"| {one['model']} | {one['groups']} | {one['plans']} | {wall['p50']:.0f}, {wall['p99']:.0f}, "
            f"{wall['most']:.0f} | {one['processor_ms']:.0f} | {first[0]:.0f} to {first[-1]:.0f} | "
            f"{one['load_1_minute']} |"
        )
    return lines


def _processor_seconds(server: psutil.Process) -> float:
    times = server.cpu_times()
    return float(times.user + times.system)


def _spread(values: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "most": float(max(values))}
