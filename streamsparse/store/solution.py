"""The committed solution of a run: a plan, and the weights that belong to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import numpy as np

from streamsparse.errors import CorruptDataError, StageMissingError
from streamsparse.store import layout
from streamsparse.store.run import Run
from streamsparse.types import LayerError, PrunePlan, Solution

Weights = dict[str, tuple[np.ndarray, np.ndarray | None]]
"""By layer: weight of the layer's own shape, and bias or None; float64."""


def commit_solution(run: Run, solution: Solution, weights: Weights) -> None:
    """Store the plan and the weights, and last the document that makes them count."""
    run.documents.delete_key(layout.REFIT)
    run.documents.delete("solution/weights")
    run.documents.write_json(layout.SOLUTION_PLAN, solution.plan.to_json())
    for layer, (weight, bias) in weights.items():
        arrays = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        run.records.write(layout.weights_key(layer), {"layer": layer}, arrays)
    document = {
        "plan": plan_digest(solution.plan),
        "mode": solution.mode,
        "layers": [asdict(error) for error in solution.layers],
    }
    run.documents.write_json(layout.REFIT, document)


def read_solution(run: Run) -> Solution:
    """The committed solution.

    Raises:
        StageMissingError: there is none, or its weights belong to another plan.
    """
    found, refit = run.documents.read_json(layout.SOLUTION_PLAN), run.documents.read_json(layout.REFIT)
    plan = None if found is None else PrunePlan.from_json(found)
    if plan is None or refit is None or refit["plan"] != plan_digest(plan):
        raise StageMissingError(
            "This run holds no finished solution.",
            expected="a plan and the weights that belong to it",
            got="nothing" if plan is None else "a plan without its weights",
            where=run.url,
            remedy="run `streamsparse solve` (again)",
        )
    return Solution(plan, tuple(LayerError(**error) for error in refit["layers"]), refit["mode"])


def read_weights(run: Run, solution: Solution) -> Weights:
    """The weights of every re-estimated layer.

    Raises:
        CorruptDataError: some are missing or damaged.
    """
    weights: Weights = {}
    for error in solution.layers:
        record = run.records.read(layout.weights_key(error.layer))
        if record is None:
            raise CorruptDataError(
                "Weights of the solution are missing.",
                expected=f"the weights of layer '{error.layer}'",
                got="nothing",
                where=layout.weights_key(error.layer),
                remedy="run `streamsparse solve` again",
            )
        weights[error.layer] = (record.arrays["weight"], record.arrays.get("bias"))
    return weights


def plan_digest(plan: PrunePlan) -> str:
    """SHA-256 of the plan."""
    return hashlib.sha256(json.dumps(plan.to_json(), sort_keys=True).encode()).hexdigest()
