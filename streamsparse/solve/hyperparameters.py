"""Search over the hyperparameters of sparse entropic regression by held-out error: a call on statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamsparse.errors import UsageError
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.least_squares import DEFAULT_RIDGE
from streamsparse.kernels.regression import safe_ridge, support_error
from streamsparse.kernels.settings import Setting, grid_settings, random_settings, solve_settings
from streamsparse.solve.problems import Statistics, group_problem
from streamsparse.solve.threads import blas_threads
from streamsparse.solve.validation import cross_validated
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics as StoredStatistics
from streamsparse.types import ChannelGroup, LayerGeometry

SAMPLINGS = ("grid", "random")


@dataclass(frozen=True, eq=False)
class Trial:
    """What one setting gives.

    Attributes:
        eps_l2, eps_h: the hyperparameters, free of units.
        support: sorted positions: those with w > 0, or the count that was asked for.
        training_error, held_out_error: relative errors of the exact refit on that support.
    """

    eps_l2: float
    eps_h: float
    support: np.ndarray
    training_error: float
    held_out_error: float

    @property
    def kept(self) -> int:
        """Size of the support."""
        return len(self.support)


@dataclass(frozen=True, eq=False)
class Search:
    """All trials of one search.

    Attributes:
        group: name.
        trials: in the order of the settings.
        supports: how many different supports they gave; each was validated once.
        w_steps: W-steps that all alternations took.
    """

    group: str
    trials: tuple[Trial, ...]
    supports: int
    w_steps: int

    def best(self, most_kept: int | None = None) -> Trial:
        """The trial of least held-out error among those that keep at most so many positions; ties to the smaller.

        Raises:
            UsageError: no trial keeps so few.
        """
        fitting = [trial for trial in self.trials if most_kept is None or trial.kept <= most_kept]
        if not fitting:
            raise UsageError(
                "No setting gave so few positions.",
                expected=f"at least {min(trial.kept for trial in self.trials)}",
                got=most_kept,
                remedy="ask for the count in the search itself",
            )
        return min(fitting, key=lambda trial: (trial.held_out_error, trial.kept))

    def curve(self) -> list[Trial]:
        """The best trial of every size that occurs and is better than all smaller ones, by size."""
        front: list[Trial] = []
        for trial in sorted(self.trials, key=lambda each: (each.kept, each.held_out_error)):
            if not front or trial.held_out_error < front[-1].held_out_error:
                front.append(trial)
        return front


def hyperparameter_search(
    run: Run | str | Path,
    group: str,
    *,
    number: int = 1000,
    sampling: str = "grid",
    seed: int = 0,
    count: int | None = None,
) -> Search:
    """Try many settings of (ε_L2, ε_H) on one channel group of a run.

    Args:
        run: with complete statistics.
        group: name of the channel group, as `streamsparse inspect` lists it.
        number: of settings, at most.
        sampling: "grid" or "random" (log-uniform).
        seed: of random settings.
        count: positions that every trial keeps, by rank; None takes each setting's own support.

    Raises:
        StageMissingError: the statistics are not complete.
        UsageError: no such group or sampling, or a count out of range.
    """
    if sampling not in SAMPLINGS:
        raise UsageError("There is no such sampling.", expected=" | ".join(SAMPLINGS), got=sampling)
    settings = grid_settings(number) if sampling == "grid" else random_settings(number, seed)
    run = run if isinstance(run, Run) else Run.at(run)
    captured = read_captured(run)
    by_name = {each.name: each for each in captured.graph.groups}
    if group not in by_name:
        raise UsageError("There is no such channel group.", expected=", ".join(by_name), got=group, where=run.url)
    layers = [consumer.layer for consumer in by_name[group].consumers]
    stored = StoredStatistics(run).require(layers)
    statistics = {layer: stored[layer] for layer in layers}
    with blas_threads(max(captured.graph.layers[layer].columns for layer in layers)):
        return search_group(by_name[group], captured.graph.layers, statistics, settings, count=count)


def search_group(
    group: ChannelGroup,
    geometries: Mapping[str, LayerGeometry],
    statistics: Statistics,
    settings: Sequence[Setting],
    *,
    count: int | None = None,
    ridge: float = DEFAULT_RIDGE,
) -> Search:
    """As `hyperparameter_search`, on statistics in memory.

    Args:
        settings: (ε_L2, ε_H), at least one.
        ridge: of the refits, relative to each channel's mean diagonal; raised where a Gram needs it.
    """
    if not settings or (count is not None and not 1 <= count <= group.size):
        raise UsageError(
            "A search needs settings, and a count of the group's positions.",
            expected=f"at least one setting; a count from 1 to {group.size}, or None",
            got=f"{len(settings)} settings, count {count}",
            where=group.name,
        )
    problem = group_problem(group, geometries, statistics)
    ridge = safe_ridge(problem, ridge)
    points = solve_settings(problem, settings)
    chosen = [point.support if count is None else np.sort(point.ranking[:count]) for point in points]
    distinct = {support.tobytes(): support for support in chosen}
    training = {key: support_error(problem, support, ridge) for key, support in distinct.items()}
    del problem  # validation holds two more of its size
    errors = cross_validated(group, geometries, statistics, list(distinct.values()), ridge)
    held_out = dict(zip(distinct, errors.tolist(), strict=True))
    trials = tuple(
        Trial(point.eps_l2, point.eps_h, support, training[support.tobytes()], held_out[support.tobytes()])
        for point, support in zip(points, chosen, strict=True)
    )
    return Search(group.name, trials, len(distinct), sum(point.w_steps for point in points))
