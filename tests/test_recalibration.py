"""Running statistics behind the refit: against float64 by hand, and through store, write, load and evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import streamsparse as ss
from streamsparse.capture import CaptureSettings, calibration_images
from streamsparse.errors import CorruptDataError, ModelError, NonFiniteError
from streamsparse.evaluation import evaluate
from streamsparse.events import Event, Notice
from streamsparse.intake.captured import read_captured
from streamsparse.network import find_groups
from streamsparse.network.refitting import with_weights
from streamsparse.recalibration import recalibrated_statistics
from streamsparse.sequential import refit
from streamsparse.solve import SolveSettings, solve
from streamsparse.store import Run, layout
from streamsparse.store.solution import commit_solution, read_buffers, read_solution, read_weights
from streamsparse.types import Solution
from streamsparse.verification import verify_run
from tests.small import ConcatNet, SmallNet, build, files_below, random_images, summed_run

SETTINGS = CaptureSettings("float32", batch_images=20)
KEEP = {"conv1": [0, 2, 3, 5], "conv2": [1, 2, 6, 7]}
NORMS = ("norm1.running_mean", "norm1.running_var", "norm2.running_mean", "norm2.running_var")


def small(seed: int = 0) -> SmallNet:
    model = build(SmallNet, seed)
    assert isinstance(model, SmallNet)
    return model


@torch.no_grad()
def by_hand(model: SmallNet, images: Tensor) -> dict[str, Tensor]:
    """Statistics of SmallNet's two normalisations over all images in one batch, the second behind the first."""
    first = model.conv1(images)
    found = {"norm1.running_mean": first.mean((0, 2, 3)), "norm1.running_var": first.var((0, 2, 3))}
    affine = (model.norm1.weight, model.norm1.bias)
    normal = F.batch_norm(first, found["norm1.running_mean"], found["norm1.running_var"], *affine, eps=1e-5)
    second = model.conv2(torch.relu(normal))
    found |= {"norm2.running_mean": second.mean((0, 2, 3)), "norm2.running_var": second.var((0, 2, 3))}
    return found


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_they_are_those_of_all_images_at_once(batch: int) -> None:
    model, images = small().double(), random_images(40).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = find_groups(model, images[:1])
    found = recalibrated_statistics(model, graph, {}, calibration_images(images), batch_images=batch)
    assert tuple(found) == NORMS
    for name, expected in by_hand(model, images).items():
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=1e-12, atol=1e-14)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_cut_network_counts_and_removed_channels_keep_theirs() -> None:
    """Removed channels reach nobody; in the twin of the original's shape their inputs are zeroed instead."""
    model, images = small().double(), random_images(40).double()
    graph = find_groups(model, images[:1])
    found = recalibrated_statistics(model, graph, KEEP, calibration_images(images))
    twin = small().double()
    with torch.no_grad():
        twin.conv2.weight[:, [1, 4]] = 0
    expected = by_hand(twin, images)
    for norm, group in (("norm1", "conv1"), ("norm2", "conv2")):
        kept = KEEP[group]
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            np.testing.assert_allclose(found[name][kept], expected[name].numpy()[kept], rtol=1e-12, atol=1e-14)
            gone = [channel for channel in range(len(found[name])) if channel not in kept]
            np.testing.assert_array_equal(found[name][gone], model.get_buffer(name).numpy()[gone])


def test_a_constant_channel_keeps_its_variance() -> None:
    model, images = small(), random_images(40)
    with torch.no_grad():
        model.conv1.weight[3] = 0
        model.get_parameter("conv1.bias")[3] = 0.7
    found = recalibrated_statistics(model, find_groups(model, images[:1]), {}, calibration_images(images))
    assert found["norm1.running_mean"][3] == pytest.approx(0.7)
    assert found["norm1.running_var"][3] == float(model.get_buffer("norm1.running_var")[3])
    assert found["norm1.running_var"][2] != float(model.get_buffer("norm1.running_var")[2])


class SharedNorm(nn.Module):
    """One normalisation that two layers pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        sides = self.norm(self.first(images)) + self.norm(self.second(images))
        logits: Tensor = self.head(self.untracked(sides).mean((2, 3)))
        return logits


def test_a_shared_normalisation_sees_both_its_inputs_and_one_without_statistics_is_left_alone() -> None:
    model, images = SharedNorm().double().eval(), random_images(40).double()
    found = recalibrated_statistics(model, find_groups(model, images[:1]), {}, calibration_images(images))
    both = torch.cat([model.first(images), model.second(images)]).detach()
    assert set(found) == {"norm.running_mean", "norm.running_var"}
    np.testing.assert_allclose(found["norm.running_mean"], both.mean((0, 2, 3)).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found["norm.running_var"], both.var((0, 2, 3)).numpy(), rtol=1e-12)


def test_activations_that_are_not_finite_are_refused() -> None:
    model, images = small(), random_images(10)
    graph = find_groups(model, images[:1])
    with torch.no_grad():
        model.get_parameter("conv2.bias")[2] = float("inf")
    with pytest.raises(NonFiniteError, match="refitted network") as raised:
        recalibrated_statistics(model, graph, {}, calibration_images(images))
    assert raised.value.where == "norm2"


def test_a_model_without_batch_normalisation_is_noticed(tmp_path: Path) -> None:
    run = summed_run(tmp_path, ConcatNet)
    solve(run, budget="params=0.6", settings=SolveSettings("elimination"))
    events: list[Event] = []
    solution = refit(
        run, random_images(), model=build(ConcatNet), recalibrate=True, settings=SETTINGS, on_event=events.append
    )
    assert solution.recalibrated == ()
    assert [event.message for event in events if isinstance(event, Notice) and event.stage == "recalibrate"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Solved, refitted and recalibrated."""
    run = summed_run(tmp_path_factory.mktemp("recalibrated"))
    solve(run, budget="params=0.5", settings=SolveSettings("elimination"))
    refit(run, random_images(), model=build(SmallNet), recalibrate=True, settings=SETTINGS)
    return run


def test_write_and_load_give_them_back(finished: Run) -> None:
    solution = read_solution(finished)
    assert set(solution.recalibrated) == set(NORMS)
    graph, buffers = read_captured(finished).graph, read_buffers(finished, solution)
    twin = with_weights(build(SmallNet), read_weights(finished, solution))
    expected = recalibrated_statistics(
        twin, graph, solution.plan.keep, calibration_images(random_images()), batch_images=20
    )
    ss.write(finished, model=build(SmallNet))
    loaded = ss.load(Path(finished.url) / "checkpoints/pruned", SmallNet())
    for norm, group in (("norm1", "conv1"), ("norm2", "conv2")):
        kept = list(solution.plan.keep[group])
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            np.testing.assert_array_equal(buffers[name], expected[name])
            np.testing.assert_array_equal(loaded.get_buffer(name).numpy(), buffers[name][kept].astype(np.float32))
            assert not np.array_equal(buffers[name][kept], build(SmallNet).get_buffer(name).numpy()[kept])


def test_evaluation_measures_the_recalibrated_network_and_verification_reads_it(finished: Run) -> None:
    ss.write(finished, model=build(SmallNet))
    found = evaluate(finished, TensorDataset(random_images(20, seed=7)), model=build(SmallNet))
    assert found.layer_errors.keys() == {error.layer for error in read_solution(finished).layers}
    assert verify_run(finished) == []


def test_another_refit_drops_them(tmp_path: Path) -> None:
    run = summed_run(tmp_path)
    solve(run, budget="params=0.5", settings=SolveSettings("elimination"))
    with_them = refit(run, random_images(), model=build(SmallNet), recalibrate=True, settings=SETTINGS)
    assert [key for key in files_below(tmp_path) if "@buffers" in key]
    without = refit(run, random_images(), model=build(SmallNet), settings=SETTINGS)
    assert without.recalibrated == ()
    assert without.layers == with_them.layers
    assert read_buffers(run, without) == {}
    assert not [key for key in files_below(tmp_path) if "@buffers" in key]


def test_a_commit_that_dies_anywhere_leaves_the_solution_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Run
) -> None:
    """Fail at the n-th write, for every n: weights and statistics are of one solution."""
    solution = read_solution(finished)
    weights, buffers = read_weights(finished, solution), read_buffers(finished, solution)
    old = Solution(solution.plan, solution.layers, "independent")
    run = Run.at(tmp_path)
    commit_solution(run, old, weights)
    store, done = type(run.store), False
    original = store.set
    for survive in range(200):
        calls = 0

        async def dying(self: object, *args: object, survive: int = survive) -> None:
            nonlocal calls
            calls += 1
            if calls > survive:
                raise OSError(28, "No space left on device")
            await original(self, *args)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(store, "set", dying)
            try:
                commit_solution(run, solution, weights, buffers)
                done = True
            except ss.StreamsparseError:
                done = False
        assert read_solution(run) == (solution if done else old)
        found = read_buffers(run, read_solution(run))
        assert found.keys() == (buffers.keys() if done else set())
        if done:
            break
    assert done


def test_a_run_written_before_there_were_any_still_reads(tmp_path: Path, finished: Run) -> None:
    solution = read_solution(finished)
    run, old = Run.at(tmp_path), Solution(solution.plan, solution.layers, "sequential")
    commit_solution(run, old, read_weights(finished, solution))
    path = tmp_path / layout.SOLUTION
    document = json.loads(path.read_text())
    del document["recalibrated"]
    path.write_text(json.dumps(document))
    assert read_solution(run) == old
    assert read_buffers(run, old) == {}


def test_statistics_that_are_missing_or_of_another_model_are_refused(tmp_path: Path, finished: Run) -> None:
    solution = read_solution(finished)
    run = Run.at(tmp_path)
    buffers = read_buffers(finished, solution)
    commit_solution(run, solution, read_weights(finished, solution), {NORMS[0]: buffers[NORMS[0]]})
    with pytest.raises(CorruptDataError, match="missing"):
        read_buffers(run, solution)
    with pytest.raises(ModelError, match="do not fit"):
        with_weights(build(ConcatNet), {}, buffers)
