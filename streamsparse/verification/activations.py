"""Dumped activations: plans, markers, arrays against their plan, and every chunk of every committed batch."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from streamsparse.events import reporting
from streamsparse.store import Run, layout
from streamsparse.store.activations import ActivationReader
from streamsparse.store.batches import Batch
from streamsparse.store.codecs import MANTISSA_BITS, loss
from streamsparse.store.planned import ArrayId, arrays_of, open_planned, require_own_place, stray_chunks
from streamsparse.store.stream import StreamPlan, plan_from_json
from streamsparse.verification.findings import Findings, Subject, names_below
from streamsparse.verification.markers import check_markers

_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")
_CAPTURE_AGAIN = "delete the batch's marker and run `streamsparse capture` again: it writes that batch anew"
_PLAN_AGAIN = "restore plan.json from a copy, or capture this shard again with --overwrite"


def check_activations(subject: Subject, findings: Findings) -> None:
    """Every shard of every stream."""
    for component in names_below(subject.run, "activations"):
        stream = layout.name_of(component)
        shards = _shards(subject.run, stream)
        plans: dict[str, StreamPlan] = {}
        for prefix in shards:
            with findings.guarding(f"{prefix}/{layout.PLAN}", _PLAN_AGAIN):
                plan = _checked_plan(subject, prefix, stream, findings)
                if plan is not None:
                    plans[prefix] = plan
        with findings.guarding(f"activations/{component}", _PLAN_AGAIN):
            _check_together(plans, findings)
        reader = _reader(subject.run, stream, whole=len(plans) == len(shards))
        for prefix, plan in plans.items():
            with findings.guarding(prefix, "capture this shard again with --overwrite"):
                _check_shard(subject, reader, prefix, plan, findings)
        if plans and reader is None:
            findings.note(f"the chunks of stream '{stream}' were not read, because of the plans that are damaged")


def _shards(run: Run, stream: str) -> list[str]:
    """Prefixes of the stream's shards, whether their plans are readable or not."""
    names = [name for name in run.documents.names(f"activations/{layout.part(stream)}") if _SHARD.fullmatch(name)]
    return [f"activations/{layout.part(stream)}/{name}" for name in names]


def _reader(run: Run, stream: str, *, whole: bool) -> ActivationReader | None:
    return run.reader(stream) if whole and run.plans(stream) else None


def _checked_plan(subject: Subject, prefix: str, stream: str, findings: Findings) -> StreamPlan | None:
    """The shard's plan, if it can be worked with; None for a shard that was killed before it had one."""
    key = f"{prefix}/{layout.PLAN}"
    found = subject.run.documents.read_json(key)
    if found is None:
        committed = names_below(subject.run, f"{prefix}/commits")
        summary = "A shard with committed batches has no plan."
        findings.expect(not committed, key, summary, expected="plan.json", got="nothing", remedy=_PLAN_AGAIN)
        return None
    plan = plan_from_json(found)
    numbers = (plan.shard, plan.shards, plan.first_image, plan.images, plan.batch_images)
    right = all(type(number) is int and number >= 0 for number in numbers) and plan.batch_images > 0
    if not findings.expect(
        right and plan.dtype in MANTISSA_BITS, key, "A plan's numbers or its dtype have no meaning.",
        expected=f"counts of images, {' or '.join(MANTISSA_BITS)}", got=(*numbers, plan.dtype), remedy=_PLAN_AGAIN,
    ):  # fmt: skip
        return None
    with findings.guarding(key):
        require_own_place(plan, prefix)
    lost = loss(plan.codec, plan.dtype)
    if lost is not None:
        findings.note(f"{prefix}: {lost}")
    if subject.captured is not None and stream == layout.ORIGINAL_STREAM:
        known = subject.captured.graph.layers
        geometries = [layer.geometry for layer in plan.layers]
        foreign = ", ".join(own.layer for own in geometries if known.get(own.layer) != own)
        summary = "A plan describes layers that are not those of the manifest."
        expected = "layers and shapes of the manifest's channel graph"
        findings.expect(not foreign, key, summary, expected=expected, got=foreign, remedy=_PLAN_AGAIN)
    return plan


def _check_together(plans: dict[str, StreamPlan], findings: Findings) -> None:
    """The shards of a stream must be cut from one whole, without overlaps."""
    counts = sorted({plan.shards for plan in plans.values()})
    findings.expect(
        len(counts) <= 1, ", ".join(plans), "The shards of this capture were cut in different ways.",
        expected="one number of shards", got=counts,
        remedy="capture again with the same N in every --shard I/N, the first of them with --overwrite",
    )  # fmt: skip
    ordered = sorted(plans.items(), key=lambda item: item[1].first_image)
    for (first, before), (second, after) in pairwise(ordered):
        findings.expect(
            before.first_image + before.images <= after.first_image, f"{second}/{layout.PLAN}",
            "Two shards hold the same images: they would be counted twice.",
            expected=f"first image {before.first_image + before.images} or later, after {first}",
            got=f"first image {after.first_image}", remedy="capture again with --overwrite and one way of cutting",
        )  # fmt: skip


def _check_shard(
    subject: Subject, reader: ActivationReader | None, prefix: str, plan: StreamPlan, findings: Findings
) -> None:
    batches = check_markers(subject.run, prefix, plan, findings)
    strays, temporary = stray_chunks(subject.run.documents, prefix, plan, [batch.index for batch in batches])
    if strays:
        numbers = ", ".join(map(str, sorted(strays)[:8])) + (", …" if len(strays) > 8 else "")
        findings.note(
            f"{prefix}: {strays.total()} chunks of batches without a right marker ({numbers}); not counted"
        )
    if temporary:
        findings.note(f"{prefix}: {temporary} temporary files of writes that were killed; not counted")
    arrays = [
        array for array in arrays_of(plan) if _is_planned(subject, prefix, plan, array, bool(batches), findings)
    ]
    if reader is None:
        return
    discarded = {
        batch.index for batch in batches if subject.run.documents.exists(layout.discarded_key(prefix, batch.index))
    }
    if discarded:
        findings.note(f"{prefix}: {len(discarded)} batches were discarded once they were summed; nothing to read")
    batches = [batch for batch in batches if batch.index not in discarded]
    with reporting(
        f"verify {plan.stream} {plan.shard + 1}/{plan.shards}", len(batches), "batches", subject.on_event
    ) as advance:
        for batch in batches:
            for array in arrays:
                with findings.guarding(array.key(prefix), _CAPTURE_AGAIN):
                    _check_batch(reader, batch, array, plan, findings)
            advance(1)


def _is_planned(
    subject: Subject, prefix: str, plan: StreamPlan, array: ArrayId, needed: bool, findings: Findings
) -> bool:
    """Whether an array's metadata are the plan's; arrays that a kill left out are missed only if a batch counts."""
    key = array.key(prefix)
    if not needed and not subject.run.documents.exists(f"{key}/zarr.json"):
        return False
    before = len(findings.problems)
    with findings.guarding(f"{key}/zarr.json", "restore the file from a copy, or capture again with --overwrite"):
        open_planned(subject.run.store, plan, array.layer, array.side, key)
    return len(findings.problems) == before


def _check_batch(
    reader: ActivationReader, batch: Batch, array: ArrayId, plan: StreamPlan, findings: Findings
) -> None:
    """Read one batch of one array: checksums, chunks that are missing, shape, dtype, finite values."""
    layer = array.layer.geometry.layer
    values = reader.read(batch, layer, array.call, array.side)
    key = f"{array.key(batch.shard)}, batch {batch.index}"
    expected = ((batch.images, *array.layer.shape(array.side)), plan.dtype)
    findings.expect(
        (values.shape, str(values.dtype)) == expected, key, "A batch is not of its plan's shape or dtype.",
        expected=expected, got=(values.shape, str(values.dtype)), remedy=_CAPTURE_AGAIN,
    )  # fmt: skip
    findings.expect(
        bool(np.isfinite(values).all()), key, "Stored activations are not finite.",
        expected="finite values", got="NaN or infinity", remedy=_CAPTURE_AGAIN,
    )  # fmt: skip
