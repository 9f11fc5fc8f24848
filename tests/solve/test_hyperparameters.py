"""A search over settings on statistics: every trial's errors are those of its support."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import streamsparse
from streamsparse.errors import UsageError
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.pareto import support_errors
from streamsparse.kernels.regression import support_error
from streamsparse.solve.hyperparameters import Search, hyperparameter_search, search_group
from streamsparse.solve.narrowing import narrowed
from streamsparse.solve.problems import fold_problems, group_problem
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from tests.small import ConcatNet, SmallNet, summed_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return summed_run(tmp_path_factory.mktemp("search"), SmallNet)


@pytest.fixture(scope="module")
def found(run: Run) -> Search:
    return hyperparameter_search(run, "conv1", number=60)


def test_trials_have_the_errors_of_their_supports(run: Run, found: Search) -> None:
    captured, statistics = read_captured(run), Statistics(run)
    group = captured.graph.group("conv1")
    problem = group_problem(group, captured.graph.layers, statistics)
    folds = list(fold_problems(group, captured.graph.layers, statistics))
    assert len(found.trials) <= 60
    for trial in found.trials[::7]:
        assert trial.training_error == pytest.approx(support_error(problem, trial.support), rel=1e-9, abs=1e-12)
        by_fold = [support_errors(training, left_out, [trial.support], 1e-8)[0] for training, left_out in folds]
        assert trial.held_out_error == pytest.approx(np.mean(by_fold), rel=1e-6, abs=1e-9)


def test_the_best_and_the_curve(found: Search) -> None:
    best = found.best()
    assert best.held_out_error == min(trial.held_out_error for trial in found.trials)
    small = found.best(most_kept=2)
    assert small.kept <= 2
    curve = found.curve()
    assert curve[-1].held_out_error == best.held_out_error
    assert [trial.kept for trial in curve] == sorted({trial.kept for trial in curve})
    assert found.supports <= len(found.trials)
    with pytest.raises(UsageError, match="so few positions"):
        found.best(most_kept=0)


def test_a_count_is_kept_by_every_trial(run: Run) -> None:
    search = hyperparameter_search(run, "conv1", number=12, sampling="random", seed=1, count=3)
    assert [trial.kept for trial in search.trials] == [3] * 12


def test_positions_alone_are_as_if_the_others_had_never_been_there(tmp_path: Path) -> None:
    """Narrowed statistics give the errors of the whole ones, with inputs of other groups in place."""
    run = summed_run(tmp_path, ConcatNet)
    captured, statistics = read_captured(run), Statistics(run)
    group, geometries = captured.graph.group("right"), captured.graph.layers
    positions = np.array([0, 3])
    small = narrowed(group, geometries, statistics, positions)
    assert small is not None
    for (training, left_out), (few_training, few_left_out) in zip(
        fold_problems(group, geometries, statistics), fold_problems(*small), strict=True
    ):
        whole = support_errors(training, left_out, [positions], 1e-8)
        few = support_errors(few_training, few_left_out, [np.arange(2)], 1e-8)
        np.testing.assert_allclose(few, whole, rtol=1e-6, atol=1e-9)


def test_bad_requests(run: Run) -> None:
    for request, message in (
        ({"sampling": "magic"}, "no such sampling"),
        ({"number": 0}, "needs settings"),
        ({"count": 0}, "count of the group"),
        ({"count": 99}, "count of the group"),
    ):
        with pytest.raises(UsageError, match=message):
            hyperparameter_search(run, "conv1", **request)
    with pytest.raises(UsageError, match="no such channel group"):
        hyperparameter_search(run, "nowhere")
    captured = read_captured(run)
    with pytest.raises(UsageError, match="needs settings"):
        search_group(captured.graph.group("conv1"), captured.graph.layers, Statistics(run), [])
    assert streamsparse.hyperparameter_search is hyperparameter_search
