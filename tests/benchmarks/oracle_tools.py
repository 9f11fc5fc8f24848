"""How Torch-Pruning and torch-kirigami are driven, and how what they cut is judged; see `oracles`."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from streamsparse.network import find_groups, mask
from streamsparse.network.fixed_statistics import FixedStatistics
from streamsparse.network.trial import randomised, relative_error
from streamsparse.types import ChannelGraph, ChannelGroup, Role, TensorSlice

Cut = dict[tuple[str, int], frozenset[int]]
"""(weight of a convolution or linear layer, dimension) -> entries that go"""

GROUPS_PER_MODEL = 6
FROZEN_PER_MODEL = 4
SIDES = {"inception_v3": 96, "vit_b_16": 224}
_MIXING = (nn.Linear, nn.modules.conv._ConvNd)
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


@dataclass(frozen=True)
class Finding:
    """What a tool makes of one channel of one group."""

    group: str
    verdict: str
    detail: str = ""


class RefusalError(Exception):
    """The tool says that it does not cut these channels."""


def nets() -> list[str]:
    """Class names of the adversarial nets that can be followed, in order of the file."""
    classes = [kind for _, kind in inspect.getmembers(_adversarial(), inspect.isclass)]
    own = [kind for kind in classes if kind.__module__ == "adversarial_nets"]
    found = [kind for kind in own if issubclass(kind, nn.Module) and not issubclass(kind, nn.Conv2d)]
    found.sort(key=lambda kind: inspect.getsourcelines(kind)[1])
    return [kind.__name__ for kind in found if kind.__name__ != "DataDependent"]


def _adversarial() -> object:
    folder = str(Path(__file__).parents[1] / "network")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import adversarial_nets  # type: ignore[import-not-found]

    return adversarial_nets


def build(subject: str) -> tuple[nn.Module, Tensor]:
    """A model of torchvision or an adversarial net, in evaluation mode, and one image."""
    torch.manual_seed(0)
    if subject in nets():
        return getattr(_adversarial(), subject)().eval(), torch.randn(1, 3, 8, 8)
    import torchvision

    slow = {"init_weights": False} if subject in ("googlenet", "inception_v3") else {}
    side = SIDES.get(subject, 64)
    return getattr(torchvision.models, subject)(weights=None, **slow).eval(), torch.randn(1, 3, side, side)


def findings(tool: str, subject: str) -> Iterator[Finding | None]:
    """One tool on some of our groups and on what we freeze; None first, when our own part is done."""
    warnings.simplefilter("ignore")  # of the tools and the models
    model, image = build(subject)
    graph = find_groups(model, image)
    twin = randomised(model, torch.Generator().manual_seed(7))
    for copied, original in zip(twin.parameters(), model.parameters(), strict=True):
        copied.requires_grad_(original.requires_grad)  # Torch-Pruning follows gradients
    yield None
    judge = _Judge(tool, twin, image.double(), graph)
    step = max(1, -(-len(graph.groups) // GROUPS_PER_MODEL))
    for group in graph.groups[::step]:
        made = [s for s in group.slices if s.role is Role.PRODUCER and _is_layers(twin, s.tensor)]
        if made:
            yield judge.group(group, made[0])
    frozen = dict.fromkeys(f.layer for f in graph.frozen if f.operation != "output")
    for name in [name for name in frozen if _is_layers(twin, f"{name}.weight")][:FROZEN_PER_MODEL]:
        yield judge.frozen(name)


def _is_layers(model: nn.Module, tensor: str) -> bool:
    """Whether it is the weight of a convolution or linear layer."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return tensor.endswith(".weight") and isinstance(modules.get(tensor.removesuffix(".weight")), _MIXING)


class _Judge:
    """One tool on one model; the tool follows the model once, and again after it has changed it."""

    def __init__(self, tool: str, twin: nn.Module, image: Tensor, graph: ChannelGraph) -> None:
        self._start = TOOLS[tool]
        self._twin, self._image, self._graph = twin, image, graph
        self._session: Session | None = None

    def group(self, group: ChannelGroup, made: TensorSlice) -> Finding:
        """The tool's cut of one position of our group."""
        position = group.size // 2
        mine = _ours(self._twin, group, position)
        layer = made.tensor.removesuffix(".weight")

        def reference(theirs: Cut) -> nn.Module:
            whole = _covered(made, theirs.get((made.tensor, made.dim), frozenset()))
            keep = [p for p in range(group.size) if p not in whole]
            return (
                mask(self._twin, self._graph, {group.name: keep}) if whole and keep else _masked(self._twin, theirs)
            )

        return self._judged(group.name, layer, list(made.index[position]), mine, reference)

    def frozen(self, layer: str) -> Finding:
        """The tool's cut of channels that we freeze; the twin is masked where the tool itself cuts inputs."""
        return self._judged(f"{layer} (frozen)", layer, [0], None, lambda theirs: _masked(self._twin, theirs))

    def _judged(
        self, name: str, layer: str, filters: list[int], mine: Cut | None, reference: Callable[[Cut], nn.Module]
    ) -> Finding:
        try:
            self._session = self._session or self._start(copy.deepcopy(self._twin), self._image)
            theirs, apply = self._session(layer, filters)
            if theirs == mine:
                return Finding(name, "same")
            self._session = None  # it changes its model
            found = self._outputs(apply())
        except RefusalError as error:
            return Finding(name, "refuses", str(error))
        except Exception as error:  # noqa: BLE001  a tool may fail in any way, and that is the finding
            return Finding(name, "crashes", _first_line(error))
        verdict = relative_error(self._outputs(reference(theirs)), found)
        if not verdict.passed:
            return Finding(name, "silently wrong", verdict.why or f"relative error {verdict.error:.1e}")
        if mine is None:
            return Finding(name, "resolves", f"{_counted(theirs)} entries")
        return Finding(name, _relation(mine, theirs), f"ours {_counted(mine)}, theirs {_counted(theirs)} entries")

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), FixedStatistics():
            return pytree.tree_leaves(model.eval()(self._image))


def _ours(model: nn.Module, group: ChannelGroup, position: int) -> Cut:
    cut: dict[tuple[str, int], set[int]] = defaultdict(set)
    for part in group.slices:
        if _is_layers(model, part.tensor):
            cut[_first_name(model, part.tensor), part.dim].update(part.index[position])
    return _frozen(cut)


def _first_name(model: nn.Module, key: str) -> str:
    """One name for a parameter that several modules share."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return next(name for name, parameter in parameters.items() if parameter is parameters[key])


def _frozen(cut: dict[tuple[str, int], set[int]]) -> Cut:
    return {key: frozenset(entries) for key, entries in cut.items()}


def _covered(made: TensorSlice, entries: frozenset[int]) -> list[int]:
    """Positions that make up exactly these filters; none if they cut through a position."""
    whole = [p for p, own in enumerate(made.index) if set(own) <= entries]
    return whole if {e for p in whole for e in made.index[p]} == entries else []


def _masked(twin: nn.Module, cut: Cut) -> nn.Module:
    """A copy whose layers ignore the inputs that the cut takes from them."""
    masked = copy.deepcopy(twin)
    with torch.no_grad():
        for (tensor, dim), entries in cut.items():
            module = masked.get_submodule(tensor.removesuffix(".weight"))
            inputs = 0 if isinstance(module, _TRANSPOSED) else 1
            if dim == inputs and getattr(module, "groups", 1) == 1:
                masked.get_parameter(tensor).index_fill_(dim, torch.tensor(sorted(entries)), 0.0)
    return masked


def _relation(mine: Cut, theirs: Cut) -> str:
    if all(entries <= theirs.get(key, frozenset()) for key, entries in mine.items()):
        return "coarser"
    if all(entries <= mine.get(key, frozenset()) for key, entries in theirs.items()):
        return "finer"
    return "equivalent"


def _counted(cut: Cut) -> int:
    return sum(len(entries) for entries in cut.values())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:160]


Session = Callable[[str, list[int]], tuple[Cut, Callable[[], nn.Module]]]
"""(layer, filters) -> what the tool removes with them, and how to do it"""


def torch_pruning_session(model: nn.Module, image: Tensor) -> Session:
    """Torch-Pruning on a model that it may change."""
    import torch_pruning  # type: ignore[import-untyped]

    graph = torch_pruning.DependencyGraph().build_dependency(model, image)
    names = {id(found): name for name, found in model.named_modules()}

    def ask(layer: str, filters: list[int]) -> tuple[Cut, Callable[[], nn.Module]]:
        module = model.get_submodule(layer)
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        group = graph.get_pruning_group(module, getattr(torch_pruning, f"prune_{kind}_out_channels"), idxs=filters)
        cut: dict[tuple[str, int], set[int]] = defaultdict(set)
        for item in group.items:
            target, handler = item.dep.target.module, item.dep.handler.__name__
            if isinstance(target, _MIXING):
                inputs = "in_channels" in handler and getattr(target, "groups", 1) == 1
                dim = int(inputs != isinstance(target, _TRANSPOSED))
                cut[_first_name(model, f"{names[id(target)]}.weight"), dim].update(int(i) for i in item.idxs)

        def apply() -> nn.Module:
            group.prune()
            return model

        return _frozen(cut), apply

    return ask


def kirigami_session(model: nn.Module, image: Tensor) -> Session:
    """torch-kirigami on a model that it may change.

    Raises:
        RefusalError: here or later, it does not follow the model, offers no such candidate, or does not know all
            that it affects.
    """
    import torch_kirigami
    from torch_kirigami.errors import KirigamiError
    from torch_kirigami.pruning import Pruner

    def ask(layer: str, filters: list[int]) -> tuple[Cut, Callable[[], nn.Module]]:
        dim = 1 if isinstance(model.get_submodule(layer), _TRANSPOSED) else 0
        wanted = {f"{layer}.weight:{dim}:{entry:012d}" for entry in filters}
        try:
            candidates = [c for c in pruner.discover_candidates(targets=(layer,)).candidates if c.key in wanted]
            if not candidates:
                raise RefusalError("offers no such candidate")
            impact = pruner.impact(candidates)
            if not impact.complete:
                raise RefusalError("does not know all that it affects")
            plan = pruner.plan_remove([selection for c in candidates for selection in c.remove])
        except KirigamiError as error:
            raise RefusalError(_first_line(error)) from error
        return _kirigami_entries(model, impact), lambda: pruner.apply(plan)[0]

    try:
        pruner = Pruner(model, graph=torch_kirigami.DependencyGraph.build(model, args=(image,)))
    except KirigamiError as error:
        raise RefusalError(_first_line(error)) from error
    return ask


def _kirigami_entries(model: nn.Module, impact: Any) -> Cut:
    cut: dict[tuple[str, int], set[int]] = defaultdict(set)
    for selection in impact.selections.values():
        paths = [path for path in selection.tensor.paths if _is_layers(model, path)]
        for region in selection.regions if selection.tensor.kind == "parameter" and paths else ():
            for along, entries in enumerate(region.axes):
                if len(entries) < selection.tensor.shape[along]:
                    cut[_first_name(model, paths[0]), along].update(int(entry) for entry in entries)
    return _frozen(cut)


TOOLS: dict[str, Callable[[nn.Module, Tensor], Session]] = {
    "Torch-Pruning": torch_pruning_session,
    "torch-kirigami": kirigami_session,
}
