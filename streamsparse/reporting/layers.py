"""Layers as a report shows them: costs, errors, conditioning, and whether the sample was large enough."""

from __future__ import annotations

from collections.abc import Mapping

from streamsparse.events import OnEvent, reporting
from streamsparse.kernels.conditioning import Conditioning, conditioning
from streamsparse.kernels.folds import total
from streamsparse.report.facts import LayerFacts
from streamsparse.report.layers import layer_reports
from streamsparse.reporting.evidence import Evidence
from streamsparse.solve.problems import layer_moments
from streamsparse.solve.threads import blas_threads
from streamsparse.types import LayerError, LayerGeometry, PrunePlan, Solution

CONDITION_COLUMNS = 2400
_ROUND_OFF_ERROR = 1e-6  # of relative errors: ridge and float32 products leave no more to compare


def layer_facts(
    evidence: Evidence,
    measured_errors: Mapping[str, float],
    *,
    condition_columns: int = CONDITION_COLUMNS,
    on_event: OnEvent,
) -> tuple[LayerFacts, ...]:
    """Every convolution and linear layer, in order of execution.

    Args:
        measured_errors: of the re-estimated layers, from an evaluation of the present solution.
        condition_columns: Grams of more are not looked at: their eigenvalues take minutes.
    """
    graph, about = evidence.captured.graph, evidence.captured.manifest["data"]
    conditions = _conditions(evidence, condition_columns, on_event)
    errors = {} if evidence.solution is None else {error.layer: error for error in evidence.solution.layers}
    found = []
    for report in layer_reports(graph, evidence.captured.costs, evidence.solution or _untouched(evidence)):
        geometry, own = graph.layers[report.layer], conditions.get(report.layer)
        described = evidence.statistics.description(report.layer)
        images = 0 if described is None else int(described.get("images", about["images"]))
        found.append(
            LayerFacts(
                report=report,
                measured_error=measured_errors.get(report.layer),
                features=_features(geometry),
                patches=evidence.statistics.patches(report.layer),
                images=images,
                condition=None if own is None else own.condition,
                rank=None if own is None else own.rank,
                excess=_excess(errors.get(report.layer)),
            )
        )
    return tuple(found)


def too_wide(evidence: Evidence, condition_columns: int = CONDITION_COLUMNS) -> list[str]:
    """Summed layers whose conditioning is not computed."""
    layers = evidence.captured.graph.layers
    return [layer for layer in evidence.summed if layers[layer].columns > condition_columns]


def _features(geometry: LayerGeometry) -> int:
    return geometry.columns * geometry.groups


def _excess(error: LayerError | None) -> float | None:
    if error is None or error.training_error <= _ROUND_OFF_ERROR:
        return None
    return error.held_out_error / error.training_error - 1


def _untouched(evidence: Evidence) -> Solution:
    """In place of a solution before there is one: everything stays."""
    costs = evidence.captured.costs.costs({})
    return Solution(PrunePlan({}, {}, {}, {}, costs, costs, None), (), "independent")


def _conditions(evidence: Evidence, columns: int, on_event: OnEvent) -> dict[str, Conditioning]:
    wide = set(too_wide(evidence, columns))
    layers = [layer for layer in evidence.summed if layer not in wide]
    found = {}
    with reporting("report: conditioning", len(layers), "layers", on_event) as advance:
        for layer in layers:
            found[layer] = _conditioning(evidence, layer)
            advance(1)
    return found


def _conditioning(evidence: Evidence, layer: str) -> Conditioning:
    """Of all convolution groups: the worst condition, the sum of ranks."""
    geometry = evidence.captured.graph.layers[layer]
    products = (evidence.statistics.description(layer) or {}).get("products", "float32")
    with blas_threads(geometry.columns):
        grams = layer_moments(total(evidence.statistics[layer]), geometry.bias).gram
        each = [conditioning(gram, products) for gram in grams]
    return Conditioning(max(one.condition for one in each), sum(one.rank for one in each))
