"""What came out of a run: fronts, the solution with its weights, checkpoints, evaluations."""

from __future__ import annotations

import copy

import numpy as np
from torch import nn

from streamsparse.errors import CheckpointError, StageMissingError, StreamsparseError
from streamsparse.events import reporting
from streamsparse.intake.captured import original_model
from streamsparse.intake.latencies import read_latencies
from streamsparse.solve.fronts import GroupFront
from streamsparse.solve.losses import check_sensitivity
from streamsparse.store import layout
from streamsparse.store.sensitivities import read_sensitivity, sensitivity_request
from streamsparse.store.solution import read_buffers, read_solution, read_weights
from streamsparse.store.timings import read_record
from streamsparse.types import LayerGeometry, Solution
from streamsparse.verification.findings import Findings, Subject, names_below
from streamsparse.write.checkpoint import decode_checkpoint, verify_checkpoint
from streamsparse.write.description import CONFIG_FILE

_SOLVE = "run `streamsparse solve` again"
_MEASURE = "delete it and run `streamsparse sensitivity` again"
_WRITE = "run `streamsparse write` again"


def check_fronts(subject: Subject, findings: Findings) -> None:
    """Every committed front: one support for every count, and errors that are numbers."""
    folder = layout.front_key("").rpartition("/")[0]
    for component in names_below(subject.run, folder):
        key = layout.front_key(layout.name_of(component))
        with findings.guarding(key, f"delete {key} and {_SOLVE}"):
            record = subject.run.records.read(key)
            if record is not None:
                _check_front(GroupFront.from_arrays(record.arrays, record.description), subject, key, findings)


def _check_front(found: GroupFront, subject: Subject, key: str, findings: Findings) -> None:
    positions = found.front.positions
    if subject.captured is not None:
        size = {group.name: group.size for group in subject.captured.graph.groups}.get(found.group)
        summary = "A front is of another group than the manifest's."
        findings.expect(size == positions, key, summary, expected=f"{size} positions", got=positions, remedy=_SOLVE)
    counts = [len(support) for support in found.front.supports]
    findings.expect(
        counts == list(range(positions + 1)), key, "A front's supports are not one for every count.",
        expected=f"0 to {positions} positions", got=counts, remedy=_SOLVE,
    )  # fmt: skip
    for name, errors in (("training", found.front.errors), ("held-out", found.held_out)):
        right = errors.shape == (positions + 1,) and not np.isnan(errors).any()
        findings.expect(
            bool(right), key, f"A front's {name} errors are not numbers, one for every count.",
            expected=f"{positions + 1} numbers", got=f"shape {errors.shape}, {np.isnan(errors).sum()} NaN",
            remedy=_SOLVE,
        )  # fmt: skip


def check_sensitivities(subject: Subject, findings: Findings) -> None:
    """Every committed sensitivity: losses at counts that its group has, for some request."""
    run = subject.run
    with findings.guarding(layout.SENSITIVITIES, _MEASURE):
        sensitivity_request(run)
    for component in names_below(run, layout.sensitivity_key("").rpartition("/")[0]):
        name, ending = component.rpartition(".json")[0], component.rpartition(".")[2]
        if ending != "json":
            continue  # left behind by a kill
        key = layout.sensitivity_key(layout.name_of(name))
        with findings.guarding(key, _MEASURE):
            document = run.documents.read_json(key) or {}
            found = read_sensitivity(run, layout.name_of(name), document["front"], document["request"])
            if found is not None and subject.captured is not None:
                check_sensitivity(found, subject.captured.graph.group(found.group).size)


def check_solution(subject: Subject, findings: Findings) -> None:
    """The plan, and weights that belong to it."""
    with findings.guarding(layout.SOLUTION, _SOLVE):
        try:
            solution = read_solution(subject.run)
        except StageMissingError:
            return
        _check_plan(solution, subject, findings)
        for name, values in read_buffers(subject.run, solution).items():
            summary = "Running statistics of the solution are not finite."
            key = f"{layout.SOLUTION_WEIGHTS}, {name}"
            right = bool(np.isfinite(values).all())
            findings.expect(right, key, summary, expected="finite numbers", got="NaN or infinity", remedy=_SOLVE)
        layers = subject.captured.graph.layers if subject.captured is not None else {}
        for layer, (weight, bias) in read_weights(subject.run, solution).items():
            key = f"{layout.SOLUTION_WEIGHTS}, layer {layer}"
            finite = np.isfinite(weight).all() and (bias is None or np.isfinite(bias).all())
            summary = "Re-estimated weights are not finite."
            findings.expect(
                bool(finite), key, summary, expected="finite weights", got="NaN or infinity", remedy=_SOLVE
            )
            if layer in layers:
                expected, got = _shapes(layers[layer]), (weight.shape, None if bias is None else bias.shape)
                summary = "Re-estimated weights have another shape than their layer."
                findings.expect(got == expected, key, summary, expected=expected, got=got, remedy=_SOLVE)


def _check_plan(solution: Solution, subject: Subject, findings: Findings) -> None:
    known = (
        {group.name: group.size for group in subject.captured.graph.groups}
        if subject.captured is not None
        else solution.plan.sizes
    )
    for group, kept in solution.plan.keep.items():
        size = known.get(group, 0)
        right = list(kept) == sorted(set(kept)) and all(type(one) is int and 0 <= one < size for one in kept)
        findings.expect(
            right and solution.plan.sizes.get(group) == size, layout.SOLUTION,
            f"The solution keeps positions of group '{group}' that it does not have.",
            expected=f"sorted positions below {size}", got=list(kept), remedy=_SOLVE,
        )  # fmt: skip


def _shapes(geometry: LayerGeometry) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Of a layer's weight and bias."""
    weight = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
    return weight, (geometry.out_channels,) if geometry.bias else None


def check_checkpoints(subject: Subject, findings: Findings) -> None:
    """Every checkpoint's digests; and whether it loads, where the manifest says how to build the original."""
    names = [layout.name_of(name) for name in names_below(subject.run, "checkpoints")]
    original = _original(subject, findings) if names else None
    with reporting("verify checkpoints", len(names), "checkpoints", subject.on_event) as advance:
        for name in names:
            key = layout.checkpoint_prefix(name)
            with findings.guarding(key):
                _check_checkpoint(subject, name, key, original, findings)
            advance(1)


def _check_checkpoint(
    subject: Subject, name: str, key: str, original: nn.Module | None, findings: Findings
) -> None:
    try:
        files = subject.run.read_checkpoint(name)
    except StageMissingError:
        return  # a directory without files
    if CONFIG_FILE not in files:
        findings.note(f"{key} has no {CONFIG_FILE}: its writing was killed, and it does not count; {_WRITE}")
        return
    description, _ = verify_checkpoint(files)
    about = description.config
    if subject.captured is not None and about.original_digest is not None:
        expected = subject.captured.manifest["model"]["digest"]
        if about.original_digest != expected:
            findings.note(
                f"{key} was made from another model than this run's, weights {about.original_digest[:16]}…"
            )
            return
    if original is not None:
        try:
            decode_checkpoint(files, copy.deepcopy(original))
        except CheckpointError as error:
            raise CheckpointError(
                f"The checkpoint does not load into the original: {error.summary}", expected=error.expected,
                got=error.got, where=f"{key}, {error.where}", remedy=error.remedy,
            ) from error  # fmt: skip


def _original(subject: Subject, findings: Findings) -> nn.Module | None:
    """The original model, or None with a note where it cannot be built here."""
    if subject.captured is None:
        return None
    spec = subject.captured.manifest["model"].get("spec")
    if spec is None:
        findings.note("the manifest does not say how to build the model: loading the checkpoints was not tried")
        return None
    try:
        return original_model(subject.run)
    except StreamsparseError as error:
        findings.note(f"{spec} cannot be built here ({error.summary}): loading the checkpoints was not tried")
        return None


def check_evaluations(subject: Subject, findings: Findings) -> None:
    """Whether they are documents."""
    for name in names_below(subject.run, "evaluations"):
        if name.endswith(".json"):
            key = f"evaluations/{name}"
            with findings.guarding(key, "run `streamsparse evaluate` again"):
                subject.run.documents.read_json(key)


def check_latencies(subject: Subject, findings: Findings) -> None:
    """Whether tables of latencies can be interpolated; those of another model are never used."""
    if subject.captured is None:
        return
    for name in names_below(subject.run, layout.LATENCIES):
        device = layout.name_of(name.removesuffix(".json"))
        with findings.guarding(f"{layout.LATENCIES}/{name}", f"run `streamsparse latency --device {device}` again"):
            read_latencies(subject.run, subject.captured, device)


def check_timings(subject: Subject, findings: Findings) -> None:
    """Whether the records of what stages took are such."""
    for name in names_below(subject.run, layout.TIMINGS):
        if name.endswith(".json"):
            key = f"{layout.TIMINGS}/{name}"
            with findings.guarding(key, f"delete {key}: nothing but the report reads it"):
                read_record(subject.run, layout.name_of(name.removesuffix(".json")))
