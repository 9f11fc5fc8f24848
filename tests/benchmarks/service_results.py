"""What the service's benchmark leaves: the figures to compare, a table to read, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.service_plans import told

RESULTS = Path(__file__).parent / "results"
PARTS = ("load", "jobs", "cluster", "plans", "hostile")


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The figures to compare; None for a part that was not run."""
    load_, jobs, cluster, plans_, hostile = (found.get(part) for part in PARTS)
    return {
        "health_p99_ms": load_ and load_["health_with_all"]["p99_ms"],
        "downloads": load_ and load_["downloads"]["downloads"],
        "failed": load_ and load_["downloads"]["failed"] + load_["streams"]["broken"],
        "jobs_lost": jobs and cluster and jobs["lost"] + cluster["lost"] + cluster["wrong_results"],
        "plan_p99_ms": plans_ and max(run["wall_ms"]["p99"] for run in plans_["runs"]),
        "hostile_refused": hostile and hostile["refused"],
        "hostile_total": hostile and hostile["total"],
    }


def write(found: dict[str, Any]) -> None:
    """Commit the figures: a table to read and the same as JSON."""
    file = RESULTS / "service.json"
    earlier = json.loads(file.read_text()) if file.exists() else {}
    whole = {part: found.get(part) or earlier.get(part) for part in PARTS}
    figures = summary(whole)
    file.write_text(json.dumps({"summary": figures, **whole}, indent=1) + "\n")
    lines = ["# The service under load, under fire, and killed", "", "| figure | value |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in figures.items()]
    for part in PARTS:
        one = whole[part]
        if one:
            lines += ["", f"## {part}", "", *_told(part, one)]
    (RESULTS / "service.md").write_text("\n".join(lines) + "\n")


def _told(part: str, found: dict[str, Any]) -> list[str]:
    """A part's own figures, and what they were measured on."""
    lines = [f"{key}: {value}  " for key, value in found["about"].items()]
    if part == "load":
        sizes = (found[name] / 2**20 for name in ("server_bytes_with_streams", "server_bytes_peak"))
        lines += ["", "server's resident memory: {:.0f} MiB with all streams, {:.0f} MiB at most".format(*sizes)]
    if part == "plans":
        lines += ["", *told(found["runs"])]
    if part in ("jobs", "cluster"):
        names = ("jobs", "kills", "attempts", "lost", "wrong_results", "waited_jobs", "seconds")
        lines += ["", *(f"{name}: {_text(found[name])}  " for name in names if name in found), ""]
        lines += [f"* {times} x {' '.join(reason.split())}" for reason, times in found.get("reasons", {}).items()]
    if "remark" in found:
        lines += ["", found["remark"]]
    return lines


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} x {name}" for name, count in value.items())
    return f"{value:.0f}" if isinstance(value, float) else str(value)
