"""What the LeNet experiments show: tables for people, a Markdown page with its JSON, and the plan beforehand."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

import pipelines.mnist as mnist
from pipelines.lenet_stages import trained_lenet
from pipelines.lenet_targets import Settings, Target
from pipelines.pages import write_page
from streamsparse.capture import CaptureSettings, calibration_images, plan_stream
from streamsparse.cli.console import print_table, say, size_text
from streamsparse.network import find_groups
from streamsparse.network.costs import cost_model

Rows = list[tuple[str, ...]]

NOTE: Final = (
    "The original was trained without shifts of the images and without a teacher. The pruned networks are "
    "fine-tuned with both (shifts by up to one pixel, the original as the teacher), which the paper does not "
    "mention: a fine-tuned network near the original, or above it, does not show that pruning improves a network."
)
COMPARISON: Final = (
    "network", "parameters", "independent", "one-shot", "paper's", "fine-tuned", "paper's tuned",
)  # fmt: skip


def percent(fraction: float | None) -> str:
    """Two decimals: one test image of 10,000 is 0.01 %."""
    return "–" if fraction is None else f"{fraction:.2%}".replace("%", " %")


def comparison_rows(summary: dict[str, Any], targets: Sequence[Target]) -> Rows:
    """One row for each network under the headings of `COMPARISON`, the original first."""
    original = summary["baseline"]
    rows: Rows = [("original", f"{original['parameters']:,}", "–", percent(original["accuracy"]), "–", "–", "–")]
    for model, target in zip(summary["models"], targets, strict=True):
        rows.append(
            (
                model["name"],
                f"{model['parameters']:,}",
                percent(model["accuracy_independent"]),
                percent(model["accuracy_one_shot"]),
                percent(target.paper_one_shot),
                _with_range(model),
                percent(target.paper_fine_tuned),
            )
        )
    return rows


def _with_range(model: dict[str, Any]) -> str:
    found = list(model["accuracy_fine_tuned_by_seed"].values())
    text = percent(model["accuracy_fine_tuned"])
    return text if len(found) == 1 else f"{text} ({min(found) * 100:.2f} to {max(found) * 100:.2f})"


def print_comparison(summary: dict[str, Any], targets: Sequence[Target]) -> None:
    """Ours beside the paper's."""
    shown = [column for column, heading in enumerate(COMPARISON) if heading != "parameters"]  # for 80 characters
    columns = {COMPARISON[column]: "right" if column else "left" for column in shown}
    rows = [tuple(row[column] for column in shown) for row in comparison_rows(summary, targets)]
    print_table("Accuracy on the 10,000 test images of MNIST", columns, rows)
    say(NOTE)


def print_summary(summary: dict[str, Any]) -> None:
    """Quality, cost, seconds by stage, and where the checkpoints are."""
    original, models = summary["baseline"], summary["models"]
    whole = ("original", f"{original['parameters']:,}", "–", f"{original['macs']:,}", size_text(original["bytes"]))
    rows: Rows = [(*whole, percent(original["accuracy"]), "–")]
    for model in models:
        cost = (
            f"{model['parameters']:,}",
            percent(model["sparsity"]),
            f"{model['macs']:,}",
            size_text(model["bytes"]),
        )
        quality = (percent(model["accuracy_one_shot"]), percent(model["accuracy_fine_tuned"]))
        rows.append((model["name"], *cost, *quality))
    headings = ("parameters", "sparsity", "MACs", "on disk", "one-shot", "tuned")
    print_table("LeNet on MNIST", {"network": "left", **dict.fromkeys(headings, "right")}, rows)
    seconds = summary["seconds"]
    print_table("Seconds by stage", dict.fromkeys(seconds, "right"), [tuple(f"{s:.1f}" for s in seconds.values())])
    say(f"{len(models)} networks from one capture: it was made, summed and searched once for all of them.")
    for model in models:
        say(f"{model['name']}: {model['checkpoint_fine_tuned']} (one-shot: {model['checkpoint']})")


def plan_of(settings: Settings) -> dict[str, Any]:
    """What the experiment would do: shapes and bytes of the capture, networks, fine-tuning. Touches nothing."""
    original = trained_lenet()
    sample = calibration_images(mnist.calibration(), images=settings.images, seed=settings.seed)
    graph = find_groups(original, sample.example)
    stream = plan_stream(original, graph, sample.example, len(sample), CaptureSettings())
    costs = cost_model(original, graph, sample.example)
    whole = {group.name: group.size for group in graph.groups}
    models = [
        {"name": target.name, "channels": target.channels, **asdict(costs.costs({**whole, **target.channels}))}
        for target in settings.targets
    ]
    layers = [
        {
            "layer": layer.geometry.layer,
            "input_shape": layer.geometry.input_shape,
            "output_shape": layer.geometry.output_shape,
            "columns": layer.geometry.columns,
        }
        for layer in stream.layers
    ]
    plan = {"images": len(sample), "raw_bytes": stream.raw_bytes, "layers": layers, "models": models}
    return {"plan": {**plan, "fine_tuning": asdict(settings.recipe), "repeats": settings.repeats}}


def print_plan(summary: dict[str, Any]) -> None:
    """The plan as tables."""
    plan = summary["plan"]
    rows: Rows = [
        (layer["layer"], _shape(layer["input_shape"]), _shape(layer["output_shape"]), str(layer["columns"]))
        for layer in plan["layers"]
    ]
    title = f"Capture {plan['images']:,} images, {size_text(plan['raw_bytes'])} before compression"
    print_table(title, {"layer": "left", "input": "right", "output": "right", "columns": "right"}, rows)
    networks: Rows = [
        (
            model["name"],
            ", ".join(f"{group} {count}" for group, count in model["channels"].items()),
            f"{model['parameters']:,}",
            f"{model['macs']:,}",
        )
        for model in plan["models"]
    ]
    headings = {"network": "left", "channels kept": "left", "parameters": "right", "MACs": "right"}
    print_table("Solve, refit in order, write, evaluate", headings, networks)
    say(f"Fine-tuning of each, {plan['repeats']} ×: {plan['fine_tuning']['epochs']} epochs. Nothing was touched.")


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def markdown_page(summary: dict[str, Any], settings: Settings, tuning_images: int) -> str:
    """The comparison as a page, with what it takes to repeat it."""
    rows = [COMPARISON, tuple("---" if i == 0 else "---:" for i in range(len(COMPARISON)))]
    rows += comparison_rows(summary, settings.targets)
    repeats = "" if settings.repeats == 1 else f"; in brackets the range over {settings.repeats} seeds"
    epochs = f"{settings.recipe.epochs} epochs on {tuning_images:,} images{repeats}"
    lines = [
        "# LeNet on MNIST: the paper's tables 1 and 2",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "Accuracy on the 10,000 test images. Independent: weights from one capture alone. One-shot: refitted in",
        f"order, without any training. Statistics of {settings.images:,} embedded training images, one capture.",
        f"Fine-tuned: {epochs}.",
        "",
        *page_foot(summary, command_of(settings)),
    ]
    return "\n".join(lines) + "\n"


def page_foot(summary: dict[str, Any], typed: str) -> list[str]:
    """The last lines of a page: how to read it, where and how long it was measured, and the command."""
    about = environment()
    return [
        NOTE,
        "",
        f"Measured {about['date']} on {about['machine']}, {about['cores']} cores, {about['threads']} thread(s);",
        ", ".join(f"{name} {number}" for name, number in about["versions"].items()) + ".",
        "Seconds by stage: " + ", ".join(f"{k} {s:.1f}" for k, s in summary["seconds"].items()) + ".",
        "",
        f"    {typed}",
    ]


def command_of(settings: Settings) -> str:
    """The command that repeats this experiment."""
    options = f"--images {settings.images} --seed {settings.seed} --fine-tune-epochs {settings.recipe.epochs}"
    return (
        f"uv run python -m pipelines.lenet_mnist {options} --repeats {settings.repeats} --write pipelines/results"
    )


def environment() -> dict[str, Any]:
    """Date, processor and versions."""
    names = ("streamsparse", "torch", "zarr", "dask", "numpy", "scipy")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def write_results(directory: Path, summary: dict[str, Any], settings: Settings, tuning_images: int) -> None:
    """Write `lenet_mnist.md` and `lenet_mnist.json`."""
    networks = [
        {key: value for key, value in model.items() if not key.startswith("checkpoint")}
        for model in summary["models"]
    ]
    record = {**summary, "models": networks, "environment": environment(), "command": command_of(settings)}
    write_page(directory, "lenet_mnist", markdown_page(summary, settings, tuning_images), record)
