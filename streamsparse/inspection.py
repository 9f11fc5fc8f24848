"""What a run holds: every stage, whether it is complete, and how large it is."""

from __future__ import annotations

from typing import Any

from streamsparse.errors import CorruptDataError, StageMissingError
from streamsparse.intake.captured import Captured, read_captured
from streamsparse.network.observation import whole_groups
from streamsparse.store import Run, layout
from streamsparse.store.codecs import loss
from streamsparse.store.partials import shards_with_partials
from streamsparse.store.solution import read_solution
from streamsparse.store.statistics import Statistics


def inspect_run(run: Run) -> dict[str, Any]:
    """The manifest without its channel graph, and one entry per stage: stage, state, detail, bytes.

    Raises:
        RunNotFoundError, SchemaVersionError, CorruptDataError: there is no readable run.
    """
    captured = _captured(run)
    manifest = {key: value for key, value in captured.manifest.items() if key not in ("graph", "costs")}
    layers = set(captured.manifest["layers"])
    whole = whole_groups(captured.graph, layers)
    groups = [group.name for group in captured.graph.groups if group.name not in whole]
    summed = set(Statistics(run))
    fronts = [name for name in groups if run.records.description(layout.front_key(name)) is not None]
    summed_only = manifest["sink"] == "statistics"
    merged = manifest["data"].get("sources")
    state, detail = _summed_state(run) if summed_only else _capture_state(run)
    if merged is not None:
        state, detail = "complete", f"merged: the statistics of {len(merged)} captures, no images here"
    checkpoints = run.documents.names("checkpoints")
    stages = [
        ("capture", state, detail, "partials" if summed_only else "activations"),
        ("accumulate", *_counted(len(summed & layers), len(layers), "layers"), "statistics"),
        ("solve", *_counted(len(fronts), len(groups), "fronts"), "solution"),
        ("weights", *_solution_state(run), "solution/weights"),
        ("write", "complete" if checkpoints else "missing", ", ".join(checkpoints), "checkpoints"),
    ]
    return {
        "manifest": manifest,
        "stages": [
            {"stage": stage, "state": state, "detail": detail, "bytes": run.documents.size_bytes(prefix)}
            for stage, state, detail, prefix in stages
        ],
    }


def _captured(run: Run) -> Captured:
    try:
        return read_captured(run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(
            "The manifest of this run is damaged.",
            expected="the entries that a capture writes",
            got=f"{type(error).__name__}: {error}",
            where=f"{run.url}/{layout.MANIFEST}",
            remedy="`streamsparse inspect RUN --verify` names what is wrong; restore the file from a copy",
        ) from error


def _summed_state(run: Run) -> tuple[str, str]:
    """Of a capture that dumps nothing."""
    shards = shards_with_partials(run, layout.ORIGINAL_STREAM)
    if not shards:
        return "missing", ""
    done, planned = (sum(counts) for counts in ([s.batches() for s in shards], [s.plan.batches for s in shards]))
    begun = f"{len(shards)} of {shards[0].plan.shards} shards begun"
    whole = done == planned and len(shards) == shards[0].plan.shards
    return "complete" if whole else "incomplete", f"sums over {done:,} of {planned:,} batches, {begun}"


def _capture_state(run: Run) -> tuple[str, str]:
    try:
        reader = run.reader()
    except StageMissingError:
        return "missing", ""
    batches = reader.batches()
    images = sum(batch.images for batch in batches)
    shards = next(iter(reader.plans.values())).shards
    detail = f"{images:,} images in {len(batches):,} batches, {len(reader.plans)} of {shards} shards begun"
    stored = [f"{plan.dtype}, {loss(plan.codec, plan.dtype) or plan.codec}" for plan in reader.plans.values()]
    detail = f"{detail}; {'; '.join(dict.fromkeys(stored))}"
    try:
        reader.require_complete()
    except StageMissingError:
        return "incomplete", detail
    return "complete", detail


def _counted(found: int, expected: int, unit: str) -> tuple[str, str]:
    state = "missing" if found == 0 else "complete" if found >= expected else "incomplete"
    return state, f"{found} of {expected} {unit}"


def _solution_state(run: Run) -> tuple[str, str]:
    try:
        solution = read_solution(run)
    except StageMissingError:
        return "missing", ""
    kept = ", ".join(f"{group} {count}" for group, count in solution.plan.counts.items())
    return "complete", f"{solution.mode}{', recalibrated' if solution.recalibrated else ''}; kept: {kept}"
