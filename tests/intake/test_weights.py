"""Reading weights and loading them strictly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from streamsparse.errors import WeightsError
from streamsparse.intake.weights import load_weights, read_weights

Tensors = dict[str, Tensor]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def weights() -> Tensors:
    return {name: torch.randn(t.shape).to(t.dtype) for name, t in net().state_dict().items()}


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def same(model: nn.Module, tensors: Tensors) -> bool:
    return all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth"])
def test_plain_files(name: str, tmp_path: Path) -> None:
    tensors, model = weights(), net()
    path = write(tmp_path / name, tensors)
    assert load_weights(model, path) == ()
    assert same(model, tensors)
    assert read_weights(path).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda t: {"state_dict": t, "epoch": 3, "optimizer": {"state": {}}}, 0),
        (lambda t: {"epoch": 3, "model": {"state_dict": t}}, 0),
        (lambda t: {f"module.{name}": tensor for name, tensor in t.items()}, 1),
        (lambda t: {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in t.items()}}, 2),
        (lambda t: {name: t[name].half() if t[name].is_floating_point() else t[name] for name in t}, 1),
        (lambda t: {name: t[name] for name in t if not name.endswith("num_batches_tracked")}, 1),
    ],
)
def test_what_training_scripts_save(wrap: Callable[[Tensors], Any], notes: int, tmp_path: Path) -> None:
    tensors, model = weights(), net()
    tensors["1.num_batches_tracked"] = torch.tensor(0)
    tensors = {name: t.half().float() if t.is_floating_point() else t for name, t in tensors.items()}
    said = load_weights(model, write(tmp_path / "a.pt", wrap(tensors)))
    assert len(said) == notes
    assert same(model, tensors)
    assert model[0].weight.dtype == torch.float32


def test_conversion_is_said(tmp_path: Path) -> None:
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in weights().items()}
    said = load_weights(net(), write(tmp_path / "a.safetensors", tensors))
    assert said == ("8 tensors converted: torch.float16 to torch.float32.",)


def test_tied_tensors_may_be_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    tensors = {name: torch.randn(t.shape) for name, t in model.state_dict().items() if name != "1.weight"}
    load_weights(model, write(tmp_path / "a.safetensors", tensors))
    assert torch.equal(model[1].weight, tensors["0.weight"])


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_never_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", {"state_dict": weights(), "x": Payload(tmp_path / "executed")})
    with pytest.raises(WeightsError, match="holds objects"):
        read_weights(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(WeightsError, match="holds objects"):
        read_weights(write(tmp_path / "whole_model.pt", net()))


def _replaced(name: str, tensor: Tensor) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_replaced("0.weight", torch.zeros(2, 1, 5, 5)), "another shape"),
        (_replaced("0.weight", torch.zeros(2, 1, 3, 3, dtype=torch.int64)), "another dtype"),
        (_replaced("0.weight", torch.full((2, 1, 3, 3), torch.nan)), "NaN or infinity"),
        (_replaced("9.weight", torch.zeros(1)), "1 unexpected (9.weight)"),
        (lambda tensors: {n: t for n, t in tensors.items() if n != "3.bias"}, "1 missing (3.bias)"),
        (lambda tensors: {n.replace("3.", "fc."): t for n, t in tensors.items()}, "2 missing"),
        (lambda tensors: {f"a{n}": t for n, t in tensors.items()}, "Did you mean"),
        (lambda tensors: {"epoch": 3}, "no state_dict"),
        (lambda tensors: {}, "no state_dict"),
        (lambda tensors: [1, 2], "no state_dict"),
    ],
)
def test_weights_of_something_else(spoil: Callable[[Tensors], Any], words: str, tmp_path: Path) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, write(tmp_path / "a.pt", spoil(weights())))
    assert words in str(error.value)
    assert "to do:" in str(error.value)
    assert same(model, before)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("keep", [0, 4, 100, 0.5])
def test_truncated_files(name: str, keep: float, tmp_path: Path) -> None:
    path = write(tmp_path / name, weights())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    with pytest.raises(WeightsError, match="corrupt"):
        read_weights(path)


def test_missing_files_suggest_their_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "resnet.pt", weights())
    with pytest.raises(WeightsError, match=r"Did you mean resnet\.pt"):
        read_weights(tmp_path / "resent.pt")
    with pytest.raises(WeightsError, match="no weights file"):
        read_weights(tmp_path / "nowhere" / "a.pt")
    with pytest.raises(WeightsError, match="a directory"):
        read_weights(tmp_path)
