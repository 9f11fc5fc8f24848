"""`config.json` of a checkpoint: what the tensors are and where they come from. Format version 1.

{
  "format": "streamsparse-checkpoint", "version": 1,
  "class": "LeNet", "constructor": "torchvision:resnet18?num_classes=10" or null,
  "tensors": {"conv1.weight": {"dtype": "float32", "shape": [8, 6, 5, 5]}, ...},
  "aliases": {"decoder.weight": "encoder.weight"},        tied names, stored once
  "groups": {"layer1.0.conv2": 16},                       of grouped convolutions and GroupNorms
  "kept": {"conv1": [0, 3, ...]}, "original_sizes": {"conv1": 16},
  "digests": {"file": sha256 of model.safetensors, "weights": ..., "original_weights": ... or null},
  "finite": true, "statistics": {...}, "max_trial_error": 1e-16 or null,
  "costs": {"before": {"parameters": ..., "macs": ..., "bytes": ...} or null, "after": ... or null},
  "versions": {"streamsparse": "0.1.0", "torch": "2.9.0"}, "created": "2026-01-31T12:00:00+00:00"
}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from streamsparse.errors import CheckpointError
from streamsparse.types import Costs
from streamsparse.write.strict_json import strict_json

FORMAT = "streamsparse-checkpoint"
VERSION = 1
CONFIG_FILE = "config.json"
CONFIG_LIMIT_BYTES = 64 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointConfig:
    """What the caller of `encode_checkpoint` knows about the model.

    Attributes:
        constructor: how to build the original, such as "torchvision:vgg16"; informational, never executed.
        kept: positions kept per channel group, ascending.
        original_sizes: positions per channel group before pruning.
        sizes: numbers in the model's modules that follow from no tensor's shape, by module path and attribute,
            as `network.surgery.size_attributes` gives them.
        original_digest: `network.weights.weights_digest` of the original's tensors.
        statistics: provenance of the statistics, any JSON object.
        max_trial_error: largest relative error of the float64 trials.
        costs_before: of the original.
        costs_after: of the pruned model.
        created: ISO 8601 time; None: now.
    """

    constructor: str | None = None
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    original_sizes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    original_digest: str | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    max_trial_error: float | None = None
    costs_before: Costs | None = None
    costs_after: Costs | None = None
    created: str | None = None

    def __post_init__(self) -> None:
        for name, positions in self.kept.items():
            size = self.original_sizes.get(name)
            ascending = list(positions) == sorted(set(positions))
            if size is None or not ascending or not all(0 <= position < size for position in positions):
                expected = "an original size" if size is None else f"ascending positions from 0 to {size - 1}"
                raise config_error("kept", expected, f"{name}: {list(positions)[:10]}")


@dataclass(frozen=True)
class TensorForm:
    """dtype (such as "float32") and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """All of `config.json`.

    Attributes:
        class_name: of the model, informational.
        tensors: form of every stored tensor, by name.
        aliases: tied names and the stored name whose tensor they share.
        groups: number of groups of convolutions and GroupNorms that have more than one, by module path.
        file_digest: sha256 of `model.safetensors`, hexadecimal.
        weights_digest: `network.weights.weights_digest` of all tensors, tied ones under every name.
        finite: no tensor holds NaN or infinity.
        versions: of the packages that wrote the checkpoint.
        config: what the caller knew.
    """

    class_name: str
    tensors: Mapping[str, TensorForm]
    aliases: Mapping[str, str]
    groups: Mapping[str, int]
    file_digest: str
    weights_digest: str
    finite: bool
    versions: Mapping[str, str]
    config: CheckpointConfig

    def to_bytes(self) -> bytes:
        """`config.json` as it is written.

        Raises:
            CheckpointError: the provenance is not plain JSON.
        """
        try:
            return (json.dumps(self._content(), allow_nan=False, ensure_ascii=False) + "\n").encode()
        except (TypeError, ValueError) as error:
            raise config_error("statistics", "plain JSON values without NaN", error) from error

    def _content(self) -> dict[str, Any]:
        config = self.config
        before, after = (c and asdict(c) for c in (config.costs_before, config.costs_after))
        return {
            "format": FORMAT,
            "version": VERSION,
            "class": self.class_name,
            "constructor": config.constructor,
            "tensors": {
                name: {"dtype": f.dtype, "shape": list(f.shape)} for name, f in sorted(self.tensors.items())
            },
            "aliases": dict(self.aliases),
            "groups": dict(self.groups),
            "kept": {name: list(positions) for name, positions in config.kept.items()},
            "original_sizes": dict(config.original_sizes),
            "sizes": {path: dict(values) for path, values in config.sizes.items()},
            "digests": {
                "file": self.file_digest,
                "weights": self.weights_digest,
                "original_weights": config.original_digest,
            },
            "finite": self.finite,
            "statistics": dict(config.statistics),
            "max_trial_error": config.max_trial_error,
            "costs": {"before": before, "after": after},
            "versions": dict(self.versions),
            "created": config.created,
        }

    @classmethod
    def from_bytes(cls, content: bytes) -> Description:
        """Parse and validate `config.json`.

        Raises:
            CheckpointError: too large, not JSON, of another format or version, or a field of the wrong type.
        """
        data = strict_json(content, CONFIG_FILE, CONFIG_LIMIT_BYTES)
        if (data.get("format"), repr(data.get("version"))) != (FORMAT, repr(VERSION)):
            raise CheckpointError(
                "The checkpoint has another format.",
                expected=f"{FORMAT} version {VERSION}",
                got=f"{data.get('format')} version {data.get('version')}",
                where=CONFIG_FILE,
                remedy="Load it with the version of streamsparse that wrote it, or write it again.",
            )
        digests = _field(data, "digests", dict)
        return cls(
            class_name=_field(data, "class", str),
            tensors={name: _form(name, form) for name, form in _field(data, "tensors", dict).items()},
            aliases=_mapping(data, "aliases", str),
            groups=_mapping(data, "groups", int),
            file_digest=_field(digests, "file", str),
            weights_digest=_field(digests, "weights", str),
            finite=_field(data, "finite", bool),
            versions=_mapping(data, "versions", str),
            config=_config(data, digests),
        )


def _config(data: dict[str, Any], digests: dict[str, Any]) -> CheckpointConfig:
    costs = _field(data, "costs", dict)
    error = _field(data, "max_trial_error", (int, float, type(None)))
    return CheckpointConfig(
        constructor=_field(data, "constructor", (str, type(None))),
        kept={name: _whole(f"kept.{name}", kept) for name, kept in _mapping(data, "kept", list).items()},
        original_sizes=_mapping(data, "original_sizes", int),
        sizes={path: _mapping(sizes, path, int) for sizes in [_field(data, "sizes", dict)] for path in sizes},
        original_digest=_field(digests, "original_weights", (str, type(None))),
        statistics=_field(data, "statistics", dict),
        max_trial_error=error,
        costs_before=_costs(costs, "before"),
        costs_after=_costs(costs, "after"),
        created=_field(data, "created", (str, type(None))),
    )


def _costs(data: dict[str, Any], key: str) -> Costs | None:
    found = _field(data, key, (dict, type(None)))
    if found is None:
        return None
    return Costs(*(_field(found, name, int) for name in ("parameters", "macs", "bytes")))


def _form(name: str, data: object) -> TensorForm:
    if not isinstance(data, dict):
        raise config_error(f"tensors.{name}", "an object with dtype and shape", data)
    return TensorForm(_field(data, "dtype", str), _whole(f"tensors.{name}", _field(data, "shape", list)))


def _whole(where: str, values: list[Any]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise config_error(where, "whole numbers from 0", values[:10])
    return tuple(values)


def _mapping(data: dict[str, Any], key: str, kind: type[T]) -> dict[str, T]:
    found = _field(data, key, dict)
    return {name: _field(found, name, kind) for name in found}


def _field(data: dict[str, Any], key: str, kind: Any) -> Any:
    value = data.get(key)
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if key not in data or not right:
        names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
        raise config_error(key, " or ".join(names), repr(value)[:80] if key in data else "nothing")
    return value


def config_error(where: str, expected: object, got: object) -> CheckpointError:
    """A field of `config.json` that is missing or wrong."""
    return CheckpointError(
        "A field of the checkpoint's configuration is missing or wrong.",
        expected=expected,
        got=got,
        where=f"{CONFIG_FILE}, {where}",
        remedy="Write the checkpoint again; do not edit its files by hand.",
    )
