"""Exports of pruned models to torch.export programs and ONNX."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from streamsparse.errors import ModelError, UsageError
from streamsparse.write.export import export_onnx, export_pt2, synthetic_inputs


class Net(nn.Module):
    """Batch normalisation, a residual add, a flatten and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(5 * 16, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.first(images)).relu()
        hidden = nn.functional.avg_pool2d(hidden + self.second(hidden), 2)
        return self.head(self.dropout(hidden.flatten(1))), hidden.mean((2, 3))


IMAGES = torch.full((1, 3, 8, 8), 123.456)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def expected(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    was = model.training
    with torch.no_grad():
        outputs = model.eval()(images)
    model.train(was)
    return outputs


@pytest.mark.parametrize("training", [True, False])
def test_pt2_computes_the_same_for_any_batch(training: bool) -> None:
    model = net().train(training)
    content = export_pt2(model, IMAGES)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    program = torch.export.load(io.BytesIO(content))  # our own file, in this process
    for batch in (1, 5):
        images = torch.rand(batch, 3, 8, 8)
        for found, wanted in zip(program.module()(images), expected(model, images), strict=True):
            torch.testing.assert_close(found, wanted)


def test_pt2_holds_nothing_of_the_example_images() -> None:
    value = np.float32(123.456).tobytes()
    assert value * 4 in IMAGES.numpy().tobytes()
    assert value * 4 not in export_pt2(net(), IMAGES)


def test_onnx_computes_the_same_for_any_batch() -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = net()
    content = export_onnx(model, IMAGES)
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        images = torch.rand(batch, 3, 8, 8)
        outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        for found, wanted in zip(outputs, expected(model, images), strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_resnet_to_both_formats() -> None:
    pytest.importorskip("onnxruntime")
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    images = torch.zeros(1, 3, 64, 64)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert size < len(export_pt2(model, images)) < 1.2 * size
    assert size * 0.98 < len(export_onnx(model, images)) < 1.2 * size


def test_synthetic_inputs_keep_shape_dtype_and_nothing_else() -> None:
    (inputs,) = synthetic_inputs(IMAGES.double())
    assert (inputs.shape, inputs.dtype) == ((2, 3, 8, 8), torch.float64)
    assert inputs.max() <= 1


class Dependent(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


class FixedBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.view(2, -1)


@pytest.mark.parametrize("model", [Dependent(), FixedBatch()])
def test_models_that_cannot_be_exported(model: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"cannot be exported by torch\.export"):
        export_pt2(model, IMAGES)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"streamsparse\[export\]"):
        export_onnx(net(), IMAGES)
