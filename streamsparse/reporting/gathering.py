"""From a run to the facts of its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamsparse.events import OnEvent, ignore
from streamsparse.report.facts import Facts, Measured
from streamsparse.reporting.evidence import LOSS_UNITS, Evidence, listed, read_evidence
from streamsparse.reporting.groups import POINTS, group_facts, network_points, predicted_loss
from streamsparse.reporting.layers import CONDITION_COLUMNS, layer_facts, too_wide
from streamsparse.reporting.notes import (
    group_notes,
    loss_notes,
    measured_notes,
    stage_notes,
    time_notes,
    walk_notes,
)
from streamsparse.reporting.origins import measured_facts, provenance, stage_facts
from streamsparse.reporting.walks import WALK_COLUMNS, WALKS, walk_facts, walkable, walked_groups
from streamsparse.store import Run


def gather(
    run: Run | str | Path,
    *,
    points: int = POINTS,
    walks: int = WALKS,
    walk_columns: int = WALK_COLUMNS,
    condition_columns: int = CONDITION_COLUMNS,
    on_event: OnEvent = ignore,
) -> Facts:
    """Everything that a report shows of a run, as far as the run has come.

    Fronts, sensitivities and evaluations are read as the stages left them. Computed anew from the statistics are
    the conditioning of the layers and the paths of a few groups; nothing is written.

    Args:
        run: at any stage.
        points: networks on the front of all budgets.
        walks: groups whose path is walked: those of most channels.
        walk_columns: groups whose Grams have more columns are not walked.
        condition_columns: Grams of more columns are not decomposed.
        on_event: hears of progress.

    Raises:
        RunNotFoundError, SchemaVersionError, CorruptDataError: there is no readable run.
    """
    run = run if isinstance(run, Run) else Run.at(run)
    evidence = read_evidence(run)
    measured, errors = measured_facts(evidence)
    stages = stage_facts(run)
    layers = layer_facts(evidence, errors, condition_columns=condition_columns, on_event=on_event)
    walked = walked_groups(evidence, walks, walk_columns)
    paths, open_ended = walk_facts(evidence, walked, on_event=on_event)
    networks, chosen = network_points(evidence, points)
    loss, kind = predicted_loss(evidence)
    solution, plan = evidence.solution, None if evidence.solution is None else evidence.solution.plan
    notes = [
        *(*stage_notes(evidence), *evidence.notes, *loss_notes(evidence)),
        *measured_notes(evidence, measured, bool(errors)),
        *time_notes(evidence, stages),
        *group_notes(evidence),
        *_wide_note(evidence, condition_columns),
        *walk_notes(walked, walkable(evidence), open_ended),
    ]
    return Facts(
        title=_title(evidence, measured),
        run=run.url,
        original=evidence.captured.costs.costs({}),
        pruned=None if plan is None else plan.costs,
        budget=None if plan is None else plan.budget,
        predicted_loss=loss,
        improved_loss=None if plan is None else plan.measured_loss,
        loss_unit=LOSS_UNITS.get(kind, kind),
        mode=None if solution is None else solution.mode,
        recalibrated=solution is not None and bool(solution.recalibrated),
        points=networks,
        chosen=chosen,
        groups=group_facts(evidence),
        layers=layers,
        walks=paths,
        stages=stages,
        measured=measured,
        provenance=provenance(evidence),
        notes=tuple(notes),
    )


def _title(evidence: Evidence, measured: Sequence[Measured]) -> str:
    """The model's name, and that of the calibration data; of the evaluation's where that is a function's call."""
    manifest = evidence.captured.manifest
    model = (manifest["model"]["spec"] or manifest["model"]["class"]).partition("?")[0]
    data = manifest["data"]["spec"] or ""
    if "?" in data:
        data = measured[0].data if measured and "?" not in measured[0].data else ""
    name = model.rpartition(":")[2].rpartition(".")[2]
    return f"{name} on {data}" if data else name


def _wide_note(evidence: Evidence, columns: int) -> list[str]:
    wide = too_wide(evidence, columns)
    return (
        [f"Conditioning is not computed for Grams of more than {columns:,} columns: {listed(wide)}."]
        if wide
        else []
    )
