"""The command that runs all stages: prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.cli import constraining as c
from streamsparse.cli import options as o
from streamsparse.cli.capturing import show_capture_plan
from streamsparse.cli.console import command, print_json, say
from streamsparse.cli.refitting import Recalibrate

if TYPE_CHECKING:
    from streamsparse.run import Result


def prune(
    run: o.RunArgument,
    model: o.Model,
    weights: o.Weights,
    data: o.Data,
    budget: o.BudgetOption = None,
    channels: o.Channels = None,
    round_to: c.RoundTo = 1,
    min_channels: c.MinChannels = "1",
    keep: c.Keep = None,
    drop: c.Drop = None,
    leave: c.Leave = None,
    data_root: o.DataRoot = None,
    normalize: o.Normalize = None,
    size: o.Size = None,
    images: o.Images = o.DEFAULT_IMAGES,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 250,
    dtype: o.Dtype = "float16",
    codec: o.Codec = "zstd:1",
    sink: o.Sink = "activations",
    device: o.Device = "cpu",
    folds: o.Folds = 5,
    executor: o.ExecutorKind = "auto",
    scheduler: o.Scheduler = None,
    method: o.MethodOption = "best",
    sensitivity: Annotated[
        str,
        typer.Option(
            "--sensitivity",
            help="kl: measure what cutting each group does to the output and spend the budget where it suffers "
            "least (some passes over 256 to 4096 images per group); fisher: predict it from gradients, rougher; "
            "none: minimise held-out errors.",
        ),
    ] = "kl",
    improve: Annotated[
        int,
        typer.Option(
            "--improve",
            min=0,
            help="Rounds of `streamsparse improve`: spend the budget better by measuring whole cut networks. Worth "
            "it where most channels go.",
        ),
    ] = 0,
    stages: o.Stages = None,
    recalibrate: Recalibrate = False,
    name: o.Name = "pruned",
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """All stages in one go: capture, accumulate, sensitivity, solve, refit in order, write.

    Typed again after a kill, it goes on where it was; with another budget it reuses what was captured.

    Examples:

        streamsparse prune runs/lenet --model pipelines.lenet:LeNet \\
            --weights lenet.safetensors --data pipelines.mnist:calibration \\
            --budget params=0.3

        streamsparse prune runs/vgg --model torchvision:vgg16_bn \\
            --weights vgg.safetensors --data imagefolder:/data/train \\
            --budget macs=0.5 --round-to 8 --leave features.0 --device cuda
    """
    from streamsparse.accumulate import AccumulateSettings
    from streamsparse.capture import CaptureSettings, Subject
    from streamsparse.run import prune as prune_stages
    from streamsparse.solve import SolveSettings

    o.use_threads(threads)
    with command(as_json) as bars:
        settings = CaptureSettings(dtype, codec, batch_size, device=device, sink=sink, folds=folds)
        constraints = c.parse_constraints(round_to, min_channels, keep, drop, leave)
        built = o.load_model(model, weights)
        chosen = {"data_root": data_root, "normalize": normalize, "size": size}
        dataset = o.load_data(data, model, split="train", **chosen)
        if dry_run:
            show_capture_plan(built, dataset, images, seed, settings, as_json)
            return
        result = prune_stages(
            built,
            dataset,
            budget=budget, channels=o.parse_channels(channels), constraints=constraints, run=run, images=images,
            seed=seed, sensitivity=sensitivity, improve_rounds=improve, stages=stages, recalibrate=recalibrate,
            name=name, capture_settings=settings, accumulate_settings=AccumulateSettings(folds),
            solve_settings=SolveSettings(method),  # type: ignore[arg-type]  # validated there
            executor=executor, scheduler=scheduler, subject=Subject(model, data, chosen), on_event=bars,
        )  # fmt: skip
    _show_result(run, result, bars.seconds, as_json)


def _show_result(run: str, result: Result, seconds: dict[str, float], as_json: bool) -> None:
    if as_json:
        found = {"report": result.report, "solution": result.solution, "checkpoint": result.checkpoint}
        print_json({"run": run, **found, "seconds": seconds})
        return
    from streamsparse.cli.solving import show_layers, show_solution

    show_solution(result.solution)
    show_layers(result.report)
    say(f"Written to {result.checkpoint.location}. Next: streamsparse evaluate {run} --data ...")
