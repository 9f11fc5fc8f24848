"""The trial: in float64 and with random weights, masking a group must equal removing it.

Random weights, because a fresh model's zero biases, unit statistics and tiny layer scales would hide errors. All
groups are cut at once, each by another share; only if that fails are they tried in halves. A second round cuts a
random half of the groups, so that groups whose counts must agree without our knowing are found out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from streamsparse import events
from streamsparse.errors import ModelError
from streamsparse.network.surgery import mask, prune
from streamsparse.types import ChannelGraph, ChannelGroup, FrozenChannels, Role

TOLERANCE = 1e-9
STAGE = "trial"
_SEED = 0
_BATCH_NORMS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Verdict:
    """Relative error of a cut, and why it could not be made or compared where it is infinite."""

    error: float
    why: str | None = None

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
    images = tuple(_random_input(value, generator) for value in inputs)
    _check_runs(twin, images)
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
    masked = _outputs(mask(twin, graph, keep), images)
    try:
        pruned = _outputs(prune(twin, graph, keep), images)
    except Exception as error:  # noqa: BLE001  the pruned model may fail in any way, and that is the finding
        return Verdict(math.inf, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return relative_error(masked, pruned)


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
    twin = copy.deepcopy(model).to("cpu", torch.float64).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            _fill(parameter, generator)
        for name, buffer in twin.named_buffers():
            if buffer.is_floating_point():
                factor = torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + 0.5
                buffer.copy_(factor if name.rpartition(".")[2] in _BATCH_NORMS else buffer * factor)
    return twin


def _fill(parameter: Tensor, generator: torch.Generator) -> None:
    """Weights keep the variance of a ReLU network's activations; everything per channel is 0.5 to 1.5."""
    if parameter.dim() > 1 and parameter[0].numel() > 1:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(noise * math.sqrt(2.0 / parameter[0].numel()))
    elif parameter.is_floating_point():
        parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5)


def _random_input(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value.cpu()
    return torch.randn(value.shape, generator=generator, dtype=torch.float64)


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
    with torch.no_grad(), _FixedStatistics():
        outputs = pytree.tree_leaves(model(*images))
    return [value.double() for value in outputs if isinstance(value, Tensor)]


def _failed(group: ChannelGroup, verdict: Verdict) -> FrozenChannels:
    channels = sum(len(entries) for entries in _first_producer(group))
    reason = verdict.why or f"relative error {verdict.error:.1e} between masked and pruned"
    return FrozenChannels(group.name, channels, f"the trial failed: {reason}")


def _first_producer(group: ChannelGroup) -> Iterator[tuple[int, ...]]:
    made = next((part for part in group.slices if part.role is Role.PRODUCER), group.slices[0])
    return iter(made.index)


class _FixedStatistics(TorchFunctionMode):
    """LayerNorm, and GroupNorm of one group, without their statistics: scale and shift only.

    Over pruned channels their statistics change, which is reported; the rest must still be exact.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        if name == "layer_norm" or name == "rms_norm":
            return _affine(*args, **(kwargs or {}))
        if name == "group_norm" and (args[1] if len(args) > 1 else (kwargs or {}).get("num_groups")) == 1:
            return _affine_of_one_group(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _affine(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: object,
    **__: object,
) -> Tensor:
    if tuple(input.shape[-len(normalized_shape) :]) != tuple(normalized_shape):
        raise ValueError(f"expected the last dimensions {tuple(normalized_shape)}, got {tuple(input.shape)}")
    scaled = input if weight is None else input * weight
    return scaled if bias is None or not isinstance(bias, Tensor) else scaled + bias


def _affine_of_one_group(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: object,
    **__: object,
) -> Tensor:
    ones = (1, -1, *[1] * (input.dim() - 2))
    scaled = input if weight is None else input * weight.view(ones)
    return scaled if bias is None else scaled + bias.view(ones)
