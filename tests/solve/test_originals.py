"""The original's weights, where they are to be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from streamsparse.solve.originals import Originals
from tests.small import SmallNet, build, captured_run, geometry_of


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_float64_and_of_the_layers_shape(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    geometry = geometry_of(layer, torch.zeros(1, 4, 5, 5))
    stored = layer.weight.detach().to(dtype)
    found = Originals({f"{geometry.layer}.weight": stored}).weight(geometry)
    assert found is not None
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, stored.double().numpy())


def test_what_is_not_the_layers_weight_is_none() -> None:
    geometry = geometry_of(nn.Linear(4, 3), torch.zeros(1, 4))
    name = f"{geometry.layer}.weight"
    for stored in (torch.zeros(3, 5), torch.zeros(3, 4, dtype=torch.int8), torch.full((3, 4), torch.nan)):
        assert Originals({name: stored}).weight(geometry) is None
    assert Originals({}).weight(geometry) is None


def test_a_run_gives_the_weights_of_its_model(tmp_path: Path) -> None:
    run, model = captured_run(tmp_path, images=4, batch=2), build(SmallNet)
    stored, own = Originals.of(run), Originals.of_model(model)
    assert stored.tensors.keys() >= {name for name, _ in model.named_parameters()}
    for name, tensor in model.named_parameters():
        assert torch.equal(stored.tensors[name], tensor)
        assert torch.equal(own.tensors[name], tensor)
