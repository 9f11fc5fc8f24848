"""Latencies of a run's model by width, measured once per device: what `solve --budget latency=X@DEVICE` uses."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from streamsparse.errors import UsageError
from streamsparse.events import OnEvent, ignore, reporting
from streamsparse.intake.captured import original_model, read_captured
from streamsparse.kernels.latencies import LatencyModel
from streamsparse.network.latency_tables import latency_model
from streamsparse.store import Run, layout


def measure_latencies(
    run: Run | str | Path,
    *,
    model: nn.Module | None = None,
    device: str = "cpu",
    batch_images: int = 1,
    on_event: OnEvent = ignore,
) -> LatencyModel:
    """Time the original's layers at a few widths on a device and keep the table in the run.

    Args:
        run: captured; needs no statistics.
        model: the original; None builds it as the manifest says.
        device: "cpu", "cuda" or "cuda:N"; a budget names it the same way.
        batch_images: passed at once.
        on_event: hears of progress.

    Raises:
        UsageError: no such device, or a batch of no images.
        RunMismatchError: another model than the capture's.
    """
    if batch_images < 1:
        raise UsageError("A batch holds images.", expected="≥ 1", got=batch_images, where="--batch-size")
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    original = _on(original_model(run, model), device)
    example = torch.rand(1, *captured.manifest["data"]["shape"]).to(device)
    with run.lock("latencies"), reporting("latency", len(captured.graph.layers), "layers", on_event) as advance:
        found = latency_model(
            original, captured.graph, captured.costs, example, batch_images=batch_images,
            on_layer=lambda _: advance(1),
        )  # fmt: skip
        about = {**found.to_json(), "device": device, "model": captured.manifest["model"]["digest"]}
        run.documents.write_json(layout.latencies_key(device), about)
    original.cpu()
    return found


def _on(model: nn.Module, device: str) -> nn.Module:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            "The model cannot be moved to this device.",
            expected="cpu, cuda or cuda:N of this machine",
            got=f"{device}: {error}",
            where="--device",
        ) from error
