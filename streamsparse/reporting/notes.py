"""What a reader must know of a report: what is missing, left out, approximate or not converged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamsparse.inspection import inspect_run
from streamsparse.report.facts import Measured, StageFacts
from streamsparse.report.wording import number
from streamsparse.reporting.evidence import Evidence, listed
from streamsparse.types import ChannelGroup

_NEXT = {
    "capture": "run the same `streamsparse capture` again: it resumes",
    "accumulate": "run `streamsparse accumulate`",
    "solve": "run `streamsparse solve --budget ...`",
    "weights": "run `streamsparse solve --budget ...`",
    "write": "run `streamsparse write`",
}


def stage_notes(evidence: Evidence) -> list[str]:
    """The first stage that has not finished: what comes after it cannot have."""
    for stage in inspect_run(evidence.run)["stages"]:
        name, state = stage["stage"], stage["state"]
        left = name == "solve" and evidence.solution is not None  # groups that were left by hand have no front
        if state != "complete" and not left:
            detail = f" ({stage['detail']})" if stage["detail"] else ""
            what = "has not begun" if state == "missing" else "has not finished"
            return [f"Stage '{name}' {what}{detail}: {_NEXT[name]}."]
    return []


def group_notes(evidence: Evidence) -> list[str]:
    """Groups that stay whole, are cut approximately, or do not follow their front."""
    graph, solution = evidence.captured.graph, evidence.solution
    notes = [f"Group '{name}' stays whole: {reason}." for name, reason in evidence.whole.items()]
    if graph.frozen:
        channels, places = sum(one.channels for one in graph.frozen), [one.layer for one in graph.frozen]
        notes.append(
            f"{channels:,} channels cannot be cut ({listed(places)}): `streamsparse inspect --groups` says why."
        )
    if solution is None:
        return notes
    kept = solution.plan.keep
    notes += [
        f"Group '{group.name}' is cut approximately: {group.approximate}."
        for group in graph.groups
        if group.approximate is not None and len(kept.get(group.name, range(group.size))) < group.size
    ]
    own = [
        name
        for name, front in evidence.fronts.items()
        if name in kept and kept[name] != tuple(front.front.supports[len(kept[name])].tolist())
    ]
    if own:
        notes.append(
            f"The channels that stay in {listed(own)} are not those of the front shown: they were chosen with "
            "positions to keep or to drop, or from another front."
        )
    left = [group.name for group in graph.groups if group.name not in kept and group.name not in evidence.whole]
    if left:
        notes.append(f"Left whole as the command said: {listed(left)}.")
    return notes


def loss_notes(evidence: Evidence) -> list[str]:
    """What the predicted loss is, where it is not what one would expect."""
    solution, notes = evidence.solution, []
    if evidence.losses and evidence.loss_kind == "error":
        notes.append(
            "What cutting a group does to the output was not measured (`streamsparse sensitivity`): the sum of the "
            "groups' held-out errors stands in for the predicted loss."
        )
    if solution is not None and evidence.losses and solution.plan.loss_kind != evidence.loss_kind:
        notes.append(
            f"The channels were chosen by another measure of loss ({solution.plan.loss_kind}) than the one that is "
            f"shown, which the run knows now ({evidence.loss_kind})."
        )
    return notes


_FAR = 3.0
"""A measured loss that is so many times the predicted one, or less than its inverse, is worth a note."""


def measured_notes(evidence: Evidence, measured: Sequence[Measured], errors: bool) -> list[str]:
    """What was or was not evaluated, and how far the prediction was off."""
    if evidence.solution is None:
        return []
    if not measured:
        return ["No checkpoint has been evaluated: `streamsparse evaluate` measures what is predicted here."]
    notes = []
    if measured[0].costs != evidence.solution.plan.costs:
        notes.append(
            f"The evaluation of '{measured[0].checkpoint}' is of a network of another size than the present "
            "solution's."
        )
    if not errors:
        notes.append(
            "No evaluation is of exactly the present solution's weights, so no layer's error is a measured one."
        )
    elif evidence.solution.plan.loss_kind == "divergence":
        notes += _far_off(sum(evidence.solution.plan.predicted_losses.values()), measured[0].divergence)
    return notes


def _far_off(predicted: float, measured: float) -> Iterator[str]:
    """The prediction adds what groups cost alone; together they may cost another amount."""
    less, more = sorted((predicted, measured))
    if less > 0 and more > _FAR * less:
        times = f"{number(more / less)} times {'more' if measured > predicted else 'less'}"
        yield (
            f"The network diverges by {number(measured)} nats, {times} than the {number(predicted)} predicted, "
            "which adds what each group's cut costs alone. `streamsparse improve` measures whole networks."
        )


def time_notes(evidence: Evidence, stages: Sequence[StageFacts]) -> Iterator[str]:
    """Stages that did not come to their end, and those of which nobody noted what they took."""
    for stage in stages:
        if not stage.finished:
            yield f"Stage '{stage.stage}' was cut short, or is at work: {stage.seconds:.0f} s so far."
    noted = {stage.stage.partition(" ")[0] for stage in stages}
    done = {
        "capture": bool(evidence.summed) and evidence.captured.manifest["sink"] != "merged",
        "accumulate": bool(evidence.summed) and evidence.captured.manifest["sink"] != "merged",
        "solve": bool(evidence.losses),
        "refit": evidence.solution is not None and evidence.solution.mode == "sequential",
    }
    unknown = [stage for stage, is_done in done.items() if is_done and stage not in noted]
    if unknown:
        yield f"What these stages took was not recorded: {', '.join(unknown)}."


def walk_notes(
    walked: Sequence[ChannelGroup], possible: Sequence[ChannelGroup], open_ended: Sequence[str]
) -> list[str]:
    """Which paths are not shown, and which alternations did not converge."""
    shown = {group.name for group in walked}
    left = [group.name for group in possible if group.name not in shown]
    notes = []
    if left:
        groups = "1 group" if len(shown) == 1 else f"{len(shown)} groups"
        notes.append(f"The paper's path is shown for {groups}, not for {listed(left)}.")
    if open_ended:
        notes.append(f"The plain alternation of {listed(open_ended)} had not converged after the iterations shown.")
    return notes
