"""The page that `pipelines.sample_size` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def page(found: dict[str, Any], about: Mapping[str, object], command: str) -> str:
    """The figures as Markdown."""
    sizes = [point["images"] for point in found["points"]]
    lines = [f"# How many calibration images are enough: {found['network']}", ""]
    lines += [
        f"Half of the parameters: every channel group keeps {found['keep_fraction']:.0%} of its channels, chosen",
        "by one round of optimal brain surgeon; weights are refitted on the same images and shrunk towards the",
        "original's. No training, no labels.",
        "",
    ]
    lines += ["| images | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---|" + "---:|" * len(sizes)]
    scores = " | ".join(f"{100 * point['accuracy']:.2f}" for point in found["points"])
    base = f"{100 * found['baseline_accuracy']:.2f}"
    lines += [f"| accuracy, % (original {base}; {found['test_images']:,} test images) | {scores} |"]
    lines += [
        "| seconds of the look | " + " | ".join(f"{point['look_seconds']:.0f}" for point in found["points"]) + " |"
    ]
    lines += [
        "",
        "Least squares, not shrunk: held-out error (training error in brackets), %, ± standard error over folds:",
        "",
    ]
    lines += ["| layer | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---|" + "---:|" * len(sizes)]
    for layer in dict.fromkeys(look["layer"] for look in found["looks"]):
        cells = [_errors(look) for look in found["looks"] if look["layer"] == layer]
        lines += [f"| {layer} | " + " | ".join(cells) + " |"]
    lines += [
        "",
        "Where `capture --until-converged TOL` stops, and the images at which each layer had converged:",
        "",
    ]
    layers = list(next(iter(found["stops"].values()))["layers"])
    lines += ["| TOL | stops at | " + " | ".join(layers) + " |", "|---|---:|" + "---:|" * len(layers)]
    for tolerance, ended in found["stops"].items():
        cells = [_count(ended["layers"][layer]) for layer in layers]
        lines += [f"| {tolerance} | {_count(ended['images'])} | " + " | ".join(cells) + " |"]
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    return "\n".join([*lines, "", f"Measured: {facts}.", "", f"    {command}", ""])


def _errors(look: Mapping[str, float]) -> str:
    held_out, bar, training = (100 * look[name] for name in ("held_out_error", "error_bar", "training_error"))
    return f"{held_out:.2f} ± {bar:.2f} ({training:.2f})"


def _count(images: int | None) -> str:
    return "not yet" if images is None else f"{images:,}"
