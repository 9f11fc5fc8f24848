"""Commands that end a run: write, evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say, size_text
from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from streamsparse.evaluation import Evaluation


def write(
    run: o.RunArgument,
    name: o.Name = "pruned",
    formats: Annotated[
        str, typer.Option("--format", help="safetensors, and if wanted pt2 and onnx: safetensors,onnx.")
    ] = "safetensors",
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Cut the channels out and write a checkpoint that is physically smaller and loads without pickle.

    `streamsparse.load(PATH, original_constructor())` resizes a fresh original and loads it strictly.

    Examples:

        streamsparse write runs/lenet

        streamsparse write runs/lenet --name half --format safetensors,onnx
    """
    from streamsparse.store import Run
    from streamsparse.store.solution import read_solution
    from streamsparse.write.stage import parse_formats
    from streamsparse.write.stage import write as write_stage

    with command(as_json) as bars:
        wanted = parse_formats(formats)
        if dry_run:
            from streamsparse.cli.solving import show_solution

            solution = read_solution(Run.at(run))
            if as_json:
                print_json({"solution": solution, "name": name, "formats": wanted})
            else:
                show_solution(solution)
            return
        written = write_stage(run, name=name, formats=wanted, on_event=bars)
    if as_json:
        print_json({"run": run, "checkpoint": written, "seconds": bars.seconds})
    else:
        say(
            f"{written.location}: {written.costs.parameters:,} parameters, {size_text(written.weights_bytes)} "
            f"(original {size_text(written.original_bytes)}). Next: streamsparse evaluate {run} --data ..."
        )


def evaluate(
    run: o.RunArgument,
    data: o.Data,
    name: o.Name = "pruned",
    data_root: o.DataRoot = None,
    normalize: o.Normalize = None,
    size: o.Size = None,
    split: Annotated[str, typer.Option("--split", help="Of named data sets: train or test.")] = "test",
    batch_size: o.BatchSize = 500,
    device: o.Device = "cpu",
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the median time of both models' forward passes too.")
    ] = False,
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", help="Of --latency: images per pass, such as 1,32.")
    ] = None,
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Compare the original with a checkpoint: accuracy where there are labels, agreement and divergence always.

    Parameters, MACs and bytes are counted; --latency measures, after a warm-up, on this machine and --threads.

    Examples:

        streamsparse evaluate runs/lenet --data pipelines.mnist:test

        streamsparse evaluate runs/r18 --data imagefolder:/data/imagenet/val --device cuda

        streamsparse evaluate runs/lenet --data pipelines.mnist:test --latency --batch-sizes 1,32 --threads 1
    """
    from streamsparse.evaluation import evaluate as evaluate_stage
    from streamsparse.store import Run

    o.use_threads(threads)
    with command(as_json) as bars:
        sizes = _parse_batch_sizes(latency, batch_sizes)
        opened = Run.at(run)
        spec = opened.manifest()["model"]["spec"] or ""
        dataset = o.load_data(data, spec, data_root=data_root, split=split, normalize=normalize, size=size)
        if dry_run:
            _show_evaluation_plan(len(dataset), name, sorted(opened.read_checkpoint(name)), as_json)  # type: ignore[arg-type]
            return
        found = evaluate_stage(
            opened, dataset, name=name, data_name=data, batch_images=batch_size, device=device,
            latency_batch_sizes=sizes, on_event=bars,
        )  # fmt: skip
    if as_json:
        print_json({"run": run, "evaluation": found, "seconds": bars.seconds})
    else:
        show_evaluation(found)
        say(f"Next: streamsparse report {run}")


def _parse_batch_sizes(wanted: bool, text: str | None) -> tuple[int, ...]:
    """`1,32` -> (1, 32); () without --latency."""
    if text is not None and not wanted:
        raise UsageError(
            "Batch sizes are those of --latency.", expected="--latency --batch-sizes 1,32", got="no --latency"
        )
    parts = (text or "1,32").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        expected = "whole numbers from 1 up, such as 1,32"
        raise UsageError("These batch sizes do not parse.", expected=expected, got=text, where="--batch-sizes")
    return tuple(dict.fromkeys(map(int, parts))) if wanted else ()


def _show_evaluation_plan(images: int, name: str, files: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"images": images, "checkpoint": name, "files": files})
    else:
        say(f"Both models would classify {images:,} images; checkpoint '{name}' holds {', '.join(files)}.")


def show_evaluation(found: Evaluation) -> None:
    """Original and pruned side by side."""
    comparison = found.comparison

    def percent(value: float | None) -> str:
        return "no labels" if value is None else f"{value:.2%}"

    rows = [
        ("accuracy", percent(comparison.original_accuracy), percent(comparison.pruned_accuracy)),
        ("parameters", f"{found.original_costs.parameters:,}", f"{found.pruned_costs.parameters:,}"),
        ("MACs per image", f"{found.original_costs.macs:,}", f"{found.pruned_costs.macs:,}"),
        ("bytes of tensors", f"{found.original_costs.bytes:,}", f"{found.pruned_costs.bytes:,}"),
        ("agreement with the original", "", percent(comparison.agreement)),
        ("divergence (KL, nats)", "", f"{comparison.divergence:.5f}"),
    ]
    if found.latency is not None:
        measured = found.latency
        rows += [
            (f"ms for {size} images" if size > 1 else "ms for 1 image", f"{before * 1e3:.2f}", f"{after * 1e3:.2f}")
            for size, before, after in zip(
                measured.batch_sizes, measured.original_seconds, measured.pruned_seconds, strict=True
            )
        ]
    columns = {f"{comparison.images:,} images": "left", "original": "right", "pruned": "right"}
    print_table(f"Checkpoint '{found.name}'", columns, rows)
    if found.latency is not None:
        say(
            f"Times are medians of {found.latency.repeats} passes after {found.latency.warm_up}, "
            f"on {found.latency.device}, {found.latency.threads} CPU threads."
        )
    layers = [
        (layer, f"{predicted:.4f}", f"{measured:.4f}")
        for layer, (predicted, measured) in found.layer_errors.items()
    ]
    if layers:
        columns = {"layer": "left", "predicted error": "right", "measured error": "right"}
        print_table("Re-estimated layers on these images", columns, layers)
