"""The committed solution of a run: a plan, and the weights that belong to it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np

from streamsparse.errors import CorruptDataError, RunMismatchError, StageMissingError
from streamsparse.store import layout
from streamsparse.store.run import Run
from streamsparse.types import LayerError, PrunePlan, Solution

_GENERATION = re.compile("[0-9a-f]{16}")

Weights = dict[str, tuple[np.ndarray, np.ndarray | None]]
"""By layer: weight of the layer's own shape, and bias or None; float64."""


def commit_solution(run: Run, solution: Solution, weights: Weights) -> None:
    """Store the weights beside those that are there, then switch to them in one step, then drop the old ones."""
    generation = _generation(solution, weights)
    for layer, (weight, bias) in weights.items():
        arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        run.records.write(layout.weights_key(generation, layer), {"layer": layer}, arrays)
    document = {
        "plan": solution.plan.to_json(),
        "mode": solution.mode,
        "layers": [asdict(error) for error in solution.layers],
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
    document = _document(run)
    if _parsed(document) != solution:
        raise RunMismatchError(
            "The run's solution has changed meanwhile.", where=run.url, remedy="run the same command again"
        )
    weights: Weights = {}
    for error in solution.layers:
        key = layout.weights_key(document["generation"], error.layer)
        record = run.records.read(key)
        if record is None or "weight" not in record.arrays:
            raise CorruptDataError(
                "Weights of the solution are missing.",
                expected=f"the weights of layer '{error.layer}'",
                got="nothing",
                where=key,
                remedy="run `streamsparse solve` again",
            )
        weights[error.layer] = (record.arrays["weight"], record.arrays.get("bias"))
    return weights


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
        return Solution(PrunePlan.from_json(document["plan"]), layers, document["mode"])
    except (KeyError, TypeError) as error:
        raise CorruptDataError(
            "The run's solution is not readable.",
            expected="a plan, errors by layer, a mode",
            got=repr(error),
            where=layout.SOLUTION,
            remedy="run `streamsparse solve` again",
        ) from error


def _generation(solution: Solution, weights: Weights) -> str:
    """Identity of a solution and its weights."""
    identity = hashlib.sha256(json.dumps(asdict(solution), sort_keys=True).encode())
    for layer in sorted(weights):
        for array in weights[layer]:
            identity.update(layer.encode() + (b"" if array is None else np.ascontiguousarray(array).tobytes()))
    return identity.hexdigest()[:16]
