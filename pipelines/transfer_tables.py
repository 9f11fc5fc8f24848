"""The page that `pipelines.transfer` writes."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any


def page(found: Mapping[str, Any], about: Mapping[str, object], command: str) -> str:
    """The figures as Markdown: means over the calibration samples."""
    request = found["request"]
    samples = "one sample" if request["seeds"] == 1 else f"means of {request['seeds']} samples"
    passes = f"{request['stages']} passes" if request["stages"] else "one pass per layer"
    lines = [
        f"# One capture for every budget: {found['network']}",
        "",
        f"{request['images']:,} calibration images without labels, {samples}; refits in order: {passes}; nothing "
        f"trained. The original has {found['original_parameters']:,} parameters and is right on "
        f"{found['original_accuracy']:.2%} of {request['test_images']:,} test images. In steps: each network is "
        "captured, searched and cut out of the one to its left, with a search and sensitivities of its own.",
    ]
    for title, field, scale, digits in (
        ("Kullback–Leibler divergence from the original, 10⁻³ nats per image", "divergence", 1000, 1),
        ("Accuracy, %", "pruned_accuracy", 100, 2),
        ("Agreement with the original, %", "agreement", 100, 2),
        ("Seconds: capture and search in the first column, and in every one in steps", "seconds", 1, 0),
    ):
        lines += ["", f"## {title}", "", *_table(found, field, scale, digits)]
    facts = ", ".join(f"{key} {value}" for key, value in about.items() if key != "torch-pruning")
    return "\n".join([*lines, "", f"Measured: {facts}.", "", f"    {command}", ""])


def _table(found: Mapping[str, Any], field: str, scale: float, digits: int) -> list[str]:
    sparsities = found["request"]["sparsities"]
    lines = ["| sparsity | " + " | ".join(f"{100 * value:g} %" for value in sparsities) + " |"]
    lines += ["|---|" + "---:|" * len(sparsities)]
    for way in dict.fromkeys(row["way"] for row in found["rows"]):
        cells = [
            mean(row[field] for row in found["rows"] if (row["way"], row["sparsity"]) == (way, sparsity))
            for sparsity in sparsities
        ]
        lines += [f"| {way} | " + " | ".join(f"{scale * cell:.{digits}f}" for cell in cells) + " |"]
    return lines
