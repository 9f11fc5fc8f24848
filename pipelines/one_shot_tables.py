"""The page that `pipelines.one_shot` writes."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any, Final

import torch

from pipelines.one_shot_recipes import RECIPES

FEWER: Final = "°"


def surroundings() -> dict[str, str | int | float | None]:
    """What the figures depend on: date, machine, versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch-pruning": _version("torch-pruning"),
    }


def _processor() -> str:
    """Model name of the CPU, where the system tells."""
    info = Path("/proc/cpuinfo")
    listed = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in listed if line.startswith("model name")), platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _passes(recipes: Mapping[str, str], stages: int) -> str:
    """Of the rows that are refitted in order."""
    weights = {RECIPES[name].weights for name in recipes}
    if "sequential" in weights:
        return f" Refits in order: {stages} passes, but where a row says one per layer."
    return " Refits in order: one pass per layer." if "by-layer" in weights else ""


def page(found: Mapping[str, Any], about: Mapping[str, object], command: str) -> str:
    """The figures as Markdown."""
    request, cells = found["request"], found["cells"]
    shown = [cell for cell in cells.values() if "why_not" not in cell]
    bases = {cell["images"]: cell["original_accuracy"] for cell in shown}
    lines = [
        f"# One-shot pruning, nothing trained: {found['network']}",
        "",
        f"{request['images']:,} calibration images without labels. {_bases(bases)} Sparsity is the fraction of "
        f"{found['original_parameters']:,} parameters that goes.{_passes(found['recipes'], request['stages'])}",
        *(_over_seeds(found["seeds"])),
    ]
    if any("taylor" in name for name in found["recipes"]):
        lines += ["", "Taylor importance reads the labels of the calibration images; no other row does."]
    tables: list[tuple[str, Callable[[Mapping[str, Any]], float], Callable[[float], str]]] = [
        ("Accuracy, %", lambda cell: 100 * cell["pruned_accuracy"], lambda value: f"{value:.2f}"),
        (
            "Kullback–Leibler divergence from the original, 10⁻³ nats per image",
            lambda cell: 1000 * cell["divergence"],
            lambda value: f"{value:.2f}" if value < 1 else f"{value:.1f}",
        ),
        ("Agreement with the original, %", lambda cell: 100 * cell["agreement"], lambda value: f"{value:.2f}"),
    ]
    for title, figure, text in tables:
        lines += ["", f"## {title}", "", *_table(found, figure, text)]
        if title.startswith("Kullback") and "full-independent" in found["recipes"]:
            ours = [_cells(found, "full-independent", sparsity) for sparsity in found["sparsities"]]
            row = [_figure(one, lambda cell: 1000 * cell["predicted_divergence"], text) for one in ours]
            lines.append("| our counts: predicted by the allocation | " + " | ".join(row) + " |")
    lines += ["", "## Channels that stay", "", *_counts(found)]
    lines += ["", "## Seconds", "", *_seconds(found)]
    reasons = sorted({cell["why_not"] for cell in cells.values() if "why_not" in cell})
    lines += ["", *(f"Not shown: {reason}" for reason in reasons)]
    facts = ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)
    return "\n".join([*lines, "", f"Measured: {facts}.", "", f"    {command}", ""])


def _bases(bases: Mapping[int, float]) -> str:
    """What the original has on the test images, most images first; rows on fewer are marked."""
    found = [(images, base, (base * (1 - base) / images) ** 0.5) for images, base in sorted(bases.items())[::-1]]
    parts = [
        f"{100 * base:.2f} % of {images:,} test images (standard error {100 * error:.2f})"
        for images, base, error in found
    ]
    marked = f" Rows with {FEWER} are on the fewer." if len(parts) > 1 else ""
    return f"The original is right on {' and '.join(parts)}.{marked}"


def _over_seeds(seeds: int) -> list[str]:
    if seeds == 1:
        return []
    return ["", f"Means over {seeds} calibration samples; in brackets the least and the greatest."]


def _table(
    found: Mapping[str, Any], figure: Callable[[Mapping[str, Any]], float], text: Callable[[float], str]
) -> list[str]:
    """One row per recipe, one column per sparsity."""
    lines = _heading("sparsity", [f"{100 * sparsity:g} %" for sparsity in found["sparsities"]])
    for name, about in found["recipes"].items():
        every = [_cells(found, name, sparsity) for sparsity in found["sparsities"]]
        row = [_figure(cells, figure, text) for cells in every]
        fewer = any(cell["images"] < found["request"]["test_images"] for cells in every for cell in cells)
        lines.append(f"| {about}{f' {FEWER}' if fewer else ''} | " + " | ".join(row) + " |")
    return lines


def _heading(first: str, columns: list[str]) -> list[str]:
    return [f"| {first} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]


def _cells(found: Mapping[str, Any], recipe: str, sparsity: float) -> list[Mapping[str, Any]]:
    """Of all seeds; those that could be made."""
    every = [found["cells"][f"{recipe} {sparsity} {seed}"] for seed in range(found["seeds"])]
    return [cell for cell in every if "why_not" not in cell]


def _figure(
    cells: list[Mapping[str, Any]], figure: Callable[[Mapping[str, Any]], float], text: Callable[[float], str]
) -> str:
    values = [figure(cell) for cell in cells]
    if not values:
        return "–"
    if len(values) == 1:
        return text(values[0])
    return f"{text(mean(values))} ({text(min(values))}–{text(max(values))})"


def _counts(found: Mapping[str, Any]) -> list[str]:
    """Of the recipes that choose how many, for the first seed."""
    lines = []
    ours = "full" if "full" in found["recipes"] else "by-layer"  # the same channels
    for name in ("refit", ours, "l2-global"):
        rows = [(s, found["cells"].get(f"{name} {s} 0", {}).get("counts")) for s in found["sparsities"]]
        made = [(sparsity, counts) for sparsity, counts in rows if counts]
        if made:
            lines += [f"{found['recipes'][name]}:", "", *_heading("sparsity", list(made[0][1]))]
            lines += [
                f"| {100 * sparsity:g} % | " + " | ".join(str(count) for count in counts.values()) + " |"
                for sparsity, counts in made
            ]
            lines.append("")
    return lines[:-1]


def _seconds(found: Mapping[str, Any]) -> list[str]:
    """What every stage took, for each calibration sample, and how long a row takes."""
    clocks: list[dict[str, float]] = [found["seconds"].get(str(seed), {}) for seed in range(found["seeds"])]
    stages = list(dict.fromkeys(stage for clock in clocks for stage in clock))
    lines = _heading("shared by all rows", stages) if stages else []
    for number, clock in enumerate(clocks if stages else (), 1):
        spent = [f"{clock[stage]:.0f}" if clock.get(stage, 0) >= 1 else "–" for stage in stages]
        lines.append(f"| calibration sample {number} | " + " | ".join(spent) + " |")
    lines += ["", "–: found by an earlier call, under a second, or not asked for.", ""] if stages else []
    lines += _table(found, lambda cell: cell["cut_seconds"], lambda value: f"{value:.0f}")
    return lines
