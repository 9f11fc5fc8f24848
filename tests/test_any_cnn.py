"""The whole route on networks of every kind of wiring: what is written is the network that was solved for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import streamsparse as ss
from streamsparse.capture import CaptureSettings
from streamsparse.errors import BudgetError, UsageError
from streamsparse.events import Event, Notice
from streamsparse.intake.captured import read_captured
from streamsparse.network import find_groups, mask
from streamsparse.network import prune as cut
from streamsparse.network.costs import costs
from streamsparse.network.observation import whole_groups
from streamsparse.network.refitting import with_weights
from streamsparse.network.resize import stored_tensors
from streamsparse.run import Result, prune
from streamsparse.solve import SolveSettings
from streamsparse.store import Run
from streamsparse.store.solution import read_weights
from streamsparse.types import Role

QUICK = SolveSettings("elimination")
SETTINGS = CaptureSettings("float32", batch_images=20)


def conv(inputs: int, outputs: int, kernel: int = 3, *, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)


class Wired(nn.Module):
    """stem (3 -> 8), the layers that `wire` names, a linear head on the pooled channels."""

    def __init__(self, features: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(features, 5)
        for name, layer in layers.items():
            self.add_module(name, layer)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def wire(self, features: Tensor) -> Tensor:
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.wire(self.stem(images)).mean((2, 3)))
        return logits


class Residual(Wired):
    """Two convolutions without a bias around a normalisation, and an identity shortcut."""

    def __init__(self) -> None:
        super().__init__(first=conv(8, 10, bias=False), norm=nn.BatchNorm2d(10), second=conv(10, 8, bias=False))

    def wire(self, features: Tensor) -> Tensor:
        return F.relu(features + self.second(F.relu_(self.norm(self.first(features)))))


class Separable(Wired):
    """An inverted bottleneck: expansion, depthwise filters, squeeze and excitation, projection."""

    def __init__(self) -> None:
        super().__init__(
            expand=conv(8, 12, 1, bias=False), depthwise=conv(12, 12, groups=12, bias=False),
            norm=nn.BatchNorm2d(12), down=conv(12, 4, 1), up=conv(4, 12, 1), project=conv(12, 8, 1, bias=False),
        )  # fmt: skip

    def wire(self, features: Tensor) -> Tensor:
        wide = F.hardswish(self.norm(self.depthwise(F.relu6(self.expand(features)))))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(wide, 1)))))
        narrow: Tensor = self.project(wide * gate)
        return features + narrow


class Dense(Wired):
    """Every layer sees all that came before, concatenated."""

    def __init__(self) -> None:
        super().__init__(16, first=conv(8, 4), second=conv(12, 4))

    def wire(self, features: Tensor) -> Tensor:
        features = torch.cat([features, F.relu(self.first(features))], 1)
        return torch.cat([features, F.relu(self.second(features))], 1)


class Grouped(Wired):
    """A grouped convolution between two of one group (ResNeXt), with GroupNorm and PReLU."""

    def __init__(self) -> None:
        super().__init__(
            12, grouped=conv(8, 16, groups=4), norm=nn.GroupNorm(4, 16), slope=nn.PReLU(16), last=conv(16, 12)
        )

    def wire(self, features: Tensor) -> Tensor:
        return F.relu(self.last(self.slope(self.norm(self.grouped(features)))))


class Shared(Wired):
    """One module that is called twice."""

    def __init__(self) -> None:
        super().__init__(shared=conv(8, 8))

    def wire(self, features: Tensor) -> Tensor:
        return F.relu(self.shared(F.relu(self.shared(features))))


class Unseen(Wired):
    """Consumers that no hook sees: a transposed convolution, and one weight for two modules; `free` is ordinary."""

    def __init__(self) -> None:
        super().__init__(
            6,
            up=nn.ConvTranspose2d(8, 8, 2, 2),
            first=conv(8, 8),
            second=conv(8, 8),
            free=conv(8, 7),
            last=conv(7, 6),
        )
        self.second.weight = self.first.weight

    def wire(self, features: Tensor) -> Tensor:
        features = self.second(F.relu(self.first(F.relu(self.up(features)))))
        return F.relu(self.last(F.relu(self.free(features))))


HAND_WRITTEN: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind for kind in (Residual, Separable, Dense, Grouped, Shared)
}
TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.25),
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(num_classes=5, width_mult=0.25),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2, 2, 2), 16, num_classes=5),
}


def build(constructor: Callable[[], nn.Module], side: int = 16) -> nn.Module:
    """Random weights, normalisations that do something, with the statistics of images as after training."""
    torch.manual_seed(0)
    model = constructor().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.2)
            norm.momentum = 1.0
        model(photographs(30, side, seed=5))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def photographs(count: int, side: int, seed: int = 1) -> Tensor:
    """(count, 3, side, side): noise of several scales, so that neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    scales = [torch.randn(count, 3, size, size, generator=generator) for size in (1, 4, side)]
    return sum((F.interpolate(noise, size=(side, side)) for noise in scales), torch.zeros(()))


def pruned(model: nn.Module, run: Path | None, side: int = 16, images: int = 60, **options: object) -> Result:
    chosen: dict[str, object] = {"stages": 1, "solve_settings": QUICK, **options}
    return prune(
        model, photographs(images, side), run=run, capture_settings=SETTINGS, executor="serial",
        **chosen,  # type: ignore[arg-type]
    )  # fmt: skip


def check(constructor: Callable[[], nn.Module], folder: Path, *, side: int, images: int, budget: str) -> None:
    """Prune by a budget: the result is the masked twin of the same weights, as small as announced, and alive."""
    model = build(constructor, side)
    result = pruned(model, folder / "run", side, images, budget=budget)
    run, plan = Run.at(folder / "run"), result.solution.plan
    graph, probe = read_captured(run).graph, photographs(4, side, seed=9)
    assert costs(result.model, probe[:1]) == plan.costs
    assert plan.costs.parameters < plan.original_costs.parameters
    twin = with_weights(copy.deepcopy(model).double(), read_weights(run, result.solution))
    small, masked = cut(twin, graph, plan.keep), mask(twin, graph, plan.keep)
    with torch.no_grad():
        expected, shipped = masked(probe.double()), result.model(probe)
        scale = float(expected.abs().max())
        torch.testing.assert_close(small(probe.double()), expected, rtol=1e-9, atol=1e-9 * scale)
        torch.testing.assert_close(shipped.double(), expected, rtol=1e-3, atol=1e-3 * scale)
        loaded = ss.load(result.save(folder / "saved"), constructor()).eval()
        assert torch.equal(loaded(probe), shipped)
    before = copy.deepcopy(result.model.state_dict())
    step(result.model.train(), probe)
    changed = [key for key, value in result.model.named_parameters() if not torch.equal(value, before[key])]
    assert len(changed) > len(before) / 4


def step(model: nn.Module, images: Tensor) -> None:
    """One step of training; every gradient is finite."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    F.cross_entropy(model(images), torch.arange(len(images)) % 5).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    optimizer.step()


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_hand_written_nets(name: str, tmp_path: Path) -> None:
    check(HAND_WRITTEN[name], tmp_path, side=12, images=60, budget="params=0.6")


@pytest.mark.parametrize("name", ["densenet"])
def test_a_model_of_torchvision(name: str, tmp_path: Path) -> None:
    check(TORCHVISION[name], tmp_path, side=32, images=30, budget="macs=0.7")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3"])
def test_more_models_of_torchvision(name: str, tmp_path: Path) -> None:
    check(TORCHVISION[name], tmp_path, side=64, images=40, budget="macs=0.7")


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_nothing_removed_is_nothing_changed(name: str) -> None:
    """All channels kept: no layer is re-estimated by one capture, so the outputs are the same bit for bit."""
    model = build(HAND_WRITTEN[name])
    graph = find_groups(model, photographs(1, 12))
    result = pruned(model, None, 12, channels={group.name: group.size for group in graph.groups})
    with torch.no_grad():
        assert torch.equal(result.model(photographs(5, 12, seed=3)), model(photographs(5, 12, seed=3)))


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_refitting_what_is_whole_gives_the_same_outputs(name: str) -> None:
    """The sequential refit re-estimates every layer; with all channels kept, each fit is its own layer again."""
    model = build(HAND_WRITTEN[name])
    graph = find_groups(model, photographs(1, 12))
    result = pruned(model, None, 12, stages=2, channels={group.name: group.size for group in graph.groups})
    with torch.no_grad():
        given, wanted = (m(photographs(20, 12, seed=3)) for m in (result.model, model))
    assert float((given - wanted).norm() / wanted.norm()) <= 1e-3


@pytest.mark.parametrize(("name", "group"), [("Residual", "first"), ("Dense", "first"), ("Separable", "expand")])
def test_a_duplicate_channel_costs_nothing(name: str, group: str) -> None:
    """Channel 1 is made a copy of channel 0: one of the two goes, and images never seen keep their outputs."""
    model = build(HAND_WRITTEN[name])
    chosen = find_groups(model, photographs(1, 12)).group(group)
    tensors = stored_tensors(model)
    with torch.no_grad():
        for part in chosen.slices:
            if part.role is not Role.CONSUMER:
                tensor = tensors[part.tensor].movedim(part.dim, 0)
                tensor[list(part.index[1])] = tensor[list(part.index[0])].clone()
    result = pruned(model, None, 12, images=100, channels={group: chosen.size - 1})
    assert len({0, 1} & set(result.solution.plan.keep[group])) == 1
    with torch.no_grad():
        given, wanted = (m(photographs(20, 12, seed=3)) for m in (result.model, model))
    assert float((given - wanted).norm() / wanted.norm()) <= 1e-4
    assert all(error.held_out_error <= 1e-6 for error in result.solution.layers)


def test_groups_whose_consumers_nobody_sees_stay_whole() -> None:
    events: list[Event] = []
    model = build(Unseen)
    result = pruned(model, None, 12, budget="max-error=0.5", on_event=events.append)
    notices = [event.message for event in events if isinstance(event, Notice)]
    for name, tensor in (("stem.0", "up.weight"), ("up", "second.weight")):
        assert any(f"'{name}' stays whole" in text and tensor in text for text in notices), notices
    assert set(result.solution.plan.keep) == {"free", "last"}
    assert min(result.solution.plan.counts["free"], result.solution.plan.counts["last"]) < 6
    probe = photographs(3, 12, seed=2)
    assert result.model(probe).shape == (3, 5)
    assert torch.equal(result.model.get_parameter("up.weight"), model.get_parameter("up.weight"))


def test_a_count_for_a_group_that_stays_whole_is_refused(tmp_path: Path) -> None:
    model = build(Unseen)
    with pytest.raises(UsageError, match=r"'up' stays whole") as refused:
        pruned(model, tmp_path / "run", 12, channels={"up": 3})
    assert "weight" in str(refused.value.got)
    assert not (tmp_path / "run").exists()
    assert pruned(model, None, 12, channels={"up": 8, "free": 5}).solution.plan.counts["free"] == 5
    with pytest.raises(BudgetError, match="No architecture"):
        pruned(model, None, 12, budget="params=0.01")


def test_why_a_group_stays_whole_follows_from_the_graph_alone() -> None:
    graph = find_groups(build(Unseen), photographs(1, 12))
    whole = whole_groups(graph)
    assert whole.keys() == {group.name for group in graph.groups} - {"free", "last"}
    assert whole_groups(graph, ["free"]).keys() == {group.name for group in graph.groups}
