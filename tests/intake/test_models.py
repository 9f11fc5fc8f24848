"""Building models from their names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from streamsparse.errors import ModelError
from streamsparse.intake.models import build_model
from streamsparse.intake.specs import Spec, parse_spec

CODE = """
from torch import nn

def linear(width=2):
    return nn.Linear(width, 3)

def number():
    return 3

def fails():
    raise RuntimeError("no such luck")

constant = 5
"""


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "code_of_the_user.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "code_of_the_user", raising=False)
    return tmp_path


def test_torchvision_with_options() -> None:
    model = build_model("torchvision:resnet18?num_classes=10")
    assert model.fc.out_features == 10


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "mnasnet1_0", "squeezenet1_1"])
def test_torchvision_without_warnings(name: str) -> None:
    assert isinstance(build_model(f"torchvision:{name}"), nn.Module)


def test_torchvision_never_downloads_a_backbone() -> None:
    model = build_model("torchvision:lraspp_mobilenet_v3_large?num_classes=2")
    assert isinstance(model, nn.Module)


def test_timm() -> None:
    pytest.importorskip("timm")
    model = build_model("timm:resnet10t?num_classes=7&in_chans=1").eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 7)


def test_code_of_the_current_directory_only_on_request(working_directory: Path) -> None:
    with pytest.raises(ModelError, match="code_of_the_user"):
        build_model("code_of_the_user:linear")
    model = build_model("code_of_the_user:linear?width=4", trust_code=True)
    assert isinstance(model, nn.Linear)
    assert model.in_features == 4


def test_importable_code() -> None:
    assert isinstance(build_model("torch.nn:Linear?in_features=2&out_features=3"), nn.Linear)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("torchvision:resnet81", "resnet18"),
        ("torchvision:resnet18?weights=DEFAULT", "file of their own"),
        ("torchvision:resnet18?pretrained=true", "file of their own"),
        ("torchvision:resnet18?number=3", "options"),
        ("torchvision:resnet18?=3", "option=value"),
        ("torchvision:resnet18?num_classes", "name=value"),
        ("torchvision:", "no name"),
        ("resnet18", "torchvision:NAME"),
        ("no_such_module:function", "no_such_module"),
        ("torch.nn:Linaer", "Linear"),
        ("code_of_the_user:number", "returns a torch.nn.Module"),
        ("code_of_the_user:fails", "no such luck"),
        ("code_of_the_user:constant", "constant"),
        ("..:x", "importable"),
    ],
)
def test_names_of_nothing(spec: str, words: str, working_directory: Path) -> None:
    with pytest.raises(ModelError) as error:
        build_model(spec, trust_code=True)
    assert words in str(error.value)
    assert "to do:" in str(error.value)


@pytest.mark.parametrize("spec", ["timm:resnet18x", "timm:hf-hub:somebody/model", "timm:local-dir:/tmp"])
def test_timm_names_of_nothing(spec: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="cannot be used"):
        build_model(spec)


def test_values_of_options() -> None:
    spec = parse_spec("a:b?x=1&y=0.5&z=true&n=None&t=(1, 2)&w=text&e=", ModelError)
    assert spec == Spec("a", "b", {"x": 1, "y": 0.5, "z": True, "n": None, "t": (1, 2), "w": "text", "e": ""})
