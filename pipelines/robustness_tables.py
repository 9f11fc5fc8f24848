"""What `pipelines.robustness` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.cifar_tables import machine
from pipelines.lenet_tables import environment, percent


def rows_of(models: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A heading row, then two rows for each pruned network (white-box and transfer), one for the original."""
    attacks = list(models[0]["white_box"])
    rows = [("network", "parameters", "sparsity", "gradients of", "accuracy", *attacks)]
    for model in models:
        about = (model["name"], f"{model['parameters']:,}", percent(model["sparsity"]))
        for source, shares in (("itself", model["white_box"]), ("the original", model["transfer"])):
            if shares is not None:
                rows.append((*about, source, percent(model["accuracy"]), *(percent(shares[a]) for a in attacks)))
    return rows


def page(summary: dict[str, Any], typed: str) -> str:
    """The table, with what it takes to repeat it."""
    about, rows = environment(), rows_of(summary["models"])
    rows.insert(1, ("---", *("---:",) * (len(rows[0]) - 1)))
    lines = [
        f"# Robustness of {summary['title']}, by sparsity",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"Accuracy on {summary['images']:,} test images. Attacks in the maximum norm, untargeted; the number is "
        f"ε, in units of 1/255 of a pixel's range. FGSM: one step. PGD: {summary['steps']} steps of "
        f"{summary['step']}, from a random start. Grey images stay grey.",
        "",
        f"Measured {about['date']} on {machine(summary['device'])}; torch {about['versions']['torch']}; "
        f"{summary['seconds']['attack']:.0f} s.",
        "",
        f"    {typed}",
    ]
    return "\n".join(lines) + "\n"
