"""Pruned models of many architectures: predicted costs are measured costs, and checkpoints just load."""

from __future__ import annotations

import pytest
import torch

from streamsparse.intake.models import build_model
from streamsparse.network.costs import cost_model, costs
from streamsparse.network.graph import find_groups
from streamsparse.network.surgery import prune, size_attributes
from streamsparse.write.checkpoint import decode_checkpoint, encode_checkpoint
from streamsparse.write.description import CheckpointConfig
from streamsparse.write.export import export_onnx, export_pt2

# one each of plain, residual, depthwise, squeeze-excitation, shuffled split, concatenated, grouped
FAST = ["squeezenet1_1", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "mnasnet1_0"]
SLOW = [
    "torchvision:vgg11_bn",
    "torchvision:resnext50_32x4d",
    "torchvision:densenet121",
    "torchvision:mobilenet_v2",
    "torchvision:efficientnet_b0",
    "torchvision:googlenet",
    "torchvision:inception_v3",
    "torchvision:regnet_y_400mf",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_16",
    "torchvision:swin_t",
    "timm:res2net50_26w_4s",
    "timm:cspdarknet53",
    "timm:ghostnet_100",
    "timm:nf_resnet50",
    "timm:efficientvit_b0",
    "timm:dla34",
    "timm:hrnet_w18_small",
]


def check(spec: str, size: int, *, exports: bool = False) -> None:
    torch.manual_seed(0)
    model, images = build_model(spec).eval(), torch.rand(1, 3, size, size)
    graph = find_groups(model, images)
    keep = {
        group.name: [position for position in range(group.size) if position == 0 or torch.rand(()) < 0.7]
        for group in graph.groups
    }
    pruned = prune(model, graph, keep)
    predicted = cost_model(model, graph, images)
    assert predicted.costs({}) == costs(model, images)
    assert predicted.costs_of_keep(keep) == costs(pruned, images)
    if predicted.exact:
        assert predicted.costs({name: len(kept) for name, kept in keep.items()}) == costs(pruned, images)
    files = encode_checkpoint(pruned, CheckpointConfig(sizes=size_attributes(model, graph, keep)))
    loaded = decode_checkpoint(files, build_model(spec).eval())
    with torch.no_grad():
        assert torch.equal(loaded(images), pruned(images))
    assert repr(loaded) == repr(pruned)
    if exports:
        assert export_pt2(loaded, images)
        assert export_onnx(loaded, images)


@pytest.mark.parametrize("name", FAST)
def test_common_architectures(name: str) -> None:
    check(f"torchvision:{name}", 64)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SLOW)
def test_every_architecture(spec: str) -> None:
    if spec.startswith("timm:"):
        pytest.importorskip("timm")
    check(spec, 299 if "inception" in spec else 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_0", "densenet121", "swin_t"])
def test_pruned_models_export(name: str) -> None:
    pytest.importorskip("onnxruntime")
    check(f"torchvision:{name}", 224, exports=True)
