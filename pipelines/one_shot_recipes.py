"""What `pipelines.one_shot` compares: for every row, which channels, how many where, and which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Selected = ("l1", "l2", "random", "bn-scale")
OUTSIDE: Final = "torch-pruning"


class NotComparableError(Exception):
    """Why there is no such row: a tool that is not installed, or a network without what it ranks by."""


@dataclass(frozen=True)
class Recipe:
    """One row of the table.

    Attributes:
        name: on the command line and in the table.
        text: what it is, in the table.
        channels: "entropic" (along the paper's path), "best" (of all methods' supports), "l1" or "l2" (norm of the
            producers' filters), "random", "bn-scale" (|γ| of the BatchNorms behind), or "torch-pruning ...".
        allocation: "error" (least sum of relative errors along the paper's path), "held-out" (of those of all
            methods), "loss" (least predicted divergence: measured by cutting each group alone), "fisher" (the same,
            predicted from gradients), "measured" (from least loss on to the least measured divergence, see
            `streamsparse.improvement`), "global" (their own score, relative to its mean in the group, against one
            threshold), or "own" of another tool.
        weights: "original" (as they are, the channels cut), "scaled" (the paper's ΛD(w)), "independent" (exact, on
            the statistics of the original), "sequential" (exact, in order, in the study's number of passes) or
            "by-layer" (exact, in order, one pass for each layer).
        recalibrated: whether the running statistics of BatchNorm are estimated anew.
    """

    name: str
    text: str
    channels: str
    allocation: str
    weights: str
    recalibrated: bool = False

    @property
    def on_all_images(self) -> bool:
        """Whether tenths of a point matter."""
        return self.name in ("full", "by-layer", "improved")


def _recipes() -> tuple[Recipe, ...]:
    ours = [
        Recipe("paper", "the paper's: entropic channels, weights ΛD(w)", "entropic", "error", "scaled"),
        Recipe("refit", "+ exact refit", "entropic", "error", "independent"),
        Recipe("sequential", "+ in order", "entropic", "error", "sequential"),
        Recipe("recalibrated", "+ BatchNorm recalibration", "entropic", "error", "sequential", True),
        Recipe("allocated", "+ allocation by predicted loss", "entropic", "loss", "sequential", True),
        Recipe("full-recalibrated", "+ best channels of all methods", "best", "loss", "sequential", True),
        Recipe("full", "best channels, allocation by predicted loss, in order", "best", "loss", "sequential"),
        Recipe(
            "by-layer", "ours: best channels, least predicted loss, one pass per layer", "best", "loss", "by-layer"
        ),
        Recipe("full-independent", "ours, but not in order", "best", "loss", "independent"),
        Recipe(
            "improved-independent", "independent, allocation by measured loss", "best", "measured", "independent"
        ),
        Recipe("improved", "ours, allocation by measured loss", "best", "measured", "sequential"),
        Recipe(
            "fisher-independent", "independent, allocation by Fisher information", "best", "fisher", "independent"
        ),
        Recipe("error-independent", "independent, allocation by held-out error", "best", "held-out", "independent"),
        Recipe("independent-recalibrated", "independent, recalibrated", "best", "loss", "independent", True),
    ]
    same = [
        Recipe(f"{by}{suffix}", f"{by} at our counts, {text}", by, "loss", weights)
        for by in Selected
        for suffix, text, weights in (("", "as they are", "original"), ("-refit", "exact refit", "independent"))
    ]
    ranked = [
        Recipe(f"{by}-global{suffix}", f"{by}, one threshold, {text}", by, "global", weights)
        for by in ("l1", "l2")
        for suffix, text, weights in (("", "as they are", "original"), ("-refit", "exact refit", "independent"))
    ]
    outside = [
        Recipe(f"{OUTSIDE}-{by}{suffix}", f"Torch-Pruning, {by}, {text}", f"{OUTSIDE} {by} {reach}", "own", "own")
        for by in ("magnitude", "taylor")
        for suffix, text, reach in (("", "global", "global"), ("-uniform", "uniform", "uniform"))
    ]
    return (*ours, *same, *ranked, *outside)


RECIPES: Final = {recipe.name: recipe for recipe in _recipes()}
