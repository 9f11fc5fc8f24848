"""The facts of a report against the stages that they are about."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from streamsparse.capture import CaptureSettings, Subject
from streamsparse.errors import CorruptDataError, RunNotFoundError
from streamsparse.evaluation import Evaluation, evaluate
from streamsparse.intake.captured import read_captured
from streamsparse.kernels.folds import total
from streamsparse.kernels.statistics import moments
from streamsparse.report.facts import Facts, TimedBatch
from streamsparse.reporting import gather, report
from streamsparse.run import Result, prune
from streamsparse.sensitivity import required_fronts
from streamsparse.solve import Constraints, SolveSettings, network_front, solve
from streamsparse.solve.measured import known_losses, read_sensitivities
from streamsparse.store import Run, layout
from streamsparse.store.solution import read_solution
from streamsparse.store.statistics import Statistics
from streamsparse.store.timings import stage_records
from tests.object_server import Place
from tests.small import ConcatNet, SmallNet, TwiceNet, build, captured_run, files_below, random_images, summed_run

DATA = TensorDataset(random_images(30, seed=7), torch.arange(30) % 5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Evaluation]:
    path = tmp_path_factory.mktemp("reporting") / "run"
    settings = CaptureSettings("float32", batch_images=20)
    result = prune(
        build(SmallNet), random_images(80), budget="macs=0.4", run=path, images=60, capture_settings=settings,
        executor="serial", subject=Subject(data="random:images"),
    )  # fmt: skip
    evaluation = evaluate(path, DATA, model=build(SmallNet), data_name="random:test", latency_batch_sizes=(4, 2))
    return path, result, evaluation


@pytest.fixture(scope="module")
def facts(finished: tuple[Path, Result, Evaluation]) -> Facts:
    return gather(finished[0])


@pytest.fixture
def run(finished: tuple[Path, Result, Evaluation], tmp_path: Path) -> Run:
    return Run.at(shutil.copytree(finished[0], tmp_path / "run"))


def test_costs_and_layers_are_those_of_the_result(facts: Facts, finished: tuple[Path, Result, Evaluation]) -> None:
    plan = finished[1].solution.plan
    assert (facts.original, facts.pruned, facts.budget) == (plan.original_costs, plan.costs, "macs=0.4")
    assert tuple(layer.report for layer in facts.layers) == finished[1].report
    assert (facts.mode, facts.recalibrated) == ("sequential", False)
    assert facts.predicted_loss == sum(plan.predicted_losses.values())
    assert facts.loss_unit == "nats per image"
    assert facts.run == str(finished[0])
    assert facts.title == "SmallNet on random:images"


def test_errors_are_those_of_solution_and_evaluation(
    facts: Facts, finished: tuple[Path, Result, Evaluation]
) -> None:
    _, result, evaluation = finished
    assert evaluation.layer_errors
    by_layer = {layer.report.layer: layer for layer in facts.layers}
    for error in result.solution.layers:
        found = by_layer[error.layer]
        assert (found.report.held_out_error, found.measured_error) == evaluation.layer_errors[error.layer]
        if found.excess is None:
            assert error.training_error < 1e-5
        else:
            assert found.excess == pytest.approx(error.held_out_error / error.training_error - 1)
    assert by_layer["conv1"].measured_error is None


def test_samples_are_counted(facts: Facts) -> None:
    found = {layer.report.layer: (layer.features, layer.patches, layer.images) for layer in facts.layers}
    assert found["conv2"] == (6 * 9, 60 * 9, 60)
    assert found["fc1"] == (72, 60, 60)
    assert found["conv1"] == (9, 0, 0)  # nothing before it is pruned: never summed


def test_conditions_are_those_of_the_standardised_inputs(
    facts: Facts, finished: tuple[Path, Result, Evaluation]
) -> None:
    found = {layer.report.layer: layer for layer in facts.layers}
    gram = moments(total(Statistics(Run.at(finished[0]))["conv2"])).gram[0]
    scale = np.sqrt(gram.diagonal())
    values = np.linalg.eigvalsh(gram / scale / scale[:, None])
    assert found["conv2"].rank == len(values)
    assert found["conv2"].condition == pytest.approx(values[-1] / values[0], rel=1e-3)
    assert (found["conv1"].condition, found["conv1"].rank) == (None, None)
    assert found["fc1"].rank is not None
    assert found["fc1"].rank <= 59  # 60 images, less the mean, for 72 features


def test_groups_are_their_fronts_and_sensitivities(facts: Facts, finished: tuple[Path, Result, Evaluation]) -> None:
    run = Run.at(finished[0])
    fronts = required_fronts(run, read_captured(run))
    sensitivities = read_sensitivities(run, fronts)
    plan = finished[1].solution.plan
    assert sensitivities is not None
    assert [group.name for group in facts.groups] == list(fronts)
    for group in facts.groups:
        front = fronts[group.name]
        assert group.kept == plan.keep[group.name]
        assert [point.kept for point in group.front] == list(range(group.size + 1))
        assert [point.training_error for point in group.front] == front.front.errors.tolist()
        assert [point.method for point in group.front] == list(front.front.methods)
        for point in group.front:
            evaluated = point.kept in front.evaluated
            assert point.held_out_error == (front.held_out[point.kept] if evaluated else None)
        assert group.predicted_loss == plan.predicted_losses[group.name]
        assert dict(group.sensitivity) == dict(
            zip(sensitivities[group.name].counts, sensitivities[group.name].losses, strict=True)
        )
    assert facts.groups[0].producers == ("conv1", "norm1")[:1]
    assert facts.groups[0].consumers == ("conv2",)


def test_the_networks_front_is_the_allocation(facts: Facts, finished: tuple[Path, Result, Evaluation]) -> None:
    run = Run.at(finished[0])
    captured = read_captured(run)
    fronts = required_fronts(run, captured)
    losses, _ = known_losses(run, fronts)
    expected = {
        (one.costs, one.predicted_loss) for one in network_front(fronts, captured.costs, losses, "macs", 16)
    }
    assert facts.chosen is not None
    chosen = facts.points[facts.chosen]
    assert (chosen.costs, chosen.predicted_loss) == (facts.pruned, facts.predicted_loss)
    found = {(point.costs, point.predicted_loss) for point in facts.points}
    found.discard((chosen.costs, chosen.predicted_loss))
    assert found <= expected
    assert 8 <= len(facts.points) <= 17
    parameters = [point.costs.parameters for point in facts.points]
    assert parameters == sorted(parameters)
    by_macs = sorted(found, key=lambda pair: pair[0].macs)  # the quantity that was bounded
    assert all(first[1] > second[1] for first, second in pairwise(by_macs))
    for left_out in expected - found:
        assert any(
            one[0].macs <= left_out[0].macs and one[1] <= left_out[1]
            for one in {*found, (chosen.costs, chosen.predicted_loss)}
        )


def test_walks_are_monotone_and_end_where_the_paper_ends(facts: Facts) -> None:
    assert [walk.group for walk in facts.walks] == ["conv1", "conv2", "fc1"]
    for walk in facts.walks:
        for losses in (walk.losses, walk.accelerated_losses):
            assert len(losses) > 1
            assert all(first >= second for first, second in pairwise(losses))
        assert walk.losses[0] == walk.accelerated_losses[0]
        assert walk.losses[-1] < walk.losses[0]
        assert (walk.eps_l2, walk.eps_h) in {(step.eps_l2, step.eps_h) for step in walk.steps}
        for step in walk.steps:
            assert sum(step.w) == pytest.approx(1)
            assert step.support == sum(value > 0 for value in step.w)
        assert walk.steps[-1].support <= 2 < walk.steps[0].support


def test_measured_is_the_evaluation(facts: Facts, finished: tuple[Path, Result, Evaluation]) -> None:
    evaluation = finished[2]
    comparison, latency = evaluation.comparison, evaluation.latency
    assert latency is not None
    (found,) = facts.measured
    assert (found.checkpoint, found.images, found.data) == ("pruned", 30, "random:test")
    assert (found.original_accuracy, found.pruned_accuracy) == (
        comparison.original_accuracy, comparison.pruned_accuracy,
    )  # fmt: skip
    assert (found.agreement, found.divergence) == (comparison.agreement, comparison.divergence)
    assert found.batch_images == 2
    assert found.pruned_seconds == latency.pruned_seconds[1] / 2
    assert found.larger_batches == (
        TimedBatch(4, latency.original_seconds[0] / 4, latency.pruned_seconds[0] / 4),
    )  # fmt: skip
    assert found.costs == facts.pruned
    assert found.finished.endswith("+00:00")


@pytest.mark.parametrize(
    ("factor", "said"),
    [(2.9, None), (3.5, "3.5 times more than the"), (0.34, None), (0.25, "4 times less than the")],
)
def test_a_prediction_that_is_far_off_is_told(run: Run, factor: float, said: str | None) -> None:
    name = "evaluations/pruned.json"
    document = run.documents.read_json(name)
    assert document is not None
    document["comparison"]["divergence"] = factor * sum(read_solution(run).plan.predicted_losses.values())
    run.documents.write_json(name, document)
    notes = [note for note in gather(run).notes if "The network diverges by" in note]
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_stages_are_in_order(facts: Facts, finished: tuple[Path, Result, Evaluation]) -> None:
    stages = ["capture", "accumulate", "solve", "sensitivity", "refit", "write", "evaluate"]
    assert [stage.stage for stage in facts.stages] == stages
    records = {record.stage: record for record in stage_records(Run.at(finished[0]))}
    for stage in facts.stages:
        assert (stage.seconds, stage.peak_bytes) == (records[stage.stage].seconds, records[stage.stage].peak_bytes)
        assert stage.finished == records[stage.stage].finished


def test_provenance_names_what_went_in(facts: Facts, finished: tuple[Path, Result, Evaluation]) -> None:
    manifest = Run.at(finished[0]).manifest()
    found = dict(facts.provenance)
    assert found["weights digest (SHA-256)"] == manifest["model"]["digest"]
    assert found["calibration images"] == "60 of 80"
    assert (found["folds"], found["dtype of products"]) == ("5", "float32")
    assert found["activations"].startswith("float32, zstd:1")
    assert found["run layout"] == str(layout.SCHEMA_VERSION)
    assert found["torch at the capture"] == manifest["versions"]["torch"]


def test_nothing_is_written(facts: Facts, finished: tuple[Path, Result, Evaluation]) -> None:
    before = files_below(finished[0])
    assert gather(finished[0]) == facts
    assert files_below(finished[0]) == before


def test_facts_survive_json(facts: Facts) -> None:
    assert Facts.from_json(json.loads(json.dumps(facts.to_json(), allow_nan=False))) == facts


def test_json_that_is_not_facts_is_refused(facts: Facts) -> None:
    value = json.loads(json.dumps(facts.to_json()))
    del value["layers"][0]["rank"]
    with pytest.raises(CorruptDataError, match="not the facts") as raised:
        Facts.from_json(value)
    assert raised.value.where == "facts.layers[0]"
    value = json.loads(json.dumps(facts.to_json()))
    value["groups"][0]["kept"] = ["one"]
    with pytest.raises(CorruptDataError) as raised:
        Facts.from_json(value)
    assert raised.value.where == "facts.groups[0].kept[0]"


def test_another_solution_is_not_measured_by_the_old_evaluation(run: Run) -> None:
    solve(run, budget="params=0.3")
    found = gather(run)
    assert all(layer.measured_error is None for layer in found.layers)
    assert found.measured[0].costs != found.pruned
    assert any("another size" in note for note in found.notes)
    assert any("exactly the present solution" in note for note in found.notes)
    assert found.mode == "independent"


def test_other_statistics_are_said(run: Run) -> None:
    key = f"{layout.front_key('conv2')}/{layout.RECORD}"
    document = run.documents.read_json(key)
    assert document is not None
    run.documents.write_json(key, {**document, "source": "another"})
    assert any("fronts of conv2 were found with settings" in note for note in gather(run).notes)


def test_measures_of_loss_that_changed_are_said(run: Run) -> None:
    run.documents.delete_key(layout.SENSITIVITIES)
    found = gather(run)
    assert found.loss_unit.startswith("sum of")
    kept = {group.name: len(group.kept) for group in found.groups}
    fronts = required_fronts(run, read_captured(run))
    assert found.predicted_loss == pytest.approx(sum(fronts[name].held_out[count] for name, count in kept.items()))
    assert any("another measure of loss" in note for note in found.notes)
    assert all(group.sensitivity == () for group in found.groups)


def test_positions_by_hand_are_said(run: Run) -> None:
    front = required_fronts(run, read_captured(run))["fc1"].front
    dropped = int(front.supports[6][0])
    solve(run, channels={"fc1": 6}, constraints=Constraints(drop={"fc1": (dropped,)}, leave=("conv2",)))
    found = gather(run)
    assert any("positions to keep or to drop" in note and "fc1" in note for note in found.notes)
    assert any("Left whole as the command said: conv1, conv2." in note for note in found.notes)
    assert {group.name: len(group.kept) for group in found.groups}["conv2"] == 8
    assert found.points
    assert found.chosen is not None


def test_statistics_alone_give_a_report(tmp_path: Path) -> None:
    found = gather(summed_run(tmp_path))
    assert (found.pruned, found.predicted_loss, found.mode, found.chosen) == (None, None, None, None)
    assert found.points == ()
    assert found.measured == ()
    assert [len(group.kept) for group in found.groups] == [6, 8, 12]
    assert all(layer.report.costs == layer.report.original_costs for layer in found.layers)
    assert found.walks
    assert found.notes[0].startswith("Stage 'solve' has not begun")
    assert all(layer.excess is None for layer in found.layers)


def test_fronts_without_a_solution_give_the_networks_front(tmp_path: Path) -> None:
    run = summed_run(tmp_path)
    solve(run, budget="params=0.5")
    run.documents.delete_key(layout.SOLUTION)
    found = gather(run)
    assert len(found.points) > 5
    assert found.chosen is None
    run.documents.delete(layout.front_key("fc1"))
    assert gather(run).points == ()


def test_a_capture_alone_gives_a_report(tmp_path: Path) -> None:
    found = gather(captured_run(tmp_path))
    assert found.walks == ()
    assert all(layer.condition is None for layer in found.layers)
    assert found.notes[0].startswith("Stage 'accumulate' has not begun")
    assert [stage.stage for stage in found.stages] == ["capture"]


def test_limits_leave_out_and_say_so(run: Run) -> None:
    found = gather(run, walks=1, walk_columns=60, condition_columns=60)
    assert [walk.group for walk in found.walks] == ["fc1"]
    conditions = {layer.report.layer: layer.condition for layer in found.layers}
    assert conditions["fc1"] is None
    assert conditions["conv2"] is not None
    assert any("more than 60 columns: fc1" in note for note in found.notes)
    assert any("shown for 1 group, not for conv1, conv2" in note for note in found.notes)


@pytest.mark.parametrize("kind", [ConcatNet, TwiceNet])
def test_other_networks(tmp_path: Path, kind: type[torch.nn.Module]) -> None:
    run = summed_run(tmp_path, kind)
    solve(run, budget="params=0.6")
    found = gather(run)
    assert Facts.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    for layer in found.layers:
        if layer.patches:
            calls = 2 if layer.report.layer == "shared" else 1
            geometry = read_captured(run).graph.layers[layer.report.layer]
            assert layer.patches == 40 * calls * geometry.patches_per_image


def test_stages_without_a_record_are_named(run: Run) -> None:
    run.documents.delete_key(layout.timing_key("solve"))
    key = layout.timing_key("refit")
    document = run.documents.read_json(key)
    assert document is not None
    run.documents.write_json(key, {**document, "finished": None})
    found = gather(run)
    assert "What these stages took was not recorded: solve." in found.notes
    assert any(note.startswith("Stage 'refit' was cut short") for note in found.notes)
    assert {stage.stage: stage.finished for stage in found.stages}["refit"] == ""


def test_a_bucket_gives_the_same_facts(place: Place, tmp_path: Path) -> None:
    found = []
    for url in (place.url, tmp_path / "run"):
        settings = CaptureSettings("float32", batch_images=20)
        prune(
            build(SmallNet), random_images(40), budget="params=0.5", run=url, stages=1, capture_settings=settings,
            sensitivity="none", solve_settings=SolveSettings("elimination"), executor="serial",
        )  # fmt: skip
        evaluate(url, DATA, model=build(SmallNet))
        found.append(gather(url))
    there, here = found
    assert (there.groups, there.layers, there.walks) == (here.groups, here.layers, here.walks)
    assert (there.points, there.notes) == (here.points, here.notes)
    assert [stage.stage for stage in there.stages] == [stage.stage for stage in here.stages]
    written = report(place.url, tmp_path / "out", formats=("csv",))
    assert len(written.paths) == 4


def test_no_run_is_an_error_of_our_own(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        gather(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("damage", ["{}", '{"comparison": 1}', "["])
def test_damaged_evaluations_are_named(run: Run, damage: str) -> None:
    (Path(run.url) / layout.evaluation_key("pruned")).write_text(damage)
    with pytest.raises(CorruptDataError) as raised:
        gather(run)
    assert "evaluations/pruned.json" in str(raised.value.where)
