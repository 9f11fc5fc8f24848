"""Improvement: measured losses are those of networks that are really cut, they fall, and the budget holds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pipelines.mnist as mnist
import streamsparse as ss
from pipelines.lenet_stages import trained_lenet
from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, capture
from streamsparse.errors import CorruptDataError, UsageError
from streamsparse.events import Event, Notice
from streamsparse.improvement import Improved, improve
from streamsparse.improvement.bench import Bench
from streamsparse.improvement.noise import Change, fitted_curves, is_better, scales_of
from streamsparse.improvement.stage import SMALLEST_STEP, _looks, _smaller, _starts
from streamsparse.intake.captured import read_captured
from streamsparse.network import prune
from streamsparse.network.refitting import with_weights
from streamsparse.sensitivity import measure_sensitivities
from streamsparse.solve import Constraints, SolveSettings, find_fronts, kept_inputs, solve
from streamsparse.solve.originals import Originals
from streamsparse.solve.stage import decide
from streamsparse.solve.supports import LayerRefits
from streamsparse.store import Run
from streamsparse.store.solution import read_solution
from streamsparse.store.statistics import Statistics
from tests.small import ConcatNet, SmallNet, TwiceNet, build, random_images

QUICK = SolveSettings("elimination")
IMAGES = random_images(96)
BUDGET = "params=0.35"


def prepared(path: Path, kind: type[nn.Module]) -> Run:
    """A run with fronts and sensitivities over 40 of the images."""
    run = Run.at(path)
    capture(build(kind), IMAGES, run, images=40, settings=CaptureSettings("float32", batch_images=10))
    accumulate(run, settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial")
    find_fronts(run, read_captured(run), QUICK)
    measure_sensitivities(run, IMAGES, model=build(kind), images=32, batch_images=16)
    return run


@pytest.fixture(scope="module", params=[SmallNet, ConcatNet, TwiceNet], ids=lambda kind: kind.__name__)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("improve") / "run"
    prepared(path, request.param)
    return path, request.param


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("improve-small") / "run"
    prepared(path, SmallNet)
    return path


@pytest.fixture
def run(small: Path, tmp_path: Path) -> Run:
    shutil.copytree(small, tmp_path / "run")
    return Run.at(tmp_path / "run")


def improved(run: Run, kind: type[nn.Module] = SmallNet, **options: Any) -> Improved:
    settings: dict[str, Any] = {"budget": BUDGET, "images": 48, "batch_images": 20, "settings": QUICK, **options}
    return improve(run, IMAGES, model=build(kind), **settings)


def unseen(run: Run, images: Any, first: int, count: int) -> Any:
    """Indices of images that were not captured, in the order in which they are taken."""
    seed = read_captured(run).manifest["data"]["seed"]
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[first : first + count]


def loss_by_surgery(run: Run, kind: type[nn.Module], keep: dict[str, tuple[int, ...]]) -> float:
    """Of the test network on the images that `improved` measures on."""
    return loss_of_cut(run, build(kind), keep, IMAGES[unseen(run, IMAGES, 40, 48)])


def loss_of_cut(run: Run, model: nn.Module, keep: dict[str, tuple[int, ...]], images: torch.Tensor) -> float:
    """Cut the channels out for good, run both networks over the images, and compare by the definition."""
    captured, statistics, originals = read_captured(run), Statistics(run), Originals.of(run)
    weights = {
        layer: LayerRefits.of(geometry, statistics[layer], originals.weight(geometry)).at(kept)
        for layer, kept in kept_inputs(captured.graph, keep).items()
        if len(kept) < (geometry := captured.graph.layers[layer]).in_channels
    }
    smaller = prune(with_weights(model, weights), captured.graph, {name: list(own) for name, own in keep.items()})
    with torch.no_grad():
        wanted, given = (net(images).double() for net in (model, smaller))
    p, q = wanted.softmax(1), given.softmax(1)
    return float((p * (p / q).log()).sum(1).mean())


def test_losses_are_those_of_really_cut_networks(finished: tuple[Path, Any], tmp_path: Path) -> None:
    """Of the plan that was begun with, of the best, and of looks beside plans, on every kind of network."""
    path, kind = finished
    shutil.copytree(path, tmp_path / "run")
    run, benches = Run.at(tmp_path / "run"), list[Bench]()
    begun = solve(run, budget=BUDGET, settings=QUICK).plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "__post_init__", _noting(Bench.__post_init__, benches))
        found = improved(run, kind)
    plan = found.solution.plan
    assert found.losses[0] == pytest.approx(loss_by_surgery(run, kind, begun.keep), rel=1e-4)
    assert found.losses[-1] == plan.measured_loss == pytest.approx(loss_by_surgery(run, kind, plan.keep), rel=1e-4)
    assert all(after < before for before, after in zip(found.losses, found.losses[1:], strict=False))
    assert plan.costs.parameters <= 0.35 * plan.original_costs.parameters
    assert read_solution(run) == found.solution
    (bench,) = benches
    assert bench.looks == len(bench.losses) == found.looks > 2
    names = sorted(bench.fronts)
    for counts, losses in list(bench.losses.items())[::3]:
        supports = {name: bench.fronts[name].front.supports[k] for name, k in zip(names, counts, strict=True)}
        keep = {name: tuple(support.tolist()) for name, support in supports.items()}
        assert losses.mean() == pytest.approx(loss_by_surgery(run, kind, keep), rel=1e-4, abs=1e-9)


def test_it_begins_with_the_best_of_several_plans(run: Run) -> None:
    benches: list[Bench] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "__post_init__", _noting(Bench.__post_init__, benches))
        found = improved(run, rounds=1)
    decision = decide(run, read_captured(run), BUDGET, Constraints(), QUICK)
    starts = [counts for counts, _ in _starts(decision)]
    measured = [benches[0].losses[tuple(counts[name] for name in sorted(counts))].mean() for counts in starts]
    assert len(starts) > 1
    assert starts[0] == decision.plan().counts
    assert found.losses[0] == measured[0]
    assert found.losses[-1] <= min(measured)
    for counts, curves in _starts(decision):
        assert decision.plan(losses=curves).counts == counts
    errors = {name: np.append(front.held_out[:-1], 0.0) for name, front in decision.fronts.items()}
    without = replace(decision, losses=errors)
    assert len(_starts(without)) == 1  # nothing to blend


def _noting(original: Any, benches: list[Bench]) -> Any:
    def noting(self: Bench) -> None:
        original(self)
        benches.append(self)

    return noting


def test_a_trained_network_gains_where_most_channels_go(tmp_path: Path) -> None:
    """LeNet at 90 % sparsity: the groups' errors meet, and their sum is a poor prediction. Other images agree."""
    run, model, data = Run.at(tmp_path / "run"), trained_lenet(), mnist.calibration()
    settings = CaptureSettings(sink="statistics", batch_images=100, folds=4)
    capture(model, data, run, images=600, settings=settings)
    accumulate(run, executor="serial")
    find_fronts(run, read_captured(run), QUICK)
    measure_sensitivities(run, data, model=model, images=128)
    begun = solve(run, budget="sparsity=0.9", settings=QUICK).plan
    found = improve(run, data, model=model, budget="sparsity=0.9", images=4096, settings=QUICK)
    assert found.losses[-1] < 0.85 * found.losses[0]
    assert found.solution.plan.sparsity >= 0.9
    others = torch.stack([data[int(number)][0] for number in unseen(run, data, 600 + 4096, 4000)])
    before, after = (loss_of_cut(run, model, plan.keep, others) for plan in (begun, found.solution.plan))
    assert after < 0.85 * before


def test_a_second_call_measures_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = improved(run)

    def refusing(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Bench, "_measure", refusing)
    again = improved(run)
    assert (again.solution, again.losses, again.looks) == (first.solution, first.losses, 0)
    with pytest.raises(AssertionError):
        improved(run, images=47)


def test_a_killed_call_goes_on(run: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small, tmp_path / "undisturbed")
    undisturbed = improved(Run.at(tmp_path / "undisturbed"))
    original, calls = Bench._measure, [0]

    def dying(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] > 2:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "_measure", dying)
        with pytest.raises(KeyboardInterrupt):
            improved(run)
    found = improved(run)
    assert (found.solution, found.losses) == (undisturbed.solution, undisturbed.losses)
    assert 0 < found.looks < undisturbed.looks


def test_constraints_hold(run: Run) -> None:
    constraints = Constraints(round_to=2, min_channels=2, keep={"conv1": (1,)}, leave=("fc2",))
    plan = improved(run, constraints=constraints, budget="macs=0.5").solution.plan
    assert all(count % 2 == 0 or count == plan.sizes[name] for name, count in plan.counts.items())
    assert 1 in plan.keep["conv1"]
    assert "fc1" not in plan.counts or plan.counts["fc1"] == plan.sizes["fc1"]
    assert plan.costs.macs <= 0.5 * plan.original_costs.macs


def test_what_cannot_be_improved_is_refused(run: Run) -> None:
    before = run.documents.read_json("solution/solution.json")
    with pytest.raises(UsageError, match="bounds a loss"):
        improved(run, budget="max-error=0.1")
    with pytest.raises(UsageError, match="Nothing can be improved"):
        improved(run, rounds=0)
    assert run.documents.read_json("solution/solution.json") == before


def test_damaged_losses_are_refused(run: Run) -> None:
    improved(run)
    (name,) = [name for name in run.documents.names("solution/measured") if name != "zarr.json"]
    key = f"solution/measured/{name.rstrip('/')}"
    description = run.records.description(key)
    assert description is not None
    run.records.write(key, {"digest": description["digest"]}, {"counts": np.ones((3, 2)), "losses": np.ones(3)})
    with pytest.raises(CorruptDataError, match="not readable"):
        improved(run)


def test_too_few_images_are_told(run: Run) -> None:
    events: list[Event] = []
    improved(run, images=60, on_event=events.append)
    assert any(isinstance(event, Notice) and "too few unseen" in event.message for event in events)


def test_prune_improves(tmp_path: Path) -> None:
    """Its plan is the one that `improve` finds on the same run."""
    model = build(SmallNet)
    result = ss.prune(
        model, IMAGES, budget=BUDGET, run=tmp_path / "run", images=40, improve_rounds=3, stages=1,
        capture_settings=CaptureSettings("float32", batch_images=10), solve_settings=QUICK,
    )  # fmt: skip
    assert result.solution.plan.measured_loss is not None
    again = improve(tmp_path / "run", IMAGES, model=model, budget=BUDGET, settings=QUICK, rounds=3)
    assert again.looks == 0
    assert again.solution.plan == result.solution.plan


@pytest.mark.parametrize(
    "request_",
    [{"budget": "max-error=0.1"}, {"budget": BUDGET, "channels": {"conv1": 3}}, {"channels": {"conv1": 3}}],
)
def test_prune_does_not_pass_over_what_improve_cannot_do(tmp_path: Path, request_: dict[str, Any]) -> None:
    """Before anything is captured."""
    with pytest.raises(UsageError, match="Nothing can be improved"):
        ss.prune(build(SmallNet), IMAGES, run=tmp_path / "run", improve_rounds=2, **request_)
    assert not (tmp_path / "run" / "statistics").exists()


def test_looks_are_a_step_away_or_at_the_end() -> None:
    allowed = {"a": np.arange(1, 11), "b": np.array([4, 8, 16]), "c": np.array([3])}
    assert _looks({"a": 10, "b": 8, "c": 3}, 0.3, allowed) == [("a", 7), ("b", 4), ("b", 16)]
    assert _looks({"a": 1, "b": 16, "c": 3}, 0.9, allowed) == [("a", 2), ("b", 4)]


def test_a_smaller_step_looks_elsewhere() -> None:
    """Allowed counts may leave gaps that half a step does not get out of."""
    allowed = {"a": np.array([60, 95, 100]), "b": np.array([4])}
    assert _smaller(0.3, {"a": 100, "b": 4}, allowed) == pytest.approx(0.3 / 8)  # 60 until a step is at most 5
    assert _smaller(0.3, {"a": 60, "b": 4}, allowed) < SMALLEST_STEP  # 95 from any step


def changes(**looks: tuple[int, float, float]) -> dict[tuple[str, int], Change]:
    """By a group's letter and a digit: the count that was looked at, the change of the loss, and its error."""
    return {(name[0], count): Change(mean, error) for name, (count, mean, error) in looks.items()}


def test_a_fitted_curve_meets_what_was_measured() -> None:
    """Relative to the plan; what does not help is flat."""
    predicted = {"a": np.array([9.0, 5.0, 3.0, 2.0, 1.0, 0.0])}
    curve = fitted_curves(predicted, {"a": 3}, changes(a1=(2, 0.3, 0.0), a2=(4, -0.1, 0.0)))["a"]
    np.testing.assert_allclose(curve - curve[3], [2.1, 0.9, 0.3, 0.0, -0.1, -0.2])
    assert curve.min() == 0
    useless = fitted_curves(predicted, {"a": 3}, changes(a1=(2, 0.3, 0.0), a2=(4, 0.1, 0.0)))["a"]
    np.testing.assert_allclose(useless, [2.1, 0.9, 0.3, 0.0, 0.0, 0.0])


def test_scales_that_cannot_be_told_apart_are_the_same() -> None:
    """With equal errors the spread is the scales' variance less that of the errors: a closed form, both ends."""
    own, expected = np.array([0.5, 1.0, 1.5, 3.0]), np.array([2.0, -1.0, 4.0, -0.5])

    def scales(error: float) -> np.ndarray:
        return np.array(
            scales_of([Change(s * p, error * abs(p)) for s, p in zip(own, expected, strict=True)], expected)
        )

    np.testing.assert_allclose(scales(0.0), own)
    for error in (0.2, 1.0):
        spread = own.var(ddof=1) - error**2
        share = spread / (spread + error**2)
        np.testing.assert_allclose(scales(error), share * own + (1 - share) * own.mean())
    np.testing.assert_allclose(scales(2.0), own.mean())
    assert scales_of([Change(0.3, np.inf)], [0.1]) == [1.0]
    certain = scales_of([Change(2.0, 0.0), *(Change(s, 0.5) for s in (0.4, 0.9, 1.4))], [1.0] * 4)
    assert certain[0] == pytest.approx(2.0)  # and the others nearer to a common one, which is not that one alone
    near = np.array(certain[1:]) - (0.4, 0.9, 1.4)
    assert near[0] > near[1] > 0 > near[2]
    assert scales_of([], []) == []


def test_estimated_scales_are_nearer_the_truth_than_what_is_seen() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(1.0, 0.3, (200, 24))
    errors = generator.uniform(0.2, 0.8, (200, 24))
    seen = truth + errors * generator.standard_normal((200, 24))
    found = np.array([
        scales_of([Change(float(s), float(e)) for s, e in zip(*pair, strict=True)], [1.0] * 24)
        for pair in zip(seen, errors, strict=True)
    ])  # fmt: skip
    assert ((found - truth) ** 2).mean() < 0.5 * ((np.maximum(seen, 0) - truth) ** 2).mean()


def test_a_gain_within_the_noise_is_none() -> None:
    """Nine images gain what the tenth loses, and more: the mean falls, but by less than its error."""
    before = np.ones(10)
    lucky = before - 0.1
    lucky[3] = 1.6
    assert lucky.mean() < before.mean()
    assert not is_better(before, lucky)
    assert is_better(before, before - 0.1)
    assert not is_better(before, before - 1e-5)  # certain, but not worth it
    assert not is_better(before[:1], lucky[:1])


def test_a_gain_that_was_passed_over_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is certain enough here: the plan of `solve` stays."""
    for module in ("noise", "stage"):
        monkeypatch.setattr(f"streamsparse.improvement.{module}.SURE", 1e9)
    events: list[Event] = []
    found = improved(run, budget="params=0.15", on_event=events.append)
    assert found.solution.plan.counts == solve(run, budget="params=0.15", settings=QUICK).plan.counts
    assert len(found.losses) == 1
    told = [event.message for event in events if isinstance(event, Notice) and "passed over" in event.message]
    assert len(told) == 1
    assert "more --images than 48" in told[0]


def test_losses_are_kept_image_by_image(run: Run) -> None:
    """On 48 images; the loss of a plan is their mean."""
    found = improved(run)
    benches: list[Bench] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "__post_init__", _noting(Bench.__post_init__, benches))
        improved(run)
    counts = found.solution.plan.counts
    losses = benches[0].losses[tuple(counts[name] for name in sorted(counts))]
    assert losses.shape == (48,)
    assert losses.dtype == np.float64
    assert losses.mean() == found.losses[-1]
