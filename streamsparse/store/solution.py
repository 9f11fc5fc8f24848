"""The committed solution of a run: a plan, and the weights and running statistics that belong to it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from streamsparse.errors import CorruptDataError, RunMismatchError, StageMissingError
from streamsparse.store import layout
from streamsparse.store.records import Record
from streamsparse.store.run import Run
from streamsparse.types import LayerError, PrunePlan, Solution

_GENERATION = re.compile("[0-9a-f]{16}")

Weights = dict[str, tuple[np.ndarray, np.ndarray | None]]
"""By layer: weight of the layer's own shape, and bias or None; float64."""

Buffers = dict[str, np.ndarray]
"""By key of the model's state: running statistics that were estimated anew, float64."""


def commit_solution(run: Run, solution: Solution, weights: Weights, buffers: Buffers | None = None) -> None:
    """Store the weights beside those that are there, then switch to them in one step, then drop the old ones.

    Args:
        buffers: exactly those that `solution.recalibrated` names.
    """
    buffers = buffers or {}
    generation = _generation(solution, weights, buffers)
    for layer, (weight, bias) in weights.items():
        arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        run.records.write(layout.weights_key(generation, layer), {"layer": layer}, arrays)
    if buffers:
        run.records.write(layout.buffers_key(generation), {}, buffers)
    document = {
        "plan": solution.plan.to_json(),
        "mode": solution.mode,
        "layers": [asdict(error) for error in solution.layers],
        "recalibrated": list(solution.recalibrated),
        "generation": generation,
    }
    run.documents.write_json(layout.SOLUTION, document)
    for other in run.documents.names(layout.SOLUTION_WEIGHTS):
        if other != generation and _GENERATION.fullmatch(other):  # zarr keeps a document of its own there
            run.documents.delete(f"{layout.SOLUTION_WEIGHTS}/{other}")


def read_solution(run: Run) -> Solution:
    """The committed solution.

    Raises:
        StageMissingError: there is none.
        CorruptDataError: it is not readable.
    """
    return _parsed(_document(run))


def read_weights(run: Run, solution: Solution) -> Weights:
    """The weights of every re-estimated layer.

    Raises:
        CorruptDataError: some are missing or damaged.
    """
    generation = _generation_of(run, solution)
    weights: Weights = {}
    for error in solution.layers:
        what = f"the weights of layer '{error.layer}'"
        record = _record(run, layout.weights_key(generation, error.layer), {"weight"}, what)
        weights[error.layer] = (record.arrays["weight"], record.arrays.get("bias"))
    return weights


def read_buffers(run: Run, solution: Solution) -> Buffers:
    """The running statistics that were estimated anew; empty where none were.

    Raises:
        CorruptDataError: some are missing or damaged.
    """
    if not solution.recalibrated:
        return {}
    key = layout.buffers_key(_generation_of(run, solution))
    return dict(_record(run, key, set(solution.recalibrated), "the running statistics").arrays)


def _generation_of(run: Run, solution: Solution) -> str:
    document = _document(run)
    if _parsed(document) != solution:
        raise RunMismatchError(
            "The run's solution has changed meanwhile.", where=run.url, remedy="run the same command again"
        )
    return str(document["generation"])


def _record(run: Run, key: str, names: set[str], what: str) -> Record:
    record = run.records.read(key)
    if record is None or not names <= record.arrays.keys():
        raise CorruptDataError(
            "A part of the solution is missing.",
            expected=what,
            got="nothing" if record is None else f"a record of {', '.join(record.arrays)}",
            where=key,
            remedy="run `streamsparse solve` again",
        )
    return record


def _document(run: Run) -> dict[str, Any]:
    found = run.documents.read_json(layout.SOLUTION)
    if found is None:
        raise StageMissingError(
            "This run holds no finished solution.",
            expected="a plan and the weights that belong to it",
            got="nothing",
            where=run.url,
            remedy="run `streamsparse solve` (again)",
        )
    return found


def _parsed(document: dict[str, Any]) -> Solution:
    try:
        layers = tuple(LayerError(**error) for error in document["layers"])
        recalibrated = tuple(document.get("recalibrated", ()))
        return Solution(PrunePlan.from_json(document["plan"]), layers, document["mode"], recalibrated)
    except (KeyError, TypeError) as error:
        raise CorruptDataError(
            "The run's solution is not readable.",
            expected="a plan, errors by layer, a mode",
            got=repr(error),
            where=layout.SOLUTION,
            remedy="run `streamsparse solve` again",
        ) from error


def _generation(solution: Solution, weights: Weights, buffers: Mapping[str, np.ndarray]) -> str:
    """Identity of a solution, its weights and its running statistics."""
    identity = hashlib.sha256(json.dumps(asdict(solution), sort_keys=True).encode())
    for layer in sorted(weights):
        for array in weights[layer]:
            identity.update(layer.encode() + (b"" if array is None else np.ascontiguousarray(array).tobytes()))
    for name in sorted(buffers):
        identity.update(name.encode() + np.ascontiguousarray(buffers[name]).tobytes())
    return identity.hexdigest()[:16]
