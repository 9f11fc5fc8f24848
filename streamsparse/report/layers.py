"""Every layer before and after, from the graph, the costs and the solution alone."""

from __future__ import annotations

from streamsparse.kernels.costs import CostModel
from streamsparse.types import ChannelGraph, LayerReport, Role, Solution


def layer_reports(graph: ChannelGraph, costs: CostModel, solution: Solution) -> tuple[LayerReport, ...]:
    """One entry for every convolution and linear layer, in order of execution."""
    keep = solution.plan.keep
    before, after = costs.costs_by_module({}), costs.costs_by_module(keep)
    errors = {error.layer: error.held_out_error for error in solution.layers}
    lost = _lost_channels(graph, solution)
    return tuple(
        LayerReport(
            layer=layer,
            inputs=geometry.in_channels,
            inputs_kept=geometry.in_channels - len(lost["inputs"].get(layer, ())),
            outputs=geometry.out_channels,
            outputs_kept=geometry.out_channels - len(lost["outputs"].get(layer, ())),
            held_out_error=errors.get(layer),
            costs=after[layer],
            original_costs=before[layer],
        )
        for layer, geometry in graph.layers.items()
        if layer in before
    )


def _lost_channels(graph: ChannelGraph, solution: Solution) -> dict[str, dict[str, set[int]]]:
    """Input and output channels that go, by layer."""
    inputs: dict[str, set[int]] = {}
    outputs: dict[str, set[int]] = {}
    for group in graph.groups:
        dropped = set(range(group.size)) - set(solution.plan.keep.get(group.name, range(group.size)))
        for consumer in group.consumers:
            gone = inputs.setdefault(consumer.layer, set())
            gone.update(channel for position in dropped for channel in consumer.inputs[position])
        for part in group.slices:
            layer, _, leaf = part.tensor.rpartition(".")
            if leaf == "weight" and part.dim == 0 and part.role is not Role.CONSUMER and layer in graph.layers:
                gone = outputs.setdefault(layer, set())
                gone.update(entry for position in dropped for entry in part.index[position])
    for layer, gone in outputs.items():
        if graph.layers[layer].groups == graph.layers[layer].in_channels > 1:  # depthwise: inputs go with outputs
            multiplier = graph.layers[layer].out_channels // graph.layers[layer].in_channels
            inputs.setdefault(layer, set()).update(entry // multiplier for entry in gone)
    return {"inputs": inputs, "outputs": outputs}
