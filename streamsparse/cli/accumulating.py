"""The command between the activations and the statistics: accumulate."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say, size_text
from streamsparse.errors import UsageError

if TYPE_CHECKING:
    from streamsparse.accumulate import AccumulatePlan


def accumulate(
    run: o.RunArgument,
    folds: o.Folds = 5,
    executor: o.ExecutorKind = "auto",
    workers: o.Workers = None,
    scheduler: o.Scheduler = None,
    memory_limit: o.MemoryLimit = None,
    products: o.Products = "float32",
    follow: Annotated[
        bool, typer.Option("--follow", help="Sum batches as a running capture commits them, until it has finished.")
    ] = False,
    discard: Annotated[
        bool,
        typer.Option("--discard", help="With --follow: delete activations whose sums are kept."),
    ] = False,
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Reduce the activations in RUN to sufficient statistics: the only pass over the data.

    Each layer is committed as soon as it is summed, and the sums of long ones are kept in RUN as they grow: typed
    again after a kill of whatever process, the command goes on from there.

    With --memory-limit, a layer whose Gram does not fit is summed in blocks of channels. With --follow --discard,
    and --window of capture, the disk holds no more than a window of the activations.

    Examples:

        streamsparse accumulate runs/lenet

        streamsparse accumulate runs/vgg --executor processes \\
            --workers 8 --memory-limit 4GiB

        streamsparse accumulate /shared/runs/vgg --scheduler tcp://10.0.0.1:8786

        streamsparse accumulate runs/vgg --dry-run --memory-limit 1GiB

        streamsparse accumulate runs/vgg --follow --discard   # while it is captured
    """
    from streamsparse.accumulate import AccumulateSettings
    from streamsparse.accumulate import accumulate as accumulate_stage
    from streamsparse.accumulate import dry_run as plan_stage
    from streamsparse.accumulate import follow as follow_stage

    o.use_threads(threads)
    with command(as_json) as bars:
        settings = AccumulateSettings(folds, products, o.parse_bytes(memory_limit))
        if discard and not follow:
            raise UsageError(
                "Activations are discarded while a capture is followed.", expected="--follow --discard",
                got="--discard alone", remedy="add --follow, or delete RUN/activations when you need them no more",
            )  # fmt: skip
        if dry_run:
            planned = plan_stage(run, settings=settings, executor=executor, scheduler=scheduler, workers=workers)
            _show_plan(*planned, as_json)
            return
        stage = partial(follow_stage, discards=discard) if follow else accumulate_stage
        report = stage(
            run, settings=settings, executor=executor, scheduler=scheduler, workers=workers, on_event=bars
        )
    if as_json:
        print_json({"run": run, "report": report, "seconds": bars.seconds})
    else:
        say(
            f"{run}: {report.layers} layers summed over {report.images:,} images ({report.patches:,} patches), "
            f"{report.reused_layers} reused. Next: streamsparse solve {run} --budget params=0.5"
        )


def _show_plan(kind: str, plan: AccumulatePlan, as_json: bool) -> None:
    rows = [
        {
            "layer": layer.name,
            "columns": layer.layer.geometry.columns,
            "patches": layer.layer.geometry.patches_per_image * plan.images,
            "blocks": len(layer.cut.blocks),
            "tasks": len(layer.tasks),
            "read_bytes": layer.read_bytes,
            "task_bytes": layer.task_bytes,
        }
        for layer in plan.layers
    ]
    about = {
        "images": plan.images,
        "folds": plan.settings.folds,
        "executor": kind,
        "workers": plan.resources.workers,
        "worker_bytes": plan.worker_bytes,
        "process_bytes": plan.resources.process_bytes,
        "limit_bytes": plan.resources.limit_bytes,
    }
    if as_json:
        print_json({**about, "layers": rows})
        return
    titles = ("layer", "columns", "patches", "blocks", "tasks", "to read", "projected per task")
    columns = {title: "left" if title == "layer" else "right" for title in titles}
    sizes = [(size_text(layer.read_bytes), size_text(layer.task_bytes)) for layer in plan.layers]
    shown = [(*list(row.values())[:5], *texts) for row, texts in zip(rows, sizes, strict=True)]
    print_table(f"{plan.images:,} images in {plan.settings.folds} folds", columns, shown)
    limit, workers = plan.resources.limit_bytes, plan.resources.workers
    say(
        f"{workers} worker{'s' if workers > 1 else ''} ({kind}), at most {size_text(plan.worker_bytes)} projected "
        f"for a process, {size_text(plan.resources.process_bytes)} of it Python and its libraries; "
        + ("no limit." if limit is None else f"the limit is {size_text(limit)}.")
    )
