"""Any classifier of torchvision on images in folders: one capture, then a network for every sparsity.

    uv run python -m pipelines.imagenet_torchvision --model resnet50 --weights resnet50.safetensors \\
        --data imagefolder:imagenet --images 5000 --sparsity 0.3 --sparsity 0.5 --device cuda --run runs/resnet50

`imagenet` holds `train` and `val` (or `test`), each with one subdirectory per class; in ImageNet their alphabetical
order is that of the classes of torchvision's weights. Those weights, once downloaded, become a file by

    from safetensors.torch import save_file; import torchvision
    save_file(torchvision.models.get_model("resnet50", weights="DEFAULT").state_dict(), "resnet50.safetensors")

Nothing is trained here: a written checkpoint loads into the original constructor (`streamsparse.load`), so whatever
trained the original fine-tunes it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import torch
import typer

from pipelines.cifar_rows import without_places
from pipelines.cifar_tables import machine
from pipelines.imagenet_torchvision_stages import Request, experiment
from pipelines.lenet_tables import environment, percent
from pipelines.pages import write_page
from streamsparse.cli.console import command, print_json, print_table, say, size_text
from streamsparse.intake.models import build_model
from streamsparse.network import find_groups

HEADINGS: Final = (
    "network", "parameters", "sparsity", "MACs", "on disk", "accuracy", "agreement", "divergence", "faster",
)  # fmt: skip


def plan_of(request: Request) -> dict[str, Any]:
    """The channel groups and what the sparsities allow. Reads no image, touches nothing."""
    preprocessing, model = request.preprocessing, build_model(request.spec)
    height, width = preprocessing.crop or (preprocessing.resize or (224, 224))[-2:]
    graph = find_groups(model.eval(), torch.zeros(1, 3, height, width))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "model": request.spec,
        "preprocessing": preprocessing.to_json(),
        "parameters": parameters,
        "groups": {group.name: group.size for group in graph.groups},
        "frozen": {frozen.layer: frozen.reason for frozen in graph.frozen},
        "models": [{"sparsity": s, "parameters": int((1 - s) * parameters)} for s in request.sparsities],
    }


def rows_of(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each network under `HEADINGS`, the original first."""
    first = summary["baseline"]
    cost = (f"{first['parameters']:,}", "–", f"{first['macs'] / 1e6:,.0f} M", size_text(first["bytes"]))
    rows: list[tuple[str, ...]] = [("original", *cost, percent(first["accuracy"]), "–", "–", "–")]
    for model in summary["models"]:
        rows.append(
            (model["name"], f"{model['parameters']:,}", percent(model["sparsity"]), f"{model['macs'] / 1e6:,.0f} M",
             size_text(model["bytes"]), percent(model["accuracy_one_shot"]), percent(model["agreement_one_shot"]),
             f"{model['divergence_one_shot']:.4f}", " / ".join(f"{r:.2f}×" for r in model["speed_up"].values()))
        )  # fmt: skip
    return rows


def page(summary: dict[str, Any], request: Request, typed: str) -> str:
    """The table, with what it takes to repeat it."""
    about, rows = environment(), [HEADINGS, ("---", *("---:",) * (len(HEADINGS) - 1)), *rows_of(summary)]
    model = summary["models"][0]
    lines = [
        f"# {request.model} on images in folders",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"One-shot, nothing trained: {request.images:,} calibration images without labels, {request.passes} passes "
        f"of refits in order; {model['test_images']:,} test images. Agreement: both networks name the same class. "
        "Divergence: of class probabilities from the original's, nats. Faster: measured seconds before over after, "
        f"for {' and '.join(model['speed_up'])} images at once.",
        "",
        f"Measured {about['date']} on {machine(request.device)}, {about['threads']} thread(s); torch "
        f"{about['versions']['torch']}. Seconds by stage: "
        + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in summary["seconds"].items()) + ".",
        "",
        f"    {typed}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def typed_by(request: Request) -> str:
    """The command, without the places of files on this machine."""
    parts = ["uv", "run", "python", "-m", "pipelines.imagenet_torchvision", "--model", request.model]
    parts += ["--weights", request.weights.name] if request.weights else []
    for option, text in (("--data", request.data), ("--test", request.test)):
        parts += [option, f"{text.partition(':')[0]}:{Path(text.partition(':')[2]).name}"]
    parts += ["--size", str(request.size)] if request.size else []
    parts += ["--test-images", str(request.test_images)] if request.test_images else []
    parts += [part for sparsity in request.sparsities for part in ("--sparsity", f"{sparsity:g}")]
    for option in ("images", "unseen_images", "rounds", "passes", "seed", "device"):
        parts += ["--" + option.replace("_", "-"), str(getattr(request, option))]
    return shlex.join(parts)


def main(
    data: Annotated[str, typer.Option(help="Calibration images: imagefolder:PATH, whose `train` is taken.")],
    model: Annotated[
        str, typer.Option(help="Of torchvision, such as resnet50 or resnet18?num_classes=10.")
    ] = "resnet50",
    weights: Annotated[Path | None, typer.Option(help="Trained weights, .safetensors or .pth.")] = None,
    test: Annotated[str | None, typer.Option(help="Test images; else `val` or `test` of --data.")] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Side in pixels.", show_default="the weights' own")
    ] = None,
    images: Annotated[int, typer.Option(min=10, help="Calibration images, without labels.")] = 2000,
    unseen_images: Annotated[int, typer.Option(min=1, help="Further ones, to measure losses on.")] = 256,
    test_images: Annotated[int | None, typer.Option(min=1, help="A sample of so many.", show_default="all")] = None,
    sparsity: Annotated[list[float] | None, typer.Option(help="Fraction that goes; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of moving channels between layers.")] = 4,
    passes: Annotated[int, typer.Option(min=2, help="Over the calibration images, to refit in order.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read calibration images.")] = 0,
    run: Annotated[Path | None, typer.Option(help="Keep everything here; the same command goes on.")] = None,
    write: Annotated[Path | None, typer.Option(help="Write imagenet_torchvision_MODEL.md and .json here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and touch nothing.")] = False,
) -> None:
    """Prune any classifier of torchvision to as many sparsities as wanted, from one capture.

    Example: uv run python -m pipelines.imagenet_torchvision --model resnet50 --weights resnet50.safetensors
    --data imagefolder:imagenet --sparsity 0.3 --sparsity 0.5 --device cuda --run runs/resnet50
    """
    request = Request(
        model, weights, data, test or data, size, images, unseen_images, test_images, tuple(sparsity or (0.3, 0.5)),
        rounds, passes, seed, device, workers,
    )  # fmt: skip
    with command(as_json) as bars, TemporaryDirectory(prefix="streamsparse-torchvision-") as temporary:
        summary = {"plan": plan_of(request)} if dry_run else experiment(request, run or Path(temporary), bars)
    if dry_run:
        groups = [(name, str(count)) for name, count in summary["plan"]["groups"].items()]
        print_table(f"Channel groups of {model}", {"group": "left", "channels": "right"}, groups)
        say("Nothing was touched.")
    else:
        if run is None:
            summary = without_places(summary)
            say("The networks are not kept: give --run for that.")
        print_table(model, dict.fromkeys(HEADINGS, "right"), rows_of(summary))
    if write is not None and not dry_run:
        _write(write, summary, request)
    if as_json:
        print_json(summary)


def _write(directory: Path, summary: dict[str, Any], request: Request) -> None:
    name, typed = f"imagenet_torchvision_{request.model.partition('?')[0]}", typed_by(request)
    models = [{k: v for k, v in model.items() if k != "checkpoint"} for model in summary["models"]]
    record = {**summary, "models": models, "environment": environment(), "command": typed}
    write_page(directory, name, page(summary, request, typed), record)


if __name__ == "__main__":
    typer.run(main)
