"""What a run knows of the loss that cutting each group means; `streamsparse.sensitivity` measures it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamsparse.events import Notice, OnEvent, ignore
from streamsparse.solve.fronts import GroupFront
from streamsparse.solve.losses import predicted_losses
from streamsparse.solve.plan import ERROR
from streamsparse.store import Run
from streamsparse.store.sensitivities import read_sensitivity, sensitivity_request
from streamsparse.types import Sensitivity


def read_sensitivities(run: Run, fronts: Mapping[str, GroupFront]) -> dict[str, Sensitivity] | None:
    """What was measured last for exactly these fronts, by group; None if there is nothing.

    Raises:
        CorruptDataError: a document is damaged.
    """
    request = sensitivity_request(run)
    return (found_sensitivities(run, fronts, request) or None) if request is not None else None


def found_sensitivities(
    run: Run, fronts: Mapping[str, GroupFront], request: dict[str, Any]
) -> dict[str, Sensitivity]:
    """Committed for these fronts and this request, if it is the last."""
    last = sensitivity_request(run)
    if last is None or not request.items() <= last.items():
        return {}
    found = {name: read_sensitivity(run, name, front_identity(front), last) for name, front in fronts.items()}
    return {name: one for name, one in found.items() if one is not None}


def front_identity(front: GroupFront) -> str:
    """SHA-256 of everything that a sensitivity depends on."""
    identity = hashlib.sha256(front.group.encode())
    for array in (*front.front.supports, front.held_out):
        identity.update(np.ascontiguousarray(array).tobytes())
    return identity.hexdigest()


def known_losses(
    run: Run, fronts: Mapping[str, GroupFront], on_event: OnEvent = ignore
) -> tuple[dict[str, np.ndarray], str]:
    """Predicted losses by group and count, (positions + 1,), and their kind, see `PrunePlan.loss_kind`.

    Where sensitivities of some groups are missing, the held-out errors stand in for all: their units differ.
    """
    found = read_sensitivities(run, fronts) or {}
    request = sensitivity_request(run)
    if request is not None and fronts and found.keys() >= fronts.keys():
        return predicted_losses(fronts, found), str(request["measure"])
    on_event(
        Notice(
            "solve",
            f"what cutting a group does to the output was measured for {len(found)} of {len(fronts)} groups, so "
            "the sum of the groups' relative errors is minimised; measure it with "
            f"`streamsparse sensitivity {run.url}`, and the same budget is spent where the output suffers least",
        )
    )
    return predicted_losses(fronts, None), ERROR


def transferred_losses(losses: np.ndarray, errors: np.ndarray, other_errors: np.ndarray) -> np.ndarray:
    """The losses of another front of the same group: those that go with its held-out errors.

    Read from the curve of loss over error, in logarithms; below its least error in proportion to the error.

    Args:
        losses, errors: of the measured front by count, (positions + 1,).
        other_errors: of the other front, (positions + 1,).

    Returns:
        (positions + 1,), nonincreasing, with the measured front's loss at all positions.
    """
    least = 1e-12  # of errors and losses: round-off
    order = np.argsort(errors[:-1], kind="stable")
    at = np.log(np.maximum(errors[:-1][order], least))
    drawn = np.log(np.maximum(np.maximum.accumulate(losses[:-1][order]), least))
    wanted = np.log(np.maximum(other_errors, least))
    found = np.exp(np.interp(wanted, at, drawn) + np.minimum(wanted - at[0], 0))
    found[-1] = losses[-1]
    falling: np.ndarray = np.maximum.accumulate(found[::-1])[::-1]
    return falling
