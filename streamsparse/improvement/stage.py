"""Improvement: move channels between groups while the loss of the whole cut network, measured, comes down.

The sum over groups, each cut alone, predicts a mild cut well; where most channels go, the groups' errors meet, and
the sum of relative errors, which treats all layers alike, is as good a guide. So begin with the best of some plans
between both, and look around it, with all the others cut as they are:

    begin least Σ D_g¹⁻ˢ e_g ˢ    for s of BLENDS; D_g predicted loss, e_g held-out error  one pass for each
    plan  k = (4, 4, 45, 19)     measured loss D(k)
    looks every group a step down and a step up, D(k − s), D(k + s)                   two passes per group
    fit   each group's predicted curve, scaled on either side to what was measured    no pass
          there, or where it is flat a straight line to that
    next  the budget spent anew by the fitted curves, no group beyond its looks       one pass: kept if D falls,
                                                                                      else half the steps

A few images make the most of a divergence, so what differs on these images may not on others. All networks are
measured on the same ones; a plan is better if the mean of its differences, image by image, is below 0 by two of
its standard errors; and a scale is its posterior mean, between what its look says and what all looks say together,
the nearer to the latter the less it can be told from noise.

Weights are refits from the statistics, each layer on the inputs that stay: nothing is captured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from streamsparse.errors import UsageError
from streamsparse.events import Notice, OnEvent, ignore, reporting
from streamsparse.improvement.bench import Bench, Counts
from streamsparse.improvement.noise import SURE, Change, Curves, fitted_curves, is_better
from streamsparse.intake.captured import original_model, read_captured
from streamsparse.network.replay import record
from streamsparse.sensitivity import measuring_images
from streamsparse.solve import Constraints, GroupFront, SolveSettings, parse_budget
from streamsparse.solve.decision import Decision
from streamsparse.solve.measured import front_identity
from streamsparse.solve.stage import commit_plan, decide
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from streamsparse.store.timings import recorded
from streamsparse.types import PrunePlan, Solution

DEFAULT_IMAGES = 1024
"""With these the difference of two plans is known to 4 to 7 % of the loss (ResNet-18 at 85 % sparsity)."""
DEFAULT_ROUNDS = 8
STEP = 0.3
"""Of a group's count, in the first round."""
SMALLEST_STEP = 0.02
BLENDS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the held-out errors in the curves that further plans are begun from."""
_LEAST = 1e-12  # of losses and errors: round-off
_NONE = Change(0.0, 0.0)


@dataclass(frozen=True)
class Improved:
    """What was found.

    Attributes:
        solution: committed; its plan has `measured_loss`.
        losses: measured, of the plan that `solve` makes and of every better one after it, falling.
        looks: networks that were measured; those that an earlier call left are not counted.
    """

    solution: Solution
    losses: tuple[float, ...]
    looks: int


def improve(
    run: Run | str | Path,
    data: object,
    *,
    budget: str,
    model: nn.Module | None = None,
    constraints: Constraints | None = None,
    settings: SolveSettings | None = None,
    rounds: int = DEFAULT_ROUNDS,
    images: int = DEFAULT_IMAGES,
    batch_images: int = 64,
    device: str = "cpu",
    on_event: OnEvent = ignore,
) -> Improved:
    """`solve` for this budget, then spend it better, measuring the cut network on images without labels.

    Args:
        run: with complete statistics; losses that `measure_sensitivities` measured say where to look first.
        data: the data set of the capture; images that the capture did not sample are taken if there are so many.
        budget: of parameters, MACs, bytes or latency, see `parse_budget`.
        model: the original; None builds it as the manifest says.
        constraints, settings: as for `solve`.
        rounds: at most, after the plans to begin from; it ends before when smaller steps do not help either.
        images: to measure on.
        batch_images: per forward pass.
        device: of the passes.

    Raises:
        StageMissingError, UsageError, BudgetError: as for `solve`; a budget that bounds an error or a loss.
        RunMismatchError: other data or another model than the capture's.
        ModelError: the model's output is not one tensor.
    """
    _check(budget, rounds, images)
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    original = original_model(run, model).to(device)
    sample, unseen = measuring_images(run, captured, data, images)
    if not unseen:
        on_event(Notice("improve", f"too few unseen images: {len(sample)} of the calibration sample are used"))
    with run.lock():
        decision = decide(
            run, captured, budget, constraints or Constraints(), settings or SolveSettings(), on_event
        )
        spans = [range(i, min(i + batch_images, len(sample))) for i in range(0, len(sample), batch_images)]
        batches: list[Tensor] = [batch.to(device) for batch in sample.batches(spans)]
        statistics = Statistics(run).require(captured.manifest["layers"])
        bench = Bench(
            captured, statistics, original, decision.fronts, record(original, {}, batches), run,
            _digest(decision.fronts, sample.digest(), captured.manifest["model"]),
        )  # fmt: skip
        with recorded(run, "improve", on_event) as on_event:
            plan, losses = _descend(bench, decision, rounds, on_event)
        solution = commit_plan(run, captured, plan, on_event)
    return Improved(solution, tuple(losses), bench.looks)


def _check(budget: str, rounds: int, images: int) -> None:
    if not parse_budget(budget).bounds_cost:
        raise UsageError(
            "A budget that bounds a loss is not spent better by measuring it.",
            expected="a bound on parameters, MACs, bytes or latency", got=budget, where="--budget",
            remedy="use `solve` for it, and `improve` for the parameters or MACs that it found",
        )  # fmt: skip
    if min(rounds, images) < 1:
        raise UsageError("Nothing can be improved so.", expected="at least one round and one image",
                         got=f"{rounds} rounds, {images} images")  # fmt: skip


def _digest(fronts: Mapping[str, GroupFront], images: str, model: object) -> str:
    """Of everything that a measured loss depends on but the counts."""
    parts = [images, json.dumps(model, sort_keys=True), *(front_identity(fronts[name]) for name in sorted(fronts))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass
class _Best:
    """The best plan so far (mutable).

    Attributes:
        counts: of it; curves: those that it was begun from.
        losses: of it, on every image.
        means: of its losses and those of the plans that were the best before it, falling.
        missed: to the plan with the least loss of those that were no better.
    """

    counts: Counts
    curves: Curves
    losses: np.ndarray
    means: list[float]
    missed: Change = _NONE

    def take(self, counts: Counts, curves: Curves, losses: np.ndarray) -> bool:
        """If it is better; whether it is."""
        better = is_better(self.losses, losses)
        if better:
            self.counts, self.curves, self.losses, self.missed = counts, curves, losses, _NONE
            self.means.append(float(losses.mean()))
        else:
            self.missed = min(self.missed, Change.of(self.losses, losses), key=lambda change: change.mean)
        return better

    def told(self, looks: int) -> list[Notice]:
        """What came of it."""
        gained = f"measured loss {self.means[0]:.4g} → {self.means[-1]:.4g}"
        said = [f"{gained if self.means[1:] else 'no better plan was found'}, {looks} networks tried"]
        if 0 < -self.missed.mean < SURE * self.missed.error:
            said.append(
                f"passed over: a plan that loses {-self.missed.mean:.2g} ± {self.missed.error:.2g} less; "
                f"more --images than {len(self.losses):,} could tell that from noise"
            )
        return [Notice("improve", message) for message in said]


def _descend(bench: Bench, decision: Decision, rounds: int, on_event: OnEvent) -> tuple[PrunePlan, list[float]]:
    """The best plan that was found, and the losses on the way."""
    step, (start, *others) = STEP, _starts(decision)
    with reporting("improve", rounds + 1 + len(others), "rounds", on_event) as advance:
        losses = bench.loss(start[0])
        best = _Best(*start, losses, [float(losses.mean())])
        advance(1)
        for counts, curves in others:
            best.take(counts, curves, bench.loss(counts))
            advance(1)
        for number in range(rounds):
            looks = _looks(best.counts, step, decision.allowed)
            within, seen = _within(best.counts, looks), bench.around(best.counts, looks)[1]
            changes = {look: Change.of(best.losses, own) for look, own in zip(looks, seen, strict=True)}
            fitted = fitted_curves(best.curves, best.counts, changes)
            counts = decision.plan(losses=fitted, within=within).counts
            better = best.take(counts, best.curves, bench.loss(counts))
            advance(1)
            if not better:
                step = _smaller(step, best.counts, decision.allowed)
                if step < SMALLEST_STEP:
                    advance(rounds - number - 1)
                    break
    for notice in best.told(bench.looks):
        on_event(notice)
    return replace(decision.plan(best.counts), measured_loss=best.means[-1]), best.means


def _starts(decision: Decision) -> list[tuple[Counts, Curves]]:
    """Distinct plans, that of `solve` first, each with the curves whose sum it makes least."""
    starts: list[tuple[Counts, Curves]] = [(decision.plan().counts, decision.losses)]
    for share in BLENDS:
        curves = {
            name: _blended(decision.losses[name], front.held_out, share) for name, front in decision.fronts.items()
        }
        counts = decision.plan(losses=curves).counts
        if all(counts != other for other, _ in starts):
            starts.append((counts, curves))
    return starts


def _blended(losses: np.ndarray, errors: np.ndarray, share: float) -> np.ndarray:
    """A geometric mean by count, which no factor common to all groups changes; 0 for the whole group."""
    curve = np.maximum(losses, _LEAST) ** (1 - share) * np.maximum(errors, _LEAST) ** share
    curve[-1] = 0.0
    return np.asarray(curve)


def _looks(counts: Counts, step: float, allowed: Mapping[str, np.ndarray]) -> list[tuple[str, int]]:
    """The nearest allowed counts at least a step away, or the last, on either side of every group."""
    looks = []
    for name, count in counts.items():
        own, size = allowed[name], max(1, round(step * count))
        below, above = own[own < count], own[own > count]
        if below.size:
            far = below[below <= count - size]
            looks.append((name, int(far[-1] if far.size else below[0])))
        if above.size:
            far = above[above >= count + size]
            looks.append((name, int(far[0] if far.size else above[-1])))
    return looks


def _smaller(step: float, counts: Counts, allowed: Mapping[str, np.ndarray]) -> float:
    """The first of step / 2, step / 4, ... that looks elsewhere; below `SMALLEST_STEP` if none does."""
    before = _looks(counts, step, allowed)
    step /= 2
    while step >= SMALLEST_STEP and _looks(counts, step, allowed) == before:
        step /= 2
    return step


def _within(counts: Counts, looks: Sequence[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """Least and greatest count of every group, its looks included."""
    reach = {name: [count] for name, count in counts.items()}
    for name, count in looks:
        reach[name].append(count)
    return {name: (min(own), max(own)) for name, own in reach.items()}
