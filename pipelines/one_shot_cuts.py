"""The rows of `pipelines.one_shot`: from a recipe and a sparsity to a pruned network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipelines.one_shot_bench import SETTINGS, Bench, fisher_losses
from pipelines.one_shot_recipes import NotComparableError, Recipe
from pipelines.one_shot_weights import Wanted, point_of, weights_of, whole
from streamsparse.improvement import improve
from streamsparse.network import prune
from streamsparse.network.refitting import with_weights
from streamsparse.network.resize import stored_tensors
from streamsparse.recalibration import recalibrated_statistics
from streamsparse.sequential import refit
from streamsparse.solve.budget import Budget, allocate
from streamsparse.store.solution import Weights, commit_solution, read_weights
from streamsparse.types import ChannelGroup, PrunePlan, Role, Solution

Keep = dict[str, tuple[int, ...]]
IMPROVE_ROUNDS = 4
_NORMS = {"l1": 1, "l2": 2}


@dataclass(frozen=True, eq=False)
class Cut:
    """A pruned network.

    Attributes:
        model: the network.
        counts: channels kept, by group; empty where another tool cut.
    """

    model: nn.Module
    counts: dict[str, int]


def cut(bench: Bench, recipe: Recipe, sparsity: float, seed: int) -> Cut:
    """The network that the recipe makes at this sparsity: at most that fraction of the parameters stays."""
    keep = chosen(bench, recipe, sparsity, seed)
    weights = _weights(bench, recipe, keep)
    twin, graph = with_weights(bench.subjects.model, weights), bench.captured.graph
    if recipe.recalibrated:
        buffers = recalibrated_statistics(twin, graph, keep, bench.images)
        twin = with_weights(twin, {}, buffers)
    return Cut(prune(twin, graph, keep), {name: len(kept) for name, kept in keep.items()})


def chosen(bench: Bench, recipe: Recipe, sparsity: float, seed: int) -> Keep:
    """Positions that stay, by group."""
    if recipe.allocation == "global":
        return _above_threshold(bench, scores(bench, recipe.channels, seed), sparsity)
    counts = counts_of(bench, recipe.allocation, sparsity)
    if recipe.channels == "best":
        return {name: tuple(front.front.supports[counts[name]].tolist()) for name, front in bench.fronts.items()}
    if recipe.channels == "entropic":
        return {
            name: tuple(sorted(point_of(path.points, counts[name]).ranking[: counts[name]].tolist()))
            for name, path in bench.paths.items()
        }
    found = scores(bench, recipe.channels, seed)
    return {name: tuple(sorted(np.argsort(-found[name])[:count].tolist())) for name, count in counts.items()}


def counts_of(bench: Bench, allocation: str, sparsity: float) -> dict[str, int]:
    """Channels per group of least predicted loss or relative error, or of least measured loss."""
    if allocation == "measured":
        return _improved(bench, sparsity)
    return allocate(Budget("params", 1 - sparsity), _curves(bench, allocation), bench.captured.costs)


def _curves(bench: Bench, allocation: str) -> dict[str, np.ndarray]:
    """What an allocation adds up, by group and count."""
    if allocation == "loss":
        return bench.losses
    if allocation == "fisher":
        return fisher_losses(bench)
    if allocation == "held-out":
        return {name: front.held_out for name, front in bench.fronts.items()}
    return {name: bench.entropic_errors(name) for name in bench.fronts}


def _improved(bench: Bench, sparsity: float) -> dict[str, int]:
    """Measured once for each sparsity; what an earlier call measured lies in the run."""
    name = f"improved {sparsity}"
    if name not in bench.memory:
        found = improve(
            bench.run, bench.subjects.calibration, model=bench.subjects.model, budget=f"sparsity={sparsity}",
            rounds=IMPROVE_ROUNDS, on_event=bench.on_event,
        )  # fmt: skip
        bench.memory[name] = found.solution.plan.counts
    counts: dict[str, int] = bench.memory[name]
    return counts


def scores(bench: Bench, by: str, seed: int) -> dict[str, np.ndarray]:
    """The importance of every position, by group."""
    groups = {name: bench.captured.graph.group(name) for name in bench.fronts}
    if by == "random":
        generator = np.random.default_rng(seed)
        return {name: generator.permutation(group.size).astype(np.float64) for name, group in groups.items()}
    tensors = stored_tensors(bench.subjects.model)
    norms = _norms(bench.subjects.model)
    return {name: _score(group, tensors, norms, by) for name, group in groups.items()}


def _norms(model: nn.Module) -> set[str]:
    """Keys of the scales of BatchNorms."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def _score(group: ChannelGroup, tensors: Mapping[str, torch.Tensor], norms: set[str], by: str) -> np.ndarray:
    """Over all producers of the group (several for a residual stream), or all BatchNorms that its channels pass."""
    scaling = by == "bn-scale"
    role = Role.PASS_THROUGH if scaling else Role.PRODUCER
    power = 1 if scaling else _NORMS[by]
    total = np.zeros(group.size)
    for part in group.slices:
        if part.role is role and part.tensor.endswith(".weight") and (part.tensor in norms or not scaling):
            entries = tensors[part.tensor].detach().double().abs().pow(power).movedim(part.dim, 0)
            rows = entries.reshape(len(entries), -1).sum(1)
            total += np.array([float(rows[list(own)].sum()) for own in part.index])
    if not total.any():
        raise NotComparableError(f"{by}: group '{group.name}' has no such scores")
    return np.asarray(total ** (1 / power))


def _above_threshold(bench: Bench, found: Mapping[str, np.ndarray], sparsity: float) -> Keep:
    """One threshold on scores relative to their group's mean, by bisection; the best of a group always stays."""
    relative = {name: score / score.mean() for name, score in found.items()}
    costs = bench.captured.costs
    limit = (1 - sparsity) * costs.parameters({})
    candidates = np.unique(np.concatenate(list(relative.values())))

    def keep(threshold: float) -> Keep:
        return {
            name: tuple(np.flatnonzero(score >= min(threshold, score.max())).tolist())
            for name, score in relative.items()
        }

    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if costs.costs_of_keep(keep(candidates[middle])).parameters <= limit:
            high = middle
        else:
            low = middle + 1
    return keep(candidates[high])


def from_statistics(bench: Bench, wanted: Sequence[tuple[Recipe, float]], seed: int) -> None:
    """Find the weights of all these rows that come from the original's statistics alone, in one reading of them."""
    plans: dict[str, Wanted] = {}
    for recipe, sparsity in wanted:
        if recipe.weights in ("scaled", "independent"):
            with suppress(NotComparableError):  # `cut` will say so
                keep = chosen(bench, recipe, sparsity, seed)
                name = _identity(recipe, keep)
                plans[name] = Wanted(name, keep, recipe.weights == "scaled")
    _find(bench, [plan for plan in plans.values() if plan.name not in bench.memory])


def _find(bench: Bench, todo: Sequence[Wanted]) -> None:
    scaled = any(plan.scaled for plan in todo)
    paths = {name: path.points for name, path in bench.paths.items()} if scaled else {}
    if todo:
        with bench.clock.timing("refits from statistics"):
            bench.memory.update(weights_of(bench.run, bench.captured, todo, paths, bench.on_event))


def _identity(recipe: Recipe, keep: Keep) -> str:
    """Of the weights: recalibration does not change them."""
    return f"{recipe.weights} {sorted(keep.items())}"


def _weights(bench: Bench, recipe: Recipe, keep: Keep) -> Weights:
    if recipe.weights == "original":
        return {}
    name = _identity(recipe, keep)
    if recipe.weights in ("sequential", "by-layer"):
        if bench.memory.get("sequential") != name:  # rows that follow one another share them
            stages = bench.stages if recipe.weights == "sequential" else None
            bench.memory.update({"sequential": name, "weights": _sequential(bench, keep, stages)})
        found: Weights = bench.memory["weights"]
        return found
    if name not in bench.memory:
        _find(bench, [Wanted(name, keep, recipe.weights == "scaled")])
    return whole(bench.memory[name], bench.captured)


def _sequential(bench: Bench, keep: Keep, stages: int | None) -> Weights:
    """Refitted in order, in so many passes or one per layer: the run's solution becomes this plan."""
    costs = bench.captured.costs
    plan = PrunePlan(
        keep=keep,
        sizes={name: front.front.positions for name, front in bench.fronts.items()},
        predicted_errors={name: float(front.held_out[len(keep[name])]) for name, front in bench.fronts.items()},
        methods=dict.fromkeys(keep, "pipeline"),
        costs=costs.costs_of_keep(keep),
        original_costs=costs.costs({}),
        budget=None,
    )
    with bench.run.lock():
        commit_solution(bench.run, Solution(plan, (), "independent"), {})
    subjects = bench.subjects
    solution = refit(
        bench.run, subjects.calibration, model=subjects.model, stages=stages, settings=SETTINGS,
        on_event=bench.on_event,
    )  # fmt: skip
    return read_weights(bench.run, solution)
