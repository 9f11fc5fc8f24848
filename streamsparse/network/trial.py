"""The trial: in float64 and with random weights, masking a group must equal removing it.

Random weights, because a fresh model's zero biases, unit statistics and tiny layer scales would hide errors. All
groups are cut at once, each by another share (groups whose counts must agree without our knowing are found out);
only if that fails are they tried in halves. Images are shrunk if the model runs on smaller ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from streamsparse import events
from streamsparse.errors import ModelError
from streamsparse.network.export import failing_line, first_line
from streamsparse.network.fixed_statistics import FixedStatistics
from streamsparse.network.surgery import mask_sharing, prune
from streamsparse.types import ChannelGraph, ChannelGroup, FrozenChannels, Role

TOLERANCE = 1e-9
STAGE = "trial"
SIDE = 96  # pixels: three by three positions remain after the usual five halvings
_SEED = 0
_BATCH_NORMS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Verdict:
    """Relative error of a cut, and why it could not be made or compared where it is infinite."""

    error: float
    why: str | None = None
    source: str | None = None

    @property
    def passed(self) -> bool:
        """Within the tolerance; not a number is not."""
        return self.error <= TOLERANCE


def try_groups(
    model: nn.Module, graph: ChannelGraph, inputs: tuple[Tensor, ...], on_event: events.OnEvent
) -> ChannelGraph:
    """The graph with the error of every group's trial; groups that fail are frozen.

    Raises:
        ModelError: the model does not run in float64 on the CPU, or its output is not finite.
    """
    generator = torch.Generator().manual_seed(_SEED)
    twin = randomised(model, generator)
    images = _trial_images(twin, inputs, generator)
    errors: dict[str, float] = {}
    failures: dict[str, Verdict] = {}
    with events.reporting(STAGE, len(graph.groups), "groups", on_event) as advance:
        _bisect(twin, graph, list(graph.groups), images, errors, failures)
        advance(len(graph.groups))
    groups = tuple(replace(g, trial_error=errors[g.name]) for g in graph.groups if g.name in errors)
    frozen = tuple(_failed(g, failures[g.name]) for g in graph.groups if g.name in failures)
    return ChannelGraph(groups, graph.frozen + frozen, graph.layers)


def _bisect(
    twin: nn.Module,
    graph: ChannelGraph,
    groups: list[ChannelGroup],
    images: tuple[Tensor, ...],
    errors: dict[str, float],
    failures: dict[str, Verdict],
) -> None:
    """Try the groups together, in halves where that fails; record the error of the trial each one passed."""
    if not groups:
        return
    verdict = compare(twin, graph, groups, images)
    if verdict.passed:
        errors.update({group.name: verdict.error for group in groups})
    elif len(groups) == 1:
        failures[groups[0].name] = verdict
    else:
        middle = len(groups) // 2
        for half in (groups[:middle], groups[middle:]):
            _bisect(twin, graph, half, images, errors, failures)


def compare(
    twin: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], images: tuple[Tensor, ...]
) -> Verdict:
    """Cut these groups at once, masked and pruned; the largest difference over the largest output."""
    keep = {group.name: _kept(group, number) for number, group in enumerate(groups)}
    try:
        pruned = _outputs(prune(twin, graph, keep), images)
    except Exception as error:  # noqa: BLE001  the pruned model may fail in any way, and that is the finding
        return Verdict(math.inf, f"{type(error).__name__}: {first_line(error)}", failing_line(error))
    return relative_error(_outputs(mask_sharing(twin, graph, keep), images), pruned)


def relative_error(reference: list[Tensor], other: list[Tensor]) -> Verdict:
    """Largest absolute difference over the largest absolute reference value."""
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (reference, other)]
    if shapes[0] != shapes[1]:
        return Verdict(math.inf, f"the output's shape changes from {shapes[0]} to {shapes[1]}")
    errors = [0.0]
    for left, right in zip(reference, other, strict=True):
        if left.numel():
            scale = float(left.abs().max())
            errors.append(float((left - right).abs().max()) / scale if scale > 0 else math.inf)
    return Verdict(max(errors, key=lambda e: math.inf if math.isnan(e) else e))


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float64 copy on the CPU in evaluation mode, with random parameters and statistics of sane scale."""
    doubles = {id(t): _double(t) for t in [*model.parameters(), *model.buffers()]}
    twin: nn.Module = copy.deepcopy(model, dict(doubles)).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            _fill(parameter, generator)
        for name, buffer in twin.named_buffers():
            if buffer.is_floating_point():
                factor = torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5
                buffer.copy_(factor if name.rpartition(".")[2] in _BATCH_NORMS else buffer * factor)
    return twin


def _double(tensor: Tensor) -> Tensor:
    """A tensor of the same kind for the twin; buffers keep their values, parameters are filled later."""
    if isinstance(tensor, nn.Parameter):
        dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
        return nn.Parameter(torch.empty(tensor.shape, dtype=dtype), requires_grad=False)
    return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else None, copy=True)


def _fill(parameter: Tensor, generator: torch.Generator) -> None:
    """Weights keep the variance of a ReLU network's activations; everything per channel is 0.5 to 1.5."""
    if parameter.dim() > 1 and parameter[0].numel() > 1:
        bound = math.sqrt(6.0 / parameter[0].numel())
        parameter.uniform_(-bound, bound, generator=generator)
    else:
        parameter.uniform_(0.5, 1.5, generator=generator)


def _trial_images(twin: nn.Module, inputs: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random images, of SIDE pixels where the model takes them, else of the given size.

    Raises:
        ModelError: the model does not run on the given size either.
    """
    small = tuple(_random_input(value, generator, SIDE) for value in inputs)
    if [s.shape for s in small] != [value.shape for value in inputs]:
        try:
            if all(bool(torch.isfinite(value).all()) for value in _outputs(twin, small)):
                return small
        except Exception:  # noqa: BLE001  a model may refuse other sizes in any way
            pass
    images = tuple(_random_input(value, generator, None) for value in inputs)
    _check_runs(twin, images)
    return images


def _random_input(value: Tensor, generator: torch.Generator, side: int | None) -> Tensor:
    if not value.is_floating_point():
        return value.cpu()
    shape = list(value.shape)
    if side is not None and value.dim() == 4 and min(shape[2:]) > side:
        shape[2:] = [side, side]
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _kept(group: ChannelGroup, number: int) -> list[int]:
    """A random 40 to 80 % of the positions, another share for every group."""
    generator = torch.Generator().manual_seed(_SEED + number)
    share = 0.4 + 0.4 * float(torch.rand((), generator=generator))
    count = min(max(1, round(share * group.size)), group.size - 1)
    return sorted(torch.randperm(group.size, generator=generator)[:count].tolist())


def _check_runs(twin: nn.Module, images: tuple[Tensor, ...]) -> None:
    try:
        outputs = _outputs(twin, images)
    except Exception as error:
        raise ModelError(
            "The model does not run in float64 on the CPU, so no group can be tried.",
            got=f"{type(error).__name__}: {error}",
            remedy="Remove fixed dtypes and devices from the model's forward, or pass trial=False.",
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in outputs):
        raise ModelError(
            "The model's output with random weights is not finite, so no group can be tried.",
            expected="finite outputs",
            got="NaN or infinite values",
            remedy="Pass trial=False to take the groups unchecked.",
        )


def _outputs(model: nn.Module, images: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad(), FixedStatistics():
        outputs = pytree.tree_leaves(model(*images))
    return [value.double() for value in outputs if isinstance(value, Tensor)]


def _failed(group: ChannelGroup, verdict: Verdict) -> FrozenChannels:
    channels = sum(len(entries) for entries in _first_producer(group))
    reason = verdict.why or f"relative error {verdict.error:.1e} between masked and pruned"
    return FrozenChannels(group.name, channels, f"the trial failed: {reason}", None, verdict.source)


def _first_producer(group: ChannelGroup) -> Iterator[tuple[int, ...]]:
    made = next((part for part in group.slices if part.role is Role.PRODUCER), group.slices[0])
    return iter(made.index)
