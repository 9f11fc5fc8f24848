"""The latency command: how long the model's layers take by width, for budgets of time."""

from __future__ import annotations

from typing import Annotated

import typer

from streamsparse.cli import options as o
from streamsparse.cli.console import command, print_json, print_table, say


def latency(
    run: o.RunArgument,
    device: o.Device = "cpu",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images that are passed at once.")] = 1,
    threads: o.Threads = None,
    as_json: o.Json = False,
    dry_run: o.DryRun = False,
) -> None:
    """Time the model's layers at a few widths on this machine, for `solve --budget latency=X@DEVICE`.

    Takes seconds to minutes, once per device; the machine should be otherwise idle. What is chosen by it is a
    prediction: `evaluate --latency` measures the pruned model.

    Examples:

        streamsparse latency runs/r18 --device cuda --batch-size 32

        streamsparse solve runs/r18 --budget latency=0.5@cuda
    """
    from streamsparse.intake.captured import read_captured
    from streamsparse.latencies import measure_latencies
    from streamsparse.network.latency_tables import FRACTIONS
    from streamsparse.store import Run

    o.use_threads(threads)
    with command(as_json) as bars:
        opened = Run.at(run)
        if dry_run:
            layers = list(read_captured(opened).graph.layers)
            if as_json:
                print_json({"run": run, "device": device, "layers": layers, "fractions": FRACTIONS})
            else:
                say(f"{len(layers)} layers would be timed on {device} at {len(FRACTIONS)} widths of either side.")
            return
        found = measure_latencies(opened, device=device, batch_images=batch_size, on_event=bars)
    if as_json:
        print_json({"run": run, "latencies": found.to_json(), "seconds": bars.seconds})
        return
    rows = [
        (table.layer, f"{1e3 * table.seconds[-1, -1]:.2f}", f"{1e3 * table.seconds[0, 0]:.2f}")
        for table in found.layers
    ]
    columns = {"layer": "left", "whole, ms": "right", "narrowest, ms": "right"}
    title = f"{1e3 * found.whole_seconds:.2f} ms for {batch_size} image(s) on {device}, {found.threads} thread(s)"
    print_table(title, columns, rows)
    say(f"Next: streamsparse solve {run} --budget latency=0.5@{device}")
