"""Responses that follow from the inputs: found where that is so, refused where it is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from streamsparse.capture.layer_sums import LayerSums, begin_layer, resume_layer
from streamsparse.capture.own_outputs import OwnMap, add_totals, own_maps
from streamsparse.errors import ModelError, NonFiniteError
from streamsparse.kernels.folds import empty_folds
from streamsparse.kernels.shift_sums import empty_shifts
from streamsparse.kernels.statistics import FIELDS
from streamsparse.store.growing import GrowingSums
from streamsparse.store.stream import CapturedLayer
from streamsparse.types import LayerGeometry
from tests.small import geometry_of, layers_with_inputs, reference_folds


@given(layers_with_inputs())
def test_derived_sums_are_those_of_patches_and_outputs(drawn: tuple[nn.Module, Tensor]) -> None:
    layer, images = drawn
    geometry = geometry_of(layer, images)
    model = nn.ModuleDict({"layer": layer})
    with torch.no_grad():
        outputs = layer(images)
        own = own_maps(_called(model), {"layer": geometry}, images)["layer"]
        sums = _derived(geometry, own)
        sums.add(images[:1], outputs[:1], 0, torch.float64)
        sums.add(images[1:], outputs[1:], 1, torch.float64)
        found = sums.sums.finished()
    for part, reference in zip(found, reference_folds(geometry, images, outputs, 2), strict=True):
        for name in FIELDS:
            ours, exact = getattr(part, name), getattr(reference, name)
            assert (ours - exact).norm() <= 1e-12 * max(exact.norm(), 1), name


def _derived(geometry: LayerGeometry, own: OwnMap) -> LayerSums:
    return LayerSums(GrowingSums(geometry, empty_folds(geometry, 2), own.weight, own.bias))


class _Called(nn.Module):
    """Calls its layer, as a network does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layer(images)
        return found


def _called(model: nn.ModuleDict) -> nn.Module:
    return _Called(model["layer"])


def _layer() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3, padding=1).eval()


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))


def _found(layer: nn.Module) -> bool:
    geometry = geometry_of(_layer(), IMAGES)
    with torch.no_grad():
        return bool(own_maps(_Called(layer), {"layer": geometry}, IMAGES))


class Scaled(nn.Conv2d):
    """Another forward than its class says, in one channel and by little."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        output[:, 2] *= 1 + 1e-3
        return output


class Reflecting(nn.Conv2d):
    """Pads by itself in another way than its attributes, and the channel graph's geometry, say."""

    def forward(self, input: Tensor) -> Tensor:
        padded = nn.functional.pad(input, (1, 1, 1, 1), mode="reflect")
        return nn.functional.conv2d(padded, self.weight, self.bias)


def test_an_ordinary_layer_is_found() -> None:
    assert _found(_layer())


@pytest.mark.parametrize("kind", [Scaled, Reflecting])
def test_another_forward_is_refuted(kind: type[nn.Conv2d]) -> None:
    layer = kind(3, 4, 3, padding=1)
    layer.load_state_dict(_layer().state_dict())
    assert not _found(layer.eval())


def test_a_hook_that_changes_the_output_is_refuted() -> None:
    layer = _layer()
    layer.register_forward_hook(lambda _module, _inputs, output: output.round(decimals=3))
    assert not _found(layer)


def test_a_hook_that_changes_the_input_is_seen_through() -> None:
    """The forward hook is given the input that the layer really sees."""
    layer = _layer()
    layer.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * 2,))
    assert _found(layer)


def test_autocast_is_refuted() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not _found(_layer())


def test_a_computed_weight_is_found() -> None:
    assert _found(nn.utils.parametrizations.weight_norm(_layer()))


def test_few_patches_are_measured_and_many_derived() -> None:
    layer = _layer()
    geometry = geometry_of(layer, IMAGES)  # 36 patches of 27 columns each
    with torch.no_grad():
        own = own_maps(_Called(layer), {"layer": geometry}, IMAGES)["layer"]
    captured = CapturedLayer(geometry)
    assert begin_layer(captured, 2, 5, own, "cpu").sums.weight is None
    assert begin_layer(captured, 200, 5, own, "cpu").sums.weight is not None
    assert begin_layer(captured, 200, 5, None, "cpu").sums.weight is None


def test_totals_notice_what_the_probe_did_not_see() -> None:
    layer = _layer()
    geometry = geometry_of(layer, IMAGES)
    with torch.no_grad():
        own = own_maps(_Called(layer), {"layer": geometry}, IMAGES)["layer"]
        outputs = layer(IMAGES)
    sums = _derived(geometry, own)
    sums.add(IMAGES, outputs, 0, torch.float64)
    sums.sums.finished()
    sums.add(IMAGES, outputs * 1.01, 2, torch.float64)
    with pytest.raises(ModelError, match="not always"):
        sums.sums.finished()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_totals_refuse_what_is_not_finite(value: float) -> None:
    geometry = geometry_of(_layer(), IMAGES)
    outputs = torch.zeros(2, *geometry.output_shape)
    outputs[1, 3, 2, 2] = value
    with pytest.raises(NonFiniteError, match="output of layer 'layer'"):
        add_totals(empty_shifts(geometry), outputs, geometry)


def test_derived_sums_go_on_as_measured_ones_where_the_layer_changed() -> None:
    """A capture that is resumed with a model whose outputs can no longer be derived."""
    layer = _layer().double()
    images = IMAGES.double()
    geometry = geometry_of(layer, images)
    with torch.no_grad():
        own, outputs = own_maps(_Called(layer), {"layer": geometry}, images)["layer"], layer(images)
    begun = _derived(geometry, own)
    begun.add(images[:1], outputs[:1], 0, torch.float64)
    resumed = resume_layer(begun.sums, None, "cpu")
    resumed.add(images[1:], outputs[1:] * 2, 1, torch.float64)
    both = torch.cat([outputs[:1], outputs[1:] * 2])
    for part, reference in zip(resumed.sums.finished(), reference_folds(geometry, images, both, 2), strict=True):
        for name in FIELDS:
            ours, exact = getattr(part, name), getattr(reference, name)
            assert (ours - exact).norm() <= 1e-12 * exact.norm(), name
    assert resume_layer(begun.sums, own, "cpu").sums.weight is not None
