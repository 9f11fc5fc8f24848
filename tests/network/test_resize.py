"""Resizing a fresh original to the tensors of a pruned model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.errors import WeightsError
from streamsparse.network.resize import channel_groups, fit_to_tensors, stored_tensors


def wide_net(channels: int = 8, hidden: int = 12, features: int = 16, groups: int = 1) -> nn.Sequential:
    """A small net with every layer whose widths are attributes; `channels` and `hidden` vary."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.PReLU(channels),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.GroupNorm(groups, channels),
        nn.Conv2d(channels, hidden, 1),
        nn.InstanceNorm2d(hidden, affine=True, track_running_stats=True),
        nn.AdaptiveAvgPool2d(2),
        nn.ConvTranspose2d(hidden, hidden, 2),
        nn.Flatten(),
        nn.Linear(hidden * 9, features),
        nn.LayerNorm(features),
        nn.Linear(features, 5),
    )


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 16), st.integers(0, 2**16))
@settings(deadline=None, max_examples=25)
def test_resized_model_equals_the_narrow_one(channels: int, hidden: int, features: int, seed: int) -> None:
    torch.manual_seed(seed)
    narrow = randomised(wide_net(channels, hidden, features))
    model = wide_net().eval()
    fitted = fit_to_tensors(model, tensors_of(narrow), channel_groups(narrow))
    assert fitted is model
    images = torch.rand(2, 3, 6, 6)
    assert torch.equal(fitted(images), narrow(images))
    assert repr(fitted) == repr(narrow)  # repr shows in_channels, num_features, normalized_shape, groups, ...


def test_values_are_copied_and_requires_grad_kept() -> None:
    narrow = wide_net(4, 6, 8)
    model = wide_net()
    model[0].weight.requires_grad_(False)
    tensors = tensors_of(narrow)
    fit_to_tensors(model, tensors)
    assert not model[0].weight.requires_grad
    assert model[5].weight.requires_grad
    tensors["0.weight"].zero_()
    assert model[0].weight.abs().sum() > 0


class Tied(nn.Module):
    """Two convolutions share one weight; a linear layer is a shared module under two names."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(channels, 3)
        self.again = self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images)).mean((2, 3))) + self.again.weight.sum()


def test_tied_parameters_stay_tied() -> None:
    narrow, model = Tied(4).eval(), Tied().eval()
    fit_to_tensors(model, tensors_of(narrow))
    assert model.first.weight is model.second.weight
    assert model.again is model.head
    images = torch.rand(1, 4, 5, 5)
    assert torch.equal(model(images), narrow(images))


def test_tied_names_with_different_tensors_are_refused() -> None:
    tensors = tensors_of(Tied(4))
    tensors["second.weight"] = tensors["second.weight"] + 1
    with pytest.raises(WeightsError, match="share one parameter"):
        fit_to_tensors(Tied(), tensors)


@pytest.mark.parametrize(
    ("original", "pruned", "expected"),
    [
        (nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(4, 8, 3, groups=4), 4),  # inputs narrowed
        (nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(6, 9, 3, groups=3), 3),  # whole groups, 9 is no multiple of 4
        (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(3, 3, 3, groups=3), 3),  # depthwise
        (nn.Conv1d(8, 8, 3, groups=8), nn.Conv1d(1, 1, 3, groups=1), 1),
        (nn.ConvTranspose2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 3, groups=4), 4),
        (nn.ConvTranspose2d(8, 8, 3, groups=8), nn.ConvTranspose2d(3, 3, 3, groups=3), 3),
    ],
)
def test_groups_that_follow_from_the_shapes(original: nn.Module, pruned: nn.Module, expected: int) -> None:
    fitted = fit_to_tensors(original, tensors_of(pruned))
    assert fitted.groups == expected
    assert (fitted.in_channels, fitted.out_channels) == (pruned.in_channels, pruned.out_channels)


def test_ambiguous_groups_need_the_mapping() -> None:
    pruned = nn.Conv2d(4, 8, 3, groups=2)  # 4 groups of 2 × 1 or 2 groups of 4 × 2
    with pytest.raises(WeightsError, match="number of groups"):
        fit_to_tensors(nn.Conv2d(8, 16, 3, groups=4), tensors_of(pruned))
    fitted = fit_to_tensors(nn.Conv2d(8, 16, 3, groups=4), tensors_of(pruned), channel_groups(pruned))
    assert (fitted.groups, fitted.in_channels) == (2, 4)


def test_group_normalisation_is_never_guessed() -> None:
    pruned = nn.GroupNorm(8, 16)
    with pytest.raises(WeightsError, match="number of groups"):
        fit_to_tensors(nn.GroupNorm(8, 32), tensors_of(pruned))
    fitted = fit_to_tensors(nn.GroupNorm(8, 32), tensors_of(pruned), {"": 8})
    assert (fitted.num_groups, fitted.num_channels) == (8, 16)


def test_a_layer_that_lost_all_groups_but_one_is_not_listed() -> None:
    pruned = nn.Conv2d(2, 4, 3)  # one of four groups is left
    assert channel_groups(pruned) == {}
    fitted = fit_to_tensors(nn.Conv2d(8, 16, 3, groups=4), tensors_of(pruned), {})
    assert (fitted.groups, fitted.in_channels) == (1, 2)


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors["5.weight"]


def _add(tensors: dict[str, Tensor]) -> None:
    tensors["module.5.weight"] = tensors["5.weight"]


def _rank(tensors: dict[str, Tensor]) -> None:
    tensors["5.weight"] = tensors["5.weight"].flatten(1)


def _larger(tensors: dict[str, Tensor]) -> None:
    tensors["0.weight"] = torch.zeros(9, 3, 3, 3)


def _empty(tensors: dict[str, Tensor]) -> None:
    tensors["0.weight"] = torch.zeros(0, 3, 3, 3)


def _dtype(tensors: dict[str, Tensor]) -> None:
    tensors["5.bias"] = tensors["5.bias"].half()


def _contradiction(tensors: dict[str, Tensor]) -> None:
    tensors["1.running_var"] = torch.ones(3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_drop, "missing: 5.weight"),
        (_add, "unexpected: module.5.weight"),
        (_rank, "does not fit"),
        (_larger, "does not fit"),
        (_empty, "does not fit"),
        (_dtype, "another dtype"),
        (_contradiction, "contradict"),
    ],
)
def test_bad_tensors_leave_the_model_untouched(spoil: Callable[[dict[str, Tensor]], None], words: str) -> None:
    model = wide_net()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in stored_tensors(model).items()}
    shown = repr(model)
    tensors = tensors_of(wide_net(4, 6, 8))
    spoil(tensors)
    with pytest.raises(WeightsError) as error:
        fit_to_tensors(model, tensors)
    assert words in str(error.value)
    assert "to do:" in str(error.value)
    assert repr(model) == shown
    for name, tensor in stored_tensors(model).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])


@pytest.mark.parametrize("groups", [{"nowhere": 2}, {"3": 9}, {"3": 0}, {"0": 3}, {"3": 3}])
def test_declared_groups_must_fit(groups: dict[str, int]) -> None:
    with pytest.raises(WeightsError):
        fit_to_tensors(wide_net(), tensors_of(wide_net(4, 6, 8)), groups)


def test_layers_that_cannot_be_resized_are_refused() -> None:
    with pytest.raises(WeightsError, match="MultiheadAttention cannot be resized"):
        fit_to_tensors(nn.MultiheadAttention(8, 2), tensors_of(nn.MultiheadAttention(4, 2)))
    with pytest.raises(WeightsError, match="lost rows"):
        fit_to_tensors(nn.Embedding(8, 4), tensors_of(nn.Embedding(6, 4)))


def test_computed_weights_are_refused_only_when_they_change() -> None:
    def normalised(channels: int) -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Conv2d(3, channels, 3))

    fit_to_tensors(normalised(4), tensors_of(normalised(4)))
    with pytest.raises(WeightsError, match="computed from other tensors"):
        fit_to_tensors(normalised(8), tensors_of(normalised(4)))


def test_extra_state_is_refused() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Tensor:
            return torch.zeros(1)

        def set_extra_state(self, state: Tensor) -> None:
            pass

    with pytest.raises(WeightsError, match="persistent buffers"):
        stored_tensors(Extra(2, 2))


def test_a_model_on_the_meta_device_is_materialised() -> None:
    narrow = randomised(wide_net(4, 6, 8))
    with torch.device("meta"):
        model = wide_net().eval()
    fit_to_tensors(model, tensors_of(narrow), channel_groups(narrow))
    images = torch.rand(2, 3, 6, 6)
    assert torch.equal(model(images), narrow(images))
