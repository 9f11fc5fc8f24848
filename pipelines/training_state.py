"""A training that survives a kill: its state after every epoch, in a directory.

    epoch-0007.safetensors    weights, the optimiser's memory, the states of the random generators
    training.json             which file, its SHA-256, the records of all epochs, and what is being trained

The tensors are written first, under a temporary name, and the JSON last: whatever the moment of a kill, the JSON
names a whole file. On a CPU the resumed training ends with the same weights, bit for bit, as one that was never
killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipelines.recipe import Epoch
from streamsparse.errors import CorruptDataError

RECORD: Final = "training.json"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Everything that an epoch changes, beside torch's own random state, which dropout draws from."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator


class Keeper(Protocol):
    """Keeps a training after every epoch, so that a killed one goes on."""

    def restore(self, state: TrainingState) -> list[Epoch]:
        """Bring the state to where the last kept epoch left it, and return its records; [] to begin."""

    def store(self, state: TrainingState, history: list[Epoch]) -> None:
        """Keep the state after the last epoch of `history`."""


@dataclass(frozen=True)
class TrainingFolder:
    """A keeper on the local disk.

    Attributes:
        parent: directory of trainings, made when the first epoch is kept.
        name: of this one, for people.
        identity: JSON-able, all that determines its result (recipe, digests of data and starting weights): another
            identity is another directory.
    """

    parent: Path
    name: str
    identity: Mapping[str, Any]

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        return self.parent / f"{self.name}-{digest[:12]}"

    def restore(self, state: TrainingState) -> list[Epoch]:
        """See `Keeper`.

        Raises:
            CorruptDataError: files that are damaged, or of another network.
        """
        record = self.path / RECORD
        if not record.exists():
            return []
        try:
            found = json.loads(record.read_text())
            content = (self.path / found["file"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != found["sha256"]:
                raise ValueError("another SHA-256 than recorded")
            _restore(state, load(content))
            return [Epoch(**epoch) for epoch in found["epochs"]]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CorruptDataError(
                "The state of a training cannot be read.",
                expected=f"{RECORD} and the file that it names, as they were written",
                got=error,
                where=self.path,
                remedy="remove this directory: the training begins anew",
            ) from error

    def store(self, state: TrainingState, history: list[Epoch]) -> None:
        """See `Keeper`."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = save(_tensors(state))
        file = f"epoch-{len(history):04d}.safetensors"
        write_whole(self.path / file, content)
        record = {
            "file": file,
            "sha256": hashlib.sha256(content).hexdigest(),
            "epochs": [asdict(epoch) for epoch in history],
            "identity": self.identity,
        }
        write_whole(self.path / RECORD, json.dumps(record, indent=1).encode())
        for older in self.path.glob("epoch-*.safetensors"):
            if older.name != file:
                older.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, even if the machine goes down."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(path)


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """All of the state by name, on the CPU."""
    found = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for number, memory in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": tensor for name, tensor in memory.items()}
    found |= {"random.order": state.generator.get_state(), "random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["random.cuda"] = torch.cuda.get_rng_state()
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}


def _restore(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    state.model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    )
    memory: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, entry = rest.partition(".")
            memory.setdefault(int(number), {})[entry] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": memory, "param_groups": groups})
    state.generator.set_state(tensors["random.order"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
