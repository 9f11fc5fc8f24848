"""The command that measures what cutting each group does to the model's output: sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say
from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from streamsparse.types import Sensitivity


def sensitivity(
    run: o.RunArgument,
    data: o.CapturedData = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            min=1,
            help="To measure on: images that the capture did not sample. [default: as many as cost little, 256 to "
            "4096]",
        ),
    ] = None,
    levels: Annotated[
        str,
        typer.Option("--levels", help="Held-out errors, ascending: each group is cut as far as it reaches them."),
    ] = "0.003,0.01,0.03,0.1,0.2,0.4",
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="kl: run the cut network, one pass over the images per group and level. fisher: predict all to "
            "second order from one pass with gradients, for models where passes are dear; too low for large cuts.",
        ),
    ] = "kl",
    batch_size: o.BatchSize = 64,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Measure what cutting each group of channels alone does to the model's output.

    A relative error of 1 % in one layer changes the answers more than in another. Each group is cut to a few counts
    in turn, the layers behind it are refitted from the statistics, and the class probabilities of this network are
    compared with the original's: Kullback-Leibler divergence in nats per image (of other outputs, the squared
    difference over their variance). `solve` then spends a budget where the output suffers least.

    Needs the fronts that `solve` finds, and images: those of the data set that the capture did not sample, or of
    its sample where there are too few. Groups that are measured are kept: typed again, the command goes on.

    Examples:

        streamsparse sensitivity runs/lenet

        streamsparse sensitivity runs/vgg --images 512 --levels 0.01,0.1,0.3 --device cuda

        streamsparse sensitivity runs/resnet50 --by fisher
    """
    from streamsparse.sensitivity import check_request, measure_sensitivities
    from streamsparse.store import Run
    from streamsparse.store.sensitivities import sensitivity_request

    o.use_threads(threads)
    with command(as_json) as bars:
        wanted = parse_levels(levels)
        check_request(images, wanted, by)
        opened = Run.at(run)
        about = opened.manifest()
        if dry_run:
            _show_plan(run, wanted, images, by, as_json)
            return
        dataset = o.captured_data(about, data)
        found = measure_sensitivities(
            opened, dataset, images=images, levels=wanted, by=by, batch_images=batch_size, device=device,
            on_event=bars,
        )  # fmt: skip
        request = sensitivity_request(opened) or {}
    if as_json:
        print_json({"run": run, "request": request, "sensitivities": found, "seconds": bars.seconds})
    else:
        _show(found, request)
        say(f"Next: streamsparse solve {run} --budget ...")


def parse_levels(text: str) -> tuple[float, ...]:
    """`0.01,0.1` -> (0.01, 0.1); their order and range are checked later."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            "These levels do not parse.", expected="numbers separated by commas, such as 0.01,0.1,0.3", got=text,
            where="--levels",
        ) from error  # fmt: skip


def _show_plan(run: str, levels: Sequence[float], images: int | None, by: str, as_json: bool) -> None:
    from streamsparse.intake.captured import read_captured
    from streamsparse.sensitivity import affordable_images, passes_of, required_fronts
    from streamsparse.solve.losses import counts_at
    from streamsparse.store import Run

    opened = Run.at(run)
    captured = read_captured(opened)
    fronts = required_fronts(opened, captured)
    counts = {name: counts_at(front.held_out, levels) for name, front in fronts.items()}
    passes = passes_of(fronts, levels, by)
    images = affordable_images(captured, fronts, levels, by) if images is None else images
    if as_json:
        print_json({"counts": counts, "passes": passes, "images": images, "by": by})
        return
    rows = [(name, fronts[name].front.positions, ", ".join(map(str, found))) for name, found in counts.items()]
    print_table("Counts to cut each group to", {"group": "left", "channels": "right", "kept": "left"}, rows)
    say(f"{passes} passes over {images} images.")


def _show(found: Mapping[str, Sensitivity], request: Mapping[str, Any]) -> None:
    """Counts and losses; of a long list (a prediction for every count) some."""
    rows = []
    for name, one in found.items():
        step = max(1, -(-len(one.counts) // 8))
        pairs = list(zip(one.counts, one.losses, strict=True))[::-step]
        rows.append((name, ", ".join(f"{count}: {loss:.2g}" for count, loss in pairs)))
    unseen = "that the capture did not sample" if request["unseen"] else "of the calibration sample"
    unit = "divergence in nats" if request["measure"] == "divergence" else "squared difference over the variance"
    title = f"Loss of the network with one group cut, by {request['by']}, on {request['images']} images {unseen}"
    print_table(title, {"group": "left", f"channels kept: {unit}": "left"}, rows)
