"""Commands that begin with a model and images: demo, capture."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamsparse.cli import adapting
from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say, size_text


def demo(
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
    run: Annotated[
        str | None, typer.Option("--run", help="Keep the run in this directory (else it is temporary).")
    ] = None,
    threads: o.Threads = None,
) -> None:
    """Prune a LeNet on MNIST from end to end, offline, in about a minute.

    Captures a trained LeNet (61,706 parameters) over embedded images, accumulates statistics, solves, refits,
    writes the checkpoints, fine-tunes briefly, and evaluates everything on the 10,000 test images.

    Examples:

        streamsparse demo

        streamsparse demo --run runs/demo --json
    """
    from importlib import import_module

    o.use_threads(threads)
    with command(as_json) as bars:
        pipeline = import_module("pipelines.lenet_mnist")
        summary = pipeline.demo(run=run, dry_run=dry_run, on_event=bars)
    pipeline.show(summary)
    if as_json:
        print_json(summary)


def capture(
    run: o.RunArgument,
    model: o.Model,
    weights: o.Weights,
    data: o.Data,
    data_root: o.DataRoot = None,
    normalize: o.Normalize = None,
    size: o.Size = None,
    images: o.Images = o.DEFAULT_IMAGES,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 250,
    dtype: o.Dtype = "float16",
    codec: o.Codec = "zstd:1",
    sink: o.Sink = "activations",
    folds: o.Folds = 5,
    products: o.Products = "float32",
    shard: Annotated[
        str, typer.Option("--shard", help="I/N: capture part I of N; run one per node into one RUN.")
    ] = "1/1",
    window: Annotated[
        str | None,
        typer.Option(
            "--window",
            help="Wait while so many bytes of activations are not yet discarded, such as 50GiB (see "
            "accumulate --follow --discard).",
        ),
    ] = None,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin RUN anew, whatever it holds.")] = False,
    until_converged: adapting.UntilConverged = None,
    at: adapting.At = "keep=0.5",
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Run a model over calibration images and dump its layers' activations into RUN.

    Only layers whose input channels can be removed are dumped. Typed again after a kill, it goes on with the
    first batch that is not committed.

    With --until-converged the capture ends as soon as more images would not change the re-estimated weights by
    more than TOL: after 64, 128, 256, ... images, up to --images, every layer is refitted on a working support
    (--at) and judged on the fold left out. The run then counts as a capture of the images that were used.

    Examples:

        streamsparse capture runs/lenet --model pipelines.lenet:LeNet \\
            --weights lenet.safetensors --data pipelines.mnist:calibration

        streamsparse capture runs/r18 --model torchvision:resnet18 \\
            --weights r18.safetensors --data imagefolder:/data/train \\
            --device cuda --sink statistics

        streamsparse capture runs/r18 ... --shard 2/4

        streamsparse capture runs/lenet ... --sink statistics \\
            --until-converged 0.005 --images 20000
    """
    from streamsparse.capture import CaptureSettings, Subject
    from streamsparse.capture import capture as capture_stage

    o.use_threads(threads)
    with command(as_json) as bars:
        index, count = o.parse_shard(shard)
        settings = CaptureSettings(
            dtype, codec, batch_size, index, count, device, sink, folds, products, o.parse_bytes(window, "--window")
        )
        built = o.load_model(model, weights)
        chosen = {"data_root": data_root, "normalize": normalize, "size": size}
        dataset = o.load_data(data, model, split="train", **chosen)
        if dry_run:
            if until_converged is not None:
                settings = adapting.show_looks(images, settings, until_converged, at, as_json)
            show_capture_plan(built, dataset, images, seed, settings, as_json)
            return
        subject = Subject(model, data, chosen)
        if until_converged is not None:
            adapting.capture(
                run, built, dataset, until_converged, at, images=images, seed=seed, settings=settings,
                subject=subject, overwrite=overwrite, bars=bars, as_json=as_json,
            )  # fmt: skip
            return
        report = capture_stage(
            built, dataset, run, images=images, seed=seed, settings=settings, subject=subject, overwrite=overwrite,
            on_event=bars,
        )  # fmt: skip
    if as_json:
        print_json({"run": run, "report": report, "seconds": bars.seconds})
    else:
        say(
            f"{run}: {report.images:,} images captured, {report.reused_images:,} reused, "
            f"{size_text(report.stored_bytes)} stored. Next: streamsparse accumulate {run}"
        )


def show_capture_plan(model: Any, dataset: Any, images: int, seed: int, settings: Any, as_json: bool) -> None:
    """Layers, shapes and bytes that a capture would write."""
    from streamsparse.capture import calibration_images, plan_stream
    from streamsparse.network import find_groups
    from streamsparse.store.stream import SIDES

    sample = calibration_images(dataset, images=images, seed=seed)
    plan = plan_stream(model, find_groups(model, sample.example), sample.example, len(sample), settings)
    if as_json:
        print_json({"plan": plan, "raw_bytes": plan.raw_bytes, "batches": plan.batches})
        return
    rows = [
        (
            layer.geometry.layer,
            side,
            "×".join(map(str, layer.shape(side))),
            plan.chunk_images(layer, side),
            layer.calls,
        )
        for layer in plan.layers
        for side in SIDES
    ]
    columns = {"layer": "left", "side": "left", "one image": "right", "images per chunk": "right", "calls": "right"}
    raw = size_text(plan.raw_bytes)
    title = f"{plan.images:,} images in {plan.batches:,} batches, {raw} of {plan.dtype} before {plan.codec}"
    print_table(title, columns, rows)
