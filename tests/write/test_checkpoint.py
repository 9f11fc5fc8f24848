"""Checkpoints: bit-for-bit round trips, and everything hostile refused with the model untouched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamsparse.errors import CheckpointError, StorageError, WeightsError
from streamsparse.network.weights import weights_digest
from streamsparse.types import Costs
from streamsparse.write.checkpoint import decode_checkpoint, encode_checkpoint, load, verify_checkpoint
from streamsparse.write.description import CheckpointConfig, Description
from streamsparse.write.directory import save
from streamsparse.write.safetensors_file import check_header

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Files = dict[str, bytes]


def net(channels: int = 6, groups: int = 2) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 4, 3, groups=groups),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def trained(model: nn.Module) -> nn.Module:
    """Statistics and weights that differ from every constructor's."""
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 6, 6))
    return model.eval()


@pytest.fixture
def pruned() -> nn.Module:
    return trained(net(4))


@pytest.fixture
def files(pruned: nn.Module) -> Files:
    return encode_checkpoint(pruned, CONFIG_OF_TESTS)


CONFIG_OF_TESTS = CheckpointConfig(
    constructor="tests:net",
    kept={"0": (0, 2, 3, 5)},
    original_sizes={"0": 6},
    original_digest="0" * 64,
    statistics={"images": 100, "folds": [1, 2]},
    max_trial_error=1e-16,
    costs_before=Costs(10, 20, 40),
    costs_after=Costs(5, 10, 20),
)


def with_config(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    data = json.loads(files[CONFIG])
    change(data)
    return files | {CONFIG: json.dumps(data).encode()}


def with_weights(files: Files, content: bytes) -> Files:
    """Other weights with a matching sha256, as somebody who edits both files would do."""
    digest = hashlib.sha256(content).hexdigest()
    return with_config(files | {WEIGHTS: content}, lambda data: data["digests"].update(file=digest))


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def refused(files: Files, words: str) -> None:
    """Refused with a complete message, and the model is as it was."""
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        decode_checkpoint(files, model)
    assert words in str(error.value), str(error.value)
    for part in ("expected:", "got:", "where:", "to do:"):
        assert part in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_round_trip_is_bit_for_bit(pruned: nn.Module, files: Files, tmp_path: Path) -> None:
    images = torch.randn(5, 3, 6, 6)
    loaded = load(save(tmp_path / "deep" / "checkpoint", files), net().eval())
    assert torch.equal(loaded(images), pruned(images))
    assert encode_checkpoint(loaded, CONFIG_OF_TESTS)[WEIGHTS] == files[WEIGHTS]


def test_description_says_where_the_model_comes_from(pruned: nn.Module, files: Files) -> None:
    description, tensors = verify_checkpoint(files)
    assert description.config.created is not None
    assert description == Description.from_bytes(description.to_bytes())
    assert description.config.costs_after == Costs(5, 10, 20)
    assert description.config.kept == {"0": (0, 2, 3, 5)}
    assert description.groups == {"3": 2}
    assert description.finite
    assert description.weights_digest == weights_digest(pruned.state_dict()) == weights_digest(tensors)
    assert set(description.versions) == {"streamsparse", "torch"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    pruned = net(4).to(dtype)
    files = encode_checkpoint(pruned)
    loaded = decode_checkpoint(files, net().to(dtype))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in pruned.state_dict().items())
    refused(files, "another dtype")


def test_tied_tensors_are_stored_once_and_tied_again() -> None:
    def tied(width: int, tie: bool = True) -> nn.Module:
        model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        if tie:
            model[1].weight = model[0].weight
        return model

    pruned = tied(3)
    files = encode_checkpoint(pruned)
    description, tensors = verify_checkpoint(files)
    assert description.aliases == {"1.weight": "0.weight"}
    assert set(tensors) == {"0.weight", "0.bias", "1.bias"}
    for model in (tied(5), tied(5, tie=False)):
        loaded = decode_checkpoint(files, model)
        assert loaded[0].weight is loaded[1].weight
        assert torch.equal(loaded(torch.ones(2, 3)), pruned(torch.ones(2, 3)))


class Splitting(nn.Module):
    """Splits by a number that no tensor's shape gives."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.source = nn.Conv2d(3, 2 * width, 1)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.source(images).split(self.width, dim=1)
        return first * second


def test_sizes_in_the_models_code() -> None:
    pruned, images = Splitting(4), torch.randn(1, 3, 2, 2)
    files = encode_checkpoint(pruned, CheckpointConfig(sizes={"": {"width": 4}}))
    loaded = decode_checkpoint(files, Splitting())
    assert loaded.width == 4
    assert torch.equal(loaded(images), pruned(images))
    for sizes in (
        {"": {"width": 7}},
        {"": {"width": 0}},
        {"": {"training": 1}},
        {"source": {"stride": 1}},
        {"a": {"b": 1}},
    ):
        model = Splitting()
        changed = with_config(files, lambda data, sizes=sizes: data.update(sizes=sizes))
        with pytest.raises(CheckpointError, match="size in the model's code"):
            decode_checkpoint(changed, model)
        assert (model.width, model.source.out_channels) == (6, 12)
    with pytest.raises(CheckpointError, match="sizes"):
        encode_checkpoint(pruned, CheckpointConfig(sizes={"": {"width": 6}}))


def test_views_of_one_storage_are_stored_in_full() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    both = torch.randn(6, 3)
    model[0].weight, model[1].weight = nn.Parameter(both[:3]), nn.Parameter(both[3:])
    fresh = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    loaded = decode_checkpoint(encode_checkpoint(model), fresh)
    assert torch.equal(loaded(both), model(both))


def test_empty_and_scalar_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("flag", torch.tensor(True))
            self.scale = nn.Parameter(torch.tensor(2.5))

    loaded = decode_checkpoint(encode_checkpoint(Odd()), Odd())
    assert loaded.empty.shape == (0, 3)
    assert loaded.flag.item() is True
    assert loaded.scale.item() == 2.5


def test_values_that_are_not_finite_are_stored_as_such(pruned: nn.Module) -> None:
    with torch.no_grad():
        pruned[0].weight[0, 0, 0, 0] = float("nan")
    files = encode_checkpoint(pruned)
    assert not verify_checkpoint(files)[0].finite
    assert decode_checkpoint(files, net())[0].weight.isnan().sum() == 1
    refused(with_config(files, lambda data: data.update(finite=True)), "said to be finite")


def test_digest_depends_on_names_shapes_dtypes_and_values_only() -> None:
    one, two = torch.arange(6.0).reshape(2, 3), torch.ones(2)
    digest = weights_digest({"a": one, "b": two})
    assert digest == weights_digest({"b": two, "a": one.t().contiguous().t()})
    others = [
        {"a": one, "c": two},
        {"a": one.reshape(3, 2), "b": two},
        {"a": one.double(), "b": two},
        {"a": one + 1, "b": two},
        {"a": one},
    ]
    assert len({digest, *map(weights_digest, others)}) == 6


def test_a_pinned_digest_must_match(files: Files, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint", files)
    right = verify_checkpoint(files)[0].weights_digest
    assert load(path, net(), digest=right)[0].out_channels == 4
    with pytest.raises(CheckpointError, match="not those that were written"):
        load(path, net(), digest="0" * 64)


@given(st.integers(0), st.integers(0, 7))
@settings(deadline=None, max_examples=40)
def test_any_flipped_bit_of_the_weights_is_found(place: int, bit: int) -> None:
    files = encode_checkpoint(net(4), CONFIG_OF_TESTS)
    content = bytearray(files[WEIGHTS])
    content[place % len(content)] ^= 1 << bit
    refused(files | {WEIGHTS: bytes(content)}, "not those that were written")


@given(st.binary(max_size=200))
@example(b"")
@example(with_header(b"{}", b"x"))
@settings(deadline=None, max_examples=100)
def test_arbitrary_bytes_are_refused_or_a_whole_file(content: bytes) -> None:
    try:
        check_header(content)
    except CheckpointError:
        return
    header = int.from_bytes(content[:8], "little")
    assert content[8 : 8 + header].strip().startswith(b"{")


HOSTILE_HEADERS = {
    "longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "longest possible": b"\xff" * 8 + b"{}",
    "not JSON": with_header(b"not json"),
    "a list": with_header(b"[]"),
    "deeply nested": with_header(b'{"a":' * 100_000),
    "huge number": with_header(b'{"a": ' + b"9" * 5000 + b"}"),
    "repeated name": with_header(
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
        b' "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}',
        b"x",
    ),
    "overlap": with_header(
        b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},'
        b' "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}',
        b"xyz",
    ),
    "gap": with_header(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}', b"xy"),
    "bytes left over": with_header(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', b"xy"),
    "beyond the end": with_header(b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}', b"xy"),
    "overflowing shape": with_header(
        b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 2]}}', b"xy"
    ),
    "negative shape": with_header(b'{"a": {"dtype": "U8", "shape": [-1, -1], "data_offsets": [0, 1]}}', b"x"),
    "fractional shape": with_header(b'{"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}', b"x"),
    "boolean shape": with_header(b'{"a": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}', b"x"),
    "unknown dtype": with_header(b'{"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 1]}}', b"x"),
    "dtype is a list": with_header(b'{"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}', b"x"),
    "extra field": with_header(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], "code": "x"}}', b"x"),
    "three offsets": with_header(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}', b"x"),
    "metadata that is no text": with_header(b'{"__metadata__": {"a": {}}}'),
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
    "empty": b"",
    "no header": (0).to_bytes(8, "little"),
}


@pytest.mark.parametrize("content", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS.keys())
def test_hostile_headers_are_refused(files: Files, content: bytes) -> None:
    refused(with_weights(files, content), "")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_truncated_weights_are_refused_even_with_a_matching_digest(files: Files, keep: int) -> None:
    refused(with_weights(files, files[WEIGHTS][:keep]), "cannot be read")


def reencoded(change: Callable[[nn.Module], None]) -> Callable[[Files], Files]:
    """The weights of a changed model under the configuration of the unchanged one."""

    def build(files: Files) -> Files:
        model = net(4)
        change(model)
        return with_weights(files, encode_checkpoint(model)[WEIGHTS])

    return build


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (reencoded(lambda model: model.register_buffer("extra", torch.ones(1))), "different tensors"),
        (reencoded(lambda model: model[0].register_parameter("bias", None)), "different tensors"),
        (reencoded(lambda model: model[0].half()), "different tensors"),
        (reencoded(lambda model: None), "weights digest"),
        (lambda files: {WEIGHTS: files[WEIGHTS]}, "missing"),
        (lambda files: {CONFIG: files[CONFIG]}, "missing"),
        (lambda files: files | {CONFIG: encode_checkpoint(net(3, 1))[CONFIG]}, "sha256"),
        (lambda files: files | {CONFIG: b"{"}, "cannot be read"),
        (lambda files: files | {CONFIG: b"[]"}, "cannot be read"),
        (lambda files: files | {CONFIG: b'{"version": 1, "version": 1}'}, "repeated key"),
        (lambda files: files | {CONFIG: b'{"version": NaN}'}, "not a JSON number"),
        (lambda files: files | {CONFIG: b"\xff\xfe"}, "cannot be read"),
        (lambda files: files | {CONFIG: b" " * (2**26 + 1)}, "at most"),
        (lambda files: with_config(files, lambda data: data.update(version=2)), "version 2"),
        (lambda files: with_config(files, lambda data: data.update(version=True)), "version"),
        (lambda files: with_config(files, lambda data: data.update(tensors=[])), "tensors"),
        (lambda files: with_config(files, lambda data: data["tensors"].update(a=1)), "tensors.a"),
        (lambda files: with_config(files, lambda data: data.pop("digests")), "digests"),
        (lambda files: with_config(files, lambda data: data.update(finite="yes")), "finite"),
        (lambda files: with_config(files, lambda data: data.update(groups={"3": True})), "wrong"),
        (lambda files: with_config(files, lambda data: data.update(groups={"3": 4})), "number of groups"),
        (lambda files: with_config(files, lambda data: data["kept"].update({"0": [6]})), "kept"),
        (lambda files: with_config(files, lambda data: data["kept"].update({"0": [1, 1]})), "kept"),
        (lambda files: with_config(files, lambda data: data["kept"].update({"9": [1]})), "kept"),
        (lambda files: with_config(files, lambda data: data["aliases"].update(a="b")), "tied name"),
        (
            lambda files: with_config(files, lambda data: data["aliases"].update({"0.bias": "0.weight"})),
            "tied name",
        ),
        (
            lambda files: with_config(files, lambda data: data["aliases"].update({"../up": "0.weight"})),
            "weights digest",
        ),
    ],
)
def test_files_that_contradict_each_other(files: Files, spoil: Callable[[Files], Files], words: str) -> None:
    refused(spoil(files), words)


@pytest.mark.parametrize("other", [net(3, 1), nn.Linear(2, 2), net(4).append(nn.Linear(3, 3)), net(8)])
def test_checkpoints_of_other_architectures(other: nn.Module) -> None:
    refused(encode_checkpoint(other), "does not fit")


def test_names_with_directories_are_refused(files: Files, tmp_path: Path) -> None:
    for name in ("../evil", "/tmp/evil", "a/b", "", ".", "..", ".hidden", "a\\b", "a\0b"):
        with pytest.raises(CheckpointError, match="plain"):
            save(tmp_path / "checkpoint", files | {name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_saving_never_overwrites_unasked(files: Files, tmp_path: Path) -> None:
    target = save(tmp_path / "checkpoint", files)
    with pytest.raises(CheckpointError, match="exists already"):
        save(target, files)
    other = encode_checkpoint(net(2))
    save(target, other, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == other
    (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        save(target, files, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_full_disk_leaves_nothing(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = save(tmp_path / "checkpoint", files)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="could not be written"):
        save(tmp_path / "second", files)
    with pytest.raises(StorageError, match="could not be written"):
        save(target, encode_checkpoint(net(2)), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert load(target, net())[0].out_channels == 4


def test_links_out_of_the_directory_are_refused(files: Files, tmp_path: Path) -> None:
    outside = save(tmp_path / "outside", files)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / CONFIG).write_bytes(files[CONFIG])
    (inside / WEIGHTS).symlink_to(outside / WEIGHTS)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(inside, net())
    (inside / WEIGHTS).unlink()
    (inside / WEIGHTS).symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(inside, net())
    (inside / WEIGHTS).unlink()
    os.mkfifo(inside / WEIGHTS)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(inside, net())


def test_directories_that_are_none(tmp_path: Path, files: Files) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        load(tmp_path / "nowhere", net())
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / WEIGHTS).write_bytes(files[WEIGHTS])
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path / "half", net())


def test_models_that_cannot_be_stored() -> None:
    with torch.device("meta"), pytest.raises(CheckpointError, match="cannot be stored"):
        encode_checkpoint(net())

    class Extra(nn.Linear):
        def get_extra_state(self) -> Tensor:
            return torch.zeros(1)

    with pytest.raises(WeightsError):
        encode_checkpoint(Extra(2, 2))


@pytest.mark.parametrize("statistics", [{"a": float("nan")}, {"a": object()}])
def test_provenance_must_be_plain_json(statistics: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="configuration"):
        encode_checkpoint(net(), CheckpointConfig(statistics=statistics))
