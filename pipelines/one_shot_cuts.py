"""The rows of `pipelines.one_shot`: from a recipe and a sparsity to a pruned network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipelines.one_shot_bench import SETTINGS, Bench
from pipelines.one_shot_recipes import NotComparableError, Recipe
from streamsparse.kernels.entropic_path import PathPoint
from streamsparse.kernels.entropic_steps import weight_step
from streamsparse.kernels.folds import FoldSums, total
from streamsparse.network import prune
from streamsparse.network.refitting import with_weights
from streamsparse.network.resize import stored_tensors
from streamsparse.recalibration import recalibrated_statistics
from streamsparse.sequential import refit
from streamsparse.solve import kept_inputs
from streamsparse.solve.budget import Budget, allocate
from streamsparse.solve.problems import group_problem, layer_moments, position_columns
from streamsparse.solve.stage import refit_layers
from streamsparse.store.solution import Weights, commit_solution, read_weights
from streamsparse.store.statistics import Statistics
from streamsparse.types import ChannelGroup, PrunePlan, Role, Solution

Keep = dict[str, tuple[int, ...]]
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
            name: tuple(sorted(_point(path.points, counts[name]).ranking[: counts[name]].tolist()))
            for name, path in bench.paths.items()
        }
    found = scores(bench, recipe.channels, seed)
    return {name: tuple(sorted(np.argsort(-found[name])[:count].tolist())) for name, count in counts.items()}


def counts_of(bench: Bench, allocation: str, sparsity: float) -> dict[str, int]:
    """Channels per group of least predicted loss or relative error."""
    curves = bench.losses if allocation == "loss" else {name: bench.entropic_errors(name) for name in bench.fronts}
    return allocate(Budget("params", 1 - sparsity), curves, bench.captured.costs)


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


def _point(points: tuple[PathPoint, ...], count: int) -> PathPoint:
    """The point of the walk with the fewest channels that are still enough, else that with the most."""
    enough = [point for point in points if len(point.support) >= count]
    if enough:
        return min(enough, key=lambda point: len(point.support))
    return max(points, key=lambda point: len(point.support))


def _weights(bench: Bench, recipe: Recipe, keep: Keep) -> Weights:
    """As the recipe says; rows that follow one another and differ in recalibration alone share them."""
    identity = (recipe.weights, tuple(keep.items()))
    if bench.memory.get("identity") != identity:
        bench.memory.update(identity=identity, weights=_found_weights(bench, recipe, keep))
    found: Weights = bench.memory["weights"]
    return found


def _found_weights(bench: Bench, recipe: Recipe, keep: Keep) -> Weights:
    if recipe.weights == "original":
        return {}
    if recipe.weights == "scaled":
        return scaled_weights(bench, keep)
    graph = bench.captured.graph
    if recipe.weights == "sequential":
        return _sequential(bench, keep)
    inputs = kept_inputs(graph, keep)
    layers = [layer for layer, kept in inputs.items() if len(kept) < graph.layers[layer].in_channels]
    refitted = refit_layers(bench.captured, Statistics(bench.run), layers, inputs)
    return {layer.layer: (layer.weight, layer.bias) for layer in refitted}


def _sequential(bench: Bench, keep: Keep) -> Weights:
    """Refitted in order: the run's solution becomes this plan."""
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
        bench.run, subjects.calibration, model=subjects.model, stages=bench.stages, settings=SETTINGS
    )  # fmt: skip
    return read_weights(bench.run, solution)


def scaled_weights(bench: Bench, keep: Keep) -> Weights:
    """Q = ΛD(w) of the path's point, without another fit; the bias is exact for it.

    Where no point has exactly so many channels, those of least weight leave the next larger point, and one W-step
    at its ε_L2 follows.
    """
    statistics, graph = Statistics(bench.run), bench.captured.graph
    weights: Weights = {}
    for name, kept in keep.items():
        group = graph.group(name)
        problem = group_problem(group, graph.layers, statistics)
        point = _point(bench.paths[name].points, len(kept))
        w = np.zeros(group.size)
        w[list(kept)] = np.maximum(point.w[list(kept)], point.w[point.w > 0].min())
        w /= w.sum()
        for consumer, regression, scaled in zip(
            group.consumers, problem, weight_step(problem, w, point.eps_l2), strict=True
        ):
            geometry = graph.layers[consumer.layer]
            flat = np.zeros((geometry.out_channels, geometry.columns))
            flat[:, position_columns(consumer, geometry).ravel()] = scaled * np.repeat(w, regression.taps)
            shape = (geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel)
            bias = _exact_bias(flat, statistics[consumer.layer]) if geometry.bias else None
            weights[consumer.layer] = (flat.reshape(shape), bias)
    return weights


def _exact_bias(weights: np.ndarray, sums: FoldSums) -> np.ndarray:
    """ȳ − Q x̄, (outputs,)."""
    found = layer_moments(total(sums), bias=True)
    return np.asarray(found.mean_y[0] - weights @ found.mean_x[0])
