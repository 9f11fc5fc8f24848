"""All stages in order on a small network: the pruned model is what the theory says it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pipelines.mnist as mnist
import streamsparse as ss
from pipelines.lenet_stages import trained_lenet
from streamsparse.capture import CaptureSettings, sum_behind
from streamsparse.errors import BudgetError, RunMismatchError, StageMissingError, UsageError
from streamsparse.evaluation import evaluate
from streamsparse.events import Event, Finished, Reused
from streamsparse.intake.captured import read_captured
from streamsparse.network import mask
from streamsparse.network import prune as cut
from streamsparse.network.refitting import with_weights
from streamsparse.run import Result, prune
from streamsparse.sequential import refit
from streamsparse.solve import SolveSettings, solve
from streamsparse.store import Run
from streamsparse.store.solution import read_solution, read_weights
from tests.small import SmallNet, build, files_below, random_images

SETTINGS = CaptureSettings("float32", batch_images=20)
QUICK = SolveSettings("elimination")
IMAGES = 120


def pruned(run: Path | None, **options: object) -> Result:
    chosen: dict[str, object] = {"budget": "params=0.5", **options}
    return prune(
        build(SmallNet), random_images(IMAGES), run=run, capture_settings=SETTINGS, solve_settings=QUICK,
        executor="serial", **chosen,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    path = tmp_path_factory.mktemp("prune") / "run"
    return path, pruned(path)


def test_with_and_without_a_run_on_disk(finished: tuple[Path, Result]) -> None:
    on_disk, in_memory = finished[1], pruned(None)
    assert in_memory.report == on_disk.report
    assert in_memory.files["model.safetensors"] == on_disk.files["model.safetensors"]
    before, after = on_disk.model.state_dict(), in_memory.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_call_reuses_everything(finished: tuple[Path, Result]) -> None:
    path, result = finished
    events: list[Event] = []
    again = pruned(path, on_event=events.append)
    reused = {event.stage for event in events if isinstance(event, Reused)}
    assert {"capture", "accumulate", "solve", "refit stage 2", "refit stage 3"} <= reused
    assert again.files["model.safetensors"] == result.files["model.safetensors"]


def test_no_activations_of_the_refit_stay(finished: tuple[Path, Result]) -> None:
    assert [path.name for path in (finished[0] / "activations").iterdir() if path.is_dir()] == ["original"]


def test_the_budget_is_met_and_the_numbers_are_the_models(finished: tuple[Path, Result]) -> None:
    plan, model = finished[1].solution.plan, finished[1].model
    assert sum(parameter.numel() for parameter in model.parameters()) == plan.costs.parameters
    assert plan.costs.parameters <= 0.5 * plan.original_costs.parameters
    original = sum(parameter.numel() for parameter in build(SmallNet).parameters())
    assert plan.original_costs.parameters == original
    assert not model.training
    assert len(model.get_parameter("conv1.weight")) == plan.counts["conv1"]


def test_pruned_is_masked_in_float64(finished: tuple[Path, Result]) -> None:
    """Cut channels, or zero them in a model of the original's shapes with the same weights: the same function."""
    run = Run.at(finished[0])
    graph, solution = read_captured(run).graph, read_solution(run)
    twin = with_weights(build(SmallNet).double(), read_weights(run, solution))
    small, masked = cut(twin, graph, solution.plan.keep), mask(twin, graph, solution.plan.keep)
    images = random_images(30, seed=5).double()
    with torch.no_grad():
        torch.testing.assert_close(small(images), masked(images), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(small(images), twin(images), rtol=1e-9, atol=1e-9)
        shipped = finished[1].model(images.float()).double()
    torch.testing.assert_close(shipped, small(images).detach(), rtol=1e-4, atol=1e-4)


def test_saved_and_loaded_logits_are_equal_bit_for_bit(finished: tuple[Path, Result], tmp_path: Path) -> None:
    path, result = finished
    images = random_images(30, seed=5)
    loaded = ss.load(result.save(tmp_path / "saved"), SmallNet()).eval()
    from_run = ss.load(path / "checkpoints/pruned", SmallNet()).eval()
    with torch.no_grad():
        logits = result.model(images)
        assert torch.equal(loaded(images), logits)
        assert torch.equal(from_run(images), logits)


def test_evaluation_measures_what_was_predicted(tmp_path: Path) -> None:
    """Held-out errors, predicted from statistics alone, are the errors on new images of the same kind."""
    settings = CaptureSettings("float32", batch_images=200)
    prune(
        build(SmallNet), random_images(1000), budget="params=0.5", run=tmp_path, capture_settings=settings,
        solve_settings=QUICK,
    )  # fmt: skip
    found = evaluate(tmp_path, TensorDataset(random_images(1000, seed=7)), model=build(SmallNet))
    assert found.comparison.images == 1000
    assert found.comparison.original_accuracy is None
    assert 0.5 < found.comparison.agreement <= 1
    assert found.comparison.divergence >= 0
    assert found.layer_errors.keys() == {"conv2", "fc1", "fc2"}
    for predicted, measured in found.layer_errors.values():
        assert measured == pytest.approx(predicted, rel=0.3, abs=1e-6)  # a whole input leaves round-off alone
    original = build(SmallNet)
    assert found.original_costs.parameters == sum(parameter.numel() for parameter in original.parameters())


def test_an_older_checkpoint_is_not_measured_against_a_newer_solution(tmp_path: Path) -> None:
    result = pruned(tmp_path, stages=1)
    data = TensorDataset(random_images(20, seed=7))
    assert evaluate(tmp_path, data, model=build(SmallNet)).layer_errors != {}
    refit(tmp_path, random_images(IMAGES), model=build(SmallNet), settings=SETTINGS)
    assert read_solution(Run.at(tmp_path)).plan == result.solution.plan
    assert evaluate(tmp_path, data, model=build(SmallNet)).layer_errors == {}


def test_a_refit_of_one_stage_is_the_independent_one(tmp_path: Path) -> None:
    result = pruned(tmp_path, stages=1, budget="params=0.3")
    assert result.solution.mode == "independent"
    run = Run.at(tmp_path)
    independent = read_weights(run, result.solution)
    solution = refit(run, random_images(IMAGES), model=build(SmallNet), stages=1, settings=SETTINGS)
    weights = read_weights(run, solution)
    for layer, (weight, bias) in independent.items():
        assert bias is not None
        np.testing.assert_array_equal(weights[layer][0], weight)
        np.testing.assert_array_equal(weights[layer][1], bias)


def test_refitting_in_order_beats_refitting_independently(tmp_path: Path) -> None:
    """On the calibration images themselves the last layer's sequential fit is the better one by construction."""
    images = random_images(IMAGES)
    results = [pruned(tmp_path / str(stages), stages=stages, budget="params=0.3") for stages in (1, None)]
    with torch.no_grad():
        wanted = build(SmallNet)(images)
        errors = [float((result.model(images) - wanted).square().sum()) for result in results]
    assert results[0].solution.plan == results[1].solution.plan
    assert errors[1] < errors[0]


def test_few_images_still_spend_the_budget_well() -> None:
    """64 images for layers of 800 columns: what they cannot tell stays as it was, and the budget is used up."""
    model, test = trained_lenet(), mnist.test()
    result = prune(
        model, mnist.calibration(), budget="params=0.2", images=64, stages=1,
        solve_settings=QUICK, capture_settings=CaptureSettings(sink="statistics"),
    )  # fmt: skip
    left = sum(p.numel() for p in result.model.parameters()) / sum(p.numel() for p in model.parameters())
    assert 0.19 < left <= 0.2
    images = torch.stack([test[number][0] for number in range(2000)])
    with torch.no_grad():
        agreement = (model(images).argmax(1) == result.model(images).argmax(1)).float().mean()
    assert agreement > 0.93


def test_a_loader_is_as_good_as_its_data(finished: tuple[Path, Result]) -> None:
    loader = DataLoader(TensorDataset(random_images(IMAGES), torch.zeros(IMAGES)), batch_size=7, shuffle=True)
    result = prune(build(SmallNet), loader, budget="params=0.5", capture_settings=SETTINGS, solve_settings=QUICK)
    assert result.files["model.safetensors"] == finished[1].files["model.safetensors"]


def test_refit_refuses_other_data_and_other_models(finished: tuple[Path, Result]) -> None:
    before = files_below(finished[0])
    with pytest.raises(RunMismatchError, match="not the images"):
        refit(finished[0], random_images(IMAGES, seed=9), model=build(SmallNet), settings=SETTINGS)
    with pytest.raises(RunMismatchError, match="not the model"):
        refit(finished[0], random_images(IMAGES), model=build(SmallNet, seed=9), settings=SETTINGS)
    with pytest.raises(UsageError, match="how to build its model"):
        refit(finished[0], random_images(IMAGES), settings=SETTINGS)
    with pytest.raises(UsageError, match="stages"):
        refit(finished[0], random_images(IMAGES), model=build(SmallNet), stages=0, settings=SETTINGS)
    assert files_below(finished[0]) == before


@pytest.mark.parametrize("request_", [{"budget": None}, {"budget": "size=1"}, {"channels": {"conv9": 1}}])
def test_an_impossible_request_leaves_no_run(tmp_path: Path, request_: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        pruned(tmp_path / "run", **request_)
    assert not (tmp_path / "run").exists()


def test_stages_out_of_order_say_what_is_missing(tmp_path: Path) -> None:
    ss.capture(build(SmallNet), random_images(20), tmp_path, settings=SETTINGS)
    with pytest.raises(StageMissingError, match="statistics are not complete"):
        solve(tmp_path, budget="params=0.5", settings=QUICK)
    ss.accumulate(tmp_path, executor="serial")
    with pytest.raises(StageMissingError, match="no finished solution"):
        refit(tmp_path, random_images(20), model=build(SmallNet), settings=SETTINGS)
    with pytest.raises(StageMissingError, match="no finished solution"):
        ss.write(tmp_path, model=build(SmallNet))
    with pytest.raises(BudgetError):
        solve(tmp_path, budget="params=0.0001", settings=QUICK)
    with pytest.raises(StageMissingError, match="no checkpoint"):
        evaluate(tmp_path, TensorDataset(random_images(5)), model=build(SmallNet))


def test_a_killed_refit_goes_on_and_a_new_one_drops_the_old_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the stage that it was in is passed again; the statistics of another plan's refit go."""
    pruned(tmp_path, stages=1)
    run, images = Run.at(tmp_path), random_images(IMAGES)
    with monkeypatch.context() as patch:
        patch.setattr("streamsparse.sequential.sum_behind", _dying_second_time())
        with pytest.raises(KeyboardInterrupt):
            refit(run, images, model=build(SmallNet), settings=SETTINGS)
    begun = refit_streams(run)
    events: list[Event] = []
    refit(run, images, model=build(SmallNet), settings=SETTINGS, on_event=events.append)
    assert sum(isinstance(event, Reused) for event in events) == len(begun) == 1
    assert read_solution(run).mode == "sequential"
    first = refit_streams(run)
    assert begun < first
    solve(run, budget="params=0.3", settings=QUICK)
    refit(run, images, model=build(SmallNet), settings=SETTINGS)
    assert len(refit_streams(run)) == len(first)
    assert refit_streams(run).isdisjoint(first)


def refit_streams(run: Run) -> set[str]:
    """Streams of sequential refits that have statistics."""
    return {name for name in run.documents.names("statistics") if name.startswith("refit-")}


def _dying_second_time() -> Callable[..., object]:
    calls = 0

    def sums(*arguments: object, **settings: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return sum_behind(*arguments, **settings)  # type: ignore[arg-type]

    return sums


def test_the_model_given_is_left_as_it_is() -> None:
    model: nn.Module = build(SmallNet).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    events: list[Event] = []
    prune(
        model, random_images(40), budget="params=0.5", capture_settings=SETTINGS, solve_settings=QUICK,
        on_event=events.append,
    )  # fmt: skip
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    finished_stages = [event.stage for event in events if isinstance(event, Finished)]
    assert {"capture", "accumulate", "solve", "refit", "write"} <= set(finished_stages)
