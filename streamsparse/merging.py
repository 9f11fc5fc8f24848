"""Merge: the statistics of several runs of one model into a new run, without any data moving.

    hospital-a/   statistics over 2,000 images ─┐
    hospital-b/   statistics over 5,000 images ─┼─>  both/   statistics over 7,000 images: solve, write, evaluate
                                                 (sums are additive, fold by fold)

What a site hands over is its manifest, the model's weights, and sums over all its patches; no image, no activation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any

from streamsparse.agreement import (
    check_agreement,
    check_samples,
    notice_overlaps,
    sample_digest,
    samples_digest,
    sources_of,
)
from streamsparse.errors import RunMismatchError, StageMissingError, UsageError
from streamsparse.events import OnEvent, Reused, ignore, reporting
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.kernels.folds import merge_folds
from streamsparse.kernels.statistics import sums_bytes
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics

MERGED_SINK = "merged"


@dataclass(frozen=True)
class MergedLayer:
    """One layer of a merge that is to be done.

    Attributes:
        layer: module path.
        columns: of its regression, per convolution group.
        bytes: of its merged statistics, all folds.
        source: SHA-256 over the sources of the statistics that are added: the identity of the result.
    """

    layer: str
    columns: int
    bytes: int
    source: str


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do.

    Attributes:
        runs: URLs, in the order in which they are added: that of their samples' digests, however they were named.
        images: over all runs.
        folds: of every run.
        layers: all captured layers.
    """

    runs: tuple[str, ...]
    images: int
    folds: int
    layers: tuple[MergedLayer, ...]


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        runs: that were added.
        layers: merged now; reused_layers: committed before.
        images: over all runs.
        seconds: of wall time.
    """

    runs: int
    layers: int
    reused_layers: int
    images: int
    seconds: float


def plan_merge(runs: Sequence[Run | str | Path]) -> MergePlan:
    """Check that the runs can be merged, and say what would be added; touches nothing.

    Raises:
        UsageError: fewer than two runs, or one given twice.
        RunMismatchError: another model, channel graph, layers, folds or products, or the same sample twice.
        StageMissingError: statistics that are not complete.
    """
    return _plan(_opened(runs))


def merge(runs: Sequence[Run | str | Path], into: Run | str | Path, *, on_event: OnEvent = ignore) -> MergeReport:
    """Add the statistics of runs of one model, and commit them as a new run, layer by layer.

    The new run can be solved, written and evaluated. It holds no images: it cannot be captured further, nor be
    refitted in order, which needs new passes over the data.

    Args:
        runs: two or more, with complete statistics, over different images.
        into: the new run, or one that the same merge began.

    Raises:
        UsageError, RunMismatchError, StageMissingError: see `plan_merge`; or `into` holds another run.
        CorruptDataError: statistics that are damaged; finished layers stay committed.
        RunLockedError: another process is using `into`.
    """
    started = perf_counter()
    opened, target = _opened(runs), into if isinstance(into, Run) else Run.at(into)
    plan = _plan(opened)
    if _place(target) in {_place(run) for run, _ in opened}:
        raise UsageError(
            "A merge makes a new run.",
            expected="--into a RUN that is none of those to be merged",
            got=target.url,
            where="--into",
        )
    target.require_own()
    notice_overlaps(opened, on_event)
    with target.lock():
        _begin(target, opened, plan)
        todo = [layer for layer in plan.layers if _source(target, layer.layer) != layer.source]
        reused = len(plan.layers) - len(todo)
        if reused:
            on_event(Reused("merge", f"{reused} of {len(plan.layers)} layers"))
        with reporting("merge", len(todo), "layers", on_event) as advance:
            for layer in todo:
                _merge_layer(target, opened, layer, plan.images)
                advance(1)
    return MergeReport(len(opened), len(todo), reused, plan.images, perf_counter() - started)


_Opened = list[tuple[Run, Captured]]


def _opened(runs: Sequence[Run | str | Path]) -> _Opened:
    opened = [run if isinstance(run, Run) else Run.at(run) for run in runs]
    if len(opened) < 2:
        raise UsageError("A merge takes runs.", expected="two or more", got=len(opened), where="RUN ...")
    for first, second in combinations(opened, 2):
        if _place(first) == _place(second):
            raise UsageError(
                "A run is given twice; its images would count twice.",
                expected="every RUN once",
                got=second.url,
                where="RUN ...",
                remedy="leave one of them out",
            )
    return sorted(((run, read_captured(run)) for run in opened), key=lambda pair: sample_digest(pair[1].manifest))


def _place(run: Run) -> object:
    """What two names of one run have in common."""
    return (
        id(run.store) if run.url == "memory://" else run.url if run.directory is None else run.directory.resolve()
    )


def _plan(opened: _Opened) -> MergePlan:
    check_samples(opened)
    first = opened[0][1]
    for run, captured in opened:
        _require_statistics(run, captured)
    check_agreement(opened)
    layers = first.manifest["layers"]
    about = Statistics(opened[0][0]).description(layers[0]) or {}
    images = sum(captured.manifest["data"]["images"] for _, captured in opened)
    planned = []
    for layer in layers:
        geometry = first.graph.layers[layer]
        identity = json.dumps([_source(run, layer) for run, _ in opened])
        source = hashlib.sha256(identity.encode()).hexdigest()
        size = about["folds"] * sums_bytes(geometry)
        planned.append(MergedLayer(layer, geometry.columns, size, source))
    return MergePlan(tuple(run.url for run, _ in opened), images, about["folds"], tuple(planned))


def _require_statistics(run: Run, captured: Captured) -> None:
    layers, images = captured.manifest["layers"], captured.manifest["data"]["images"]
    statistics = Statistics(run).require(layers)
    counted = {(statistics.description(layer) or {}).get("images") for layer in layers}
    if counted != {images}:
        raise StageMissingError(
            "The statistics are not those of all captured images.",
            expected=f"{images:,} images in every layer",
            got=", ".join(map(str, sorted(counted, key=str))),
            where=run.url,
            remedy="run `streamsparse accumulate` on it (again: it resumes)",
        )


def _source(run: Run, layer: str) -> Any:
    return (Statistics(run).description(layer) or {}).get("source")


def _begin(target: Run, opened: _Opened, plan: MergePlan) -> None:
    """Write the manifest and the weights, or find those that the same merge wrote."""
    first = opened[0][0]
    manifest = _manifest(opened, plan)
    found = target.begin(manifest, first.weights())
    digests = [
        (about["model"]["digest"], about["data"].get("digest"), about.get("sink")) for about in (found, manifest)
    ]
    if digests[0] != digests[1]:
        raise RunMismatchError(
            "The target holds another run.",
            expected=f"a merge of {', '.join(plan.runs)}",
            got=f"{found['model']['class']}, {found['data']['images']:,} images, sink {found.get('sink')}",
            where=target.url,
            remedy="choose another RUN for --into, or remove this one",
        )


def _manifest(opened: _Opened, plan: MergePlan) -> dict[str, Any]:
    """As the first run's, over the images of all."""
    about = opened[0][1].manifest
    sources = [source for _, captured in opened for source in sources_of(captured.manifest)]
    data = {
        "spec": None,
        "options": {},
        "length": sum(source["length"] for source in sources),
        "images": plan.images,
        "seed": None,
        "shape": about["data"]["shape"],
        "digest": samples_digest(sources),
        "sources": sources,
    }
    kept = {key: about[key] for key in ("versions", "model", "layers", "graph", "costs")}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"created": created, **kept, "data": data, "sink": MERGED_SINK}


def _merge_layer(target: Run, opened: _Opened, layer: MergedLayer, images: int) -> None:
    """Two runs' statistics of one layer are in memory at a time."""
    geometry = opened[0][1].graph.layers[layer.layer]
    sums = reduce(merge_folds, (Statistics(run)[layer.layer] for run, _ in opened))
    about = Statistics(opened[0][0]).description(layer.layer) or {}
    kept: dict[str, Any] = {key: about[key] for key in ("stream", "products") if key in about}
    Statistics(target).write(geometry, sums, {**kept, "source": layer.source, "images": images})
