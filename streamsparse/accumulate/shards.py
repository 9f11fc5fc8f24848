"""From the sums of a capture that dumped nothing to committed statistics: the shards are added."""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from time import perf_counter

from streamsparse.accumulate.report import AccumulateReport
from streamsparse.errors import RunMismatchError, StageMissingError
from streamsparse.events import OnEvent, Reused, reporting
from streamsparse.kernels.folds import merge_folds
from streamsparse.store import Run
from streamsparse.store.partials import Partials, shards_with_partials
from streamsparse.store.statistics import Statistics


def merge_shards(run: Run, stream: str, on_event: OnEvent) -> AccumulateReport:
    """Add the sums of all shards and commit them layer by layer.

    Raises:
        StageMissingError: shards or batches are missing; says how many.
        RunMismatchError: the shards were cut in different ways.
        CorruptDataError: committed sums are damaged.
    """
    started = perf_counter()
    shards = _complete_shards(run, stream)
    products = shards[0].state().products
    identity = json.dumps([[shard.plan.digest, shard.batches(), products] for shard in shards])
    source = hashlib.sha256(identity.encode()).hexdigest()
    statistics, layers = Statistics(run, stream), shards[0].plan.layers
    images = sum(shard.plan.images for shard in shards)
    committed = [(statistics.description(layer.geometry.layer) or {}).get("source") == source for layer in layers]
    if all(committed):
        on_event(Reused("accumulate", f"all {len(layers)} layers"))
        return AccumulateReport(0, len(layers), images, 0, perf_counter() - started)
    with reporting("accumulate", len(layers), "layers", on_event) as advance:
        for layer in layers:
            sums = reduce(merge_folds, (shard.layer(layer.geometry.layer) for shard in shards))
            about = {"source": source, "images": images, "stream": stream, "products": products}
            statistics.write(layer.geometry, sums, about)
            advance(1)
    patches = sum(layer.geometry.patches_per_image * layer.calls for layer in layers) * images
    return AccumulateReport(len(layers), 0, images, patches, perf_counter() - started)


def merged_already(run: Run, on_event: OnEvent) -> AccumulateReport:
    """The report for a run that was merged from others: its statistics came complete.

    Raises:
        StageMissingError: the merge has not finished.
    """
    manifest, statistics = run.manifest(), Statistics(run)
    layers = manifest["layers"]
    missing = [layer for layer in layers if layer not in statistics]
    if missing:
        raise StageMissingError(
            "The merge that this run comes from has not finished.",
            expected=f"{len(layers)} layers",
            got=f"{len(layers) - len(missing)}; missing: {', '.join(missing[:5])}",
            where=run.url,
            remedy="run `streamsparse merge` with the same arguments again: it resumes",
        )
    on_event(Reused("accumulate", f"all {len(layers)} layers: they were merged from other runs"))
    return AccumulateReport(0, len(layers), manifest["data"]["images"], 0, 0.0)


def _complete_shards(run: Run, stream: str) -> list[Partials]:
    shards = shards_with_partials(run, stream)
    counts = {shard.plan.shards for shard in shards}
    if len(counts) > 1:
        raise RunMismatchError(
            "The shards of this capture were cut in different ways.",
            expected="one number of shards",
            got=sorted(counts),
            where=run.url,
            remedy="capture again with --overwrite and the same N in every --shard I/N",
        )
    settings = {(state.folds, state.products) for state in (shard.state() for shard in shards)}
    if len(settings) > 1:
        raise RunMismatchError(
            "The shards of this capture were summed in different ways.",
            expected="one number of folds and one precision of products",
            got="; ".join(f"{folds} folds, {products} products" for folds, products in sorted(settings)),
            where=run.url,
            remedy="capture again with --overwrite and the same --folds and --products for every shard",
        )
    finished = [shard for shard in shards if shard.batches() == shard.plan.batches]
    expected = counts.pop() if counts else 1
    if len(finished) < expected:
        raise StageMissingError(
            "The capture has not finished.",
            expected=f"{expected} shards, summed to the end",
            got=f"{len(finished)}",
            where=f"stream '{stream}'",
            remedy="run `streamsparse capture` with the same arguments again: it resumes",
        )
    return finished
