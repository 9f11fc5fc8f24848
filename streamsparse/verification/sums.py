"""Statistics and partial sums: fields, shapes, counts, and what every Gram must satisfy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from streamsparse.events import reporting
from streamsparse.kernels.folds import FoldSums
from streamsparse.kernels.statistics import FIELDS, Sums, field_shapes
from streamsparse.solve.refit import on_inputs
from streamsparse.store import Run, layout
from streamsparse.store.lanes import Lane
from streamsparse.store.partials import Partials, shards_with_partials
from streamsparse.store.statistics import Statistics
from streamsparse.types import LayerGeometry, geometry_from_json
from streamsparse.verification.findings import Findings, Subject, names_below

SLACK = 1e-4
"""Relative: far above the round-off of float32 products, far below the effect of damage."""

_AGAIN = "delete the layer's statistics and run `streamsparse accumulate` again"
_CAPTURE_AGAIN = "capture this shard again with --overwrite"


def check_statistics(subject: Subject, findings: Findings) -> None:
    """Every committed layer of every stream."""
    for component in names_below(subject.run, "statistics"):
        stream = layout.name_of(component)
        statistics = Statistics(subject.run, stream)
        names = [layout.name_of(name) for name in names_below(subject.run, f"statistics/{component}")]
        layers = [layer for layer in names if layer in statistics]
        with reporting(f"verify statistics {stream}", len(layers), "layers", subject.on_event) as advance:
            for layer in layers:
                key = layout.statistics_key(stream, layer)
                with findings.guarding(key, _AGAIN):
                    _check_layer(subject, statistics, layer, key, findings)
                advance(1)


def _check_layer(subject: Subject, statistics: Statistics, layer: str, key: str, findings: Findings) -> None:
    description: dict[str, Any] = statistics.description(layer) or {}
    geometry = geometry_from_json(description["geometry"])
    known = subject.captured.graph.layers if subject.captured is not None else {layer: geometry}
    summary = "Statistics belong to a layer of other shapes than the manifest's."
    right = _is_of(geometry, known.get(layer), statistics.stream)
    expected = known.get(layer, "no such layer")
    findings.expect(right, key, summary, expected=expected, got=geometry, remedy=_AGAIN)
    sums = statistics[layer]
    summary = "Statistics hold another number of folds than they say."
    findings.expect(
        len(sums) == description["folds"], key, summary, expected=description["folds"], got=len(sums), remedy=_AGAIN
    )
    check_sums(sums, geometry, key, findings, _AGAIN)
    once, found = geometry.patches_per_image * int(description["images"]), sum(float(part.count) for part in sums)
    calls = _calls(subject.run, statistics.stream).get(layer)
    right = found == once * calls if calls else found > 0 and found % once == 0
    findings.expect(
        right, key, "The folds' patches do not add up to those of the images.",
        expected=f"{once:,} for each of {calls or 'its'} calls, from {description['images']:,} images",
        got=f"{found:,.0f}", remedy=_AGAIN,
    )  # fmt: skip


def _is_of(geometry: LayerGeometry, known: LayerGeometry | None, stream: str) -> bool:
    """Whether it is the layer's, or, in a stream of a refit, the layer's on some of its inputs."""
    if known is None or stream == layout.ORIGINAL_STREAM:
        return geometry == known
    return 0 < geometry.in_channels <= known.in_channels and geometry == on_inputs(known, geometry.in_channels)


def check_partials(subject: Subject, findings: Findings) -> None:
    """The sums of captures that dump nothing, shard by shard."""
    for component in names_below(subject.run, "partials"):
        prefix = f"partials/{component}"
        with findings.guarding(prefix, _CAPTURE_AGAIN):
            shards = shards_with_partials(subject.run, layout.name_of(component))
            for shard in shards:
                _check_shard(shard, subject, findings)


def check_lanes(subject: Subject, findings: Findings) -> None:
    """The growing sums of accumulations that have not finished: readable, finite, with the batches in them."""
    found = [key for key in subject.run.documents.keys("partials/") if key.endswith(f"/{layout.RECORD}")]
    keys = sorted({key.rsplit("/", 2)[0] for key in found if "/sums-" in key})
    remedy = "delete this folder and run `streamsparse accumulate` again: it sums its batches anew"
    with reporting("verify partial sums", len(keys), "lanes", subject.on_event) as advance:
        for key in keys:
            with findings.guarding(key, remedy):
                snapshot = Lane(subject.run, key).snapshot()
                for fold in range(0 if snapshot is None else int(snapshot.description["folds"])):
                    sums = {} if snapshot is None else snapshot.fold(fold)
                    broken = [name for name, values in sums.items() if not bool(values.isfinite().all())]
                    findings.expect(
                        not broken, f"{key}, fold {fold}", "Partial sums are not finite.",
                        expected="finite values", got=f"NaN or infinity in {', '.join(broken)}", remedy=remedy,
                    )  # fmt: skip
            advance(1)


def _check_shard(shard: Partials, subject: Subject, findings: Findings) -> None:
    batches, plan = shard.batches(), shard.plan
    findings.expect(
        0 <= batches <= plan.batches, shard.prefix, "Partial sums hold more batches than their shard has.",
        expected=f"up to {plan.batches}", got=batches, remedy=_CAPTURE_AGAIN,
    )  # fmt: skip
    images = min(batches * plan.batch_images, plan.images)
    with reporting(
        f"verify sums {plan.shard + 1}/{plan.shards}", len(plan.layers), "layers", subject.on_event
    ) as advance:
        for layer in plan.layers:
            key = f"{shard.prefix}, layer {layer.geometry.layer}"
            with findings.guarding(key, _CAPTURE_AGAIN):
                sums = shard.layer(layer.geometry.layer)
                check_sums(sums, layer.geometry, key, findings, _CAPTURE_AGAIN)
                each = layer.geometry.patches_per_image * layer.calls
                shares = [len(_of_fold(plan.first_image, images, fold, len(sums))) for fold in range(len(sums))]
                expected, found = [each * share for share in shares], [float(part.count) for part in sums]
                summary = "Partial sums are not over the images that they stand for."
                findings.expect(
                    found == expected, key, summary, expected=expected, got=found, remedy=_CAPTURE_AGAIN
                )
            advance(1)


def check_sums(sums: FoldSums, geometry: LayerGeometry, key: str, findings: Findings, remedy: str) -> None:
    """What holds for any sums of this layer: shapes, dtype, finite, and the inequalities of second moments."""
    shapes = field_shapes(geometry)
    for fold, part in enumerate(sums):
        where = f"{key}, fold {fold}"
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in part.tensors().items()}
        expected = {name: (shapes[name], torch.float64) for name in FIELDS}
        wrong = [name for name in FIELDS if found[name] != expected[name]]
        if not findings.expect(
            not wrong, where, "Fields of the statistics have other shapes or dtypes than the layer gives them.",
            expected={name: expected[name] for name in wrong}, got={name: found[name] for name in wrong},
            remedy=remedy,
        ):  # fmt: skip
            continue
        for name, holds in _laws(part):
            findings.expect(
                holds, where, "The statistics contradict themselves.", expected=name, got="otherwise", remedy=remedy
            )


def _laws(sums: Sums) -> Iterator[tuple[str, bool]]:
    """Statements that hold for the sums of any data; the later ones only make sense if the first does."""
    arrays = {name: tensor.numpy() for name, tensor in sums.tensors().items()}
    finite = all(bool(np.isfinite(array).all()) for array in arrays.values())
    yield "finite values", finite
    if not finite:
        return
    gram, diagonal = arrays["gram"], arrays["gram"].diagonal(axis1=1, axis2=2)  # (groups, columns)
    count, power = float(arrays["count"][0]), arrays["power"]
    nonnegative = bool(count >= 0 and count == round(count) and (diagonal >= 0).all() and (power >= 0).all())
    yield "a whole count, squares that are not negative", nonnegative
    if not nonnegative:
        return
    size = np.sqrt(diagonal)
    bound = size[:, :, None] * size[:, None, :]  # Cauchy and Schwarz: |Σ x_i x_j|² ≤ Σ x_i² Σ x_j²
    yield "a symmetric Gram", bool((np.abs(gram - gram.transpose(0, 2, 1)) <= SLACK * bound).all())
    yield "Gram entries within their diagonal's", bool((np.abs(gram) <= (1 + SLACK) * bound).all())
    reach = size[:, :, None] * np.sqrt(power)[:, None, None]
    yield (
        "cross entries within the powers of both sides",
        bool((np.abs(arrays["cross"]) <= (1 + SLACK) * reach).all()),
    )
    yield (
        "sums of inputs within their squares",
        bool((np.abs(arrays["sum_x"]) <= (1 + SLACK) * np.sqrt(count) * size).all()),
    )
    total = np.square(arrays["sum_y"]).sum(1)
    yield "sums of outputs within their power", bool((total <= (1 + SLACK) * count * power).all())


def _of_fold(first: int, images: int, fold: int, folds: int) -> range:
    """Images of `first`, ..., `first + images - 1` that belong to a fold."""
    return range(first + (fold - first) % folds, first + images, folds)


def _calls(run: Run, stream: str) -> dict[str, int]:
    """How often one image goes through each layer, where a plan still says so."""
    try:
        plans = run.plans(stream) or [shard.plan for shard in shards_with_partials(run, stream)]
        return {layer.geometry.layer: layer.calls for layer in plans[0].layers} if plans else {}
    except Exception:  # noqa: BLE001  a damaged plan is a problem of its own part
        return {}
