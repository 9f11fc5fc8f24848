"""Statistics of several sites into one run: what one run over all their images would have given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import streamsparse as ss
from pipelines.lenet import LeNet
from streamsparse.accumulate import AccumulateSettings
from streamsparse.capture import CaptureSettings, Subject
from streamsparse.errors import RunMismatchError, RunNotFoundError, StageMissingError, UsageError
from streamsparse.events import Event, Notice
from streamsparse.inspection import inspect_run
from streamsparse.intake.captured import read_captured
from streamsparse.merging import plan_merge
from streamsparse.solve import RidgeSearch, kept_inputs, refit_layer
from streamsparse.store import Run
from streamsparse.store.statistics import Statistics
from streamsparse.verification import verify_run
from tests.cli.invoking import invoke, last_json
from tests.small import SmallNet, TwiceNet, build, files_below, largest_difference, random_images, statistics_arrays

FOLDS = 4


def site(
    path: Path,
    images: Tensor,
    *,
    kind: type[torch.nn.Module] = SmallNet,
    seed: int = 0,
    folds: int = FOLDS,
    products: str = "float64",
    subject: Subject | None = None,
) -> Run:
    """A run with finished statistics over all the given images."""
    run = Run.at(path)
    settings = CaptureSettings("float32", batch_images=len(images))
    ss.capture(build(kind, seed), images, run, settings=settings, subject=subject)
    ss.accumulate(run, settings=AccumulateSettings(folds, products), executor="serial")
    return run


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, Run]:
    """Two sites, and one run over the images of both: 24 and 40 of the same 64."""
    folder, images = tmp_path_factory.mktemp("sites"), random_images(64)
    parts = (images[:24], images[24:], images)
    north, south, whole = (site(folder / str(number), part) for number, part in enumerate(parts))
    return north, south, whole


@pytest.fixture
def merged(tmp_path: Path, sites: tuple[Run, Run, Run]) -> Run:
    run = Run.at(tmp_path / "merged")
    ss.merge(sites[:2], run)
    return run


def summed_over_folds(run: Run) -> dict[str, np.ndarray]:
    """By layer and field; which image is in which fold depends on its place in its own run."""
    found: dict[str, np.ndarray] = {}
    for key, value in statistics_arrays(run).items():
        layer, _, field = key.split()
        found[f"{layer} {field}"] = found.get(f"{layer} {field}", 0) + value
    return found


def test_merged_statistics_are_those_of_one_run_over_all_images(merged: Run, sites: tuple[Run, Run, Run]) -> None:
    assert largest_difference(summed_over_folds(merged), summed_over_folds(sites[2])) < 1e-6
    first, second = (statistics_arrays(run) for run in sites[:2])
    assert largest_difference(statistics_arrays(merged), {key: first[key] + second[key] for key in first}) < 1e-15


def test_solve_gives_the_same_plan_and_weights(merged: Run, sites: tuple[Run, Run, Run]) -> None:
    whole = sites[2]
    ours, theirs = (ss.solve(run, budget="params=0.5") for run in (merged, whole))
    assert ours.plan.keep == theirs.plan.keep
    # Folds are other images here, so another ridge may serve them better: the same one gives the same weights.
    graph = read_captured(whole).graph
    for layer, inputs in kept_inputs(graph, ours.plan.keep).items():
        one, other = (
            refit_layer(graph.layers[layer], Statistics(run)[layer], inputs, RidgeSearch((1e-3,)))
            for run in (merged, whole)
        )
        np.testing.assert_allclose(one.weight, other.weight, rtol=1e-4, atol=1e-5)
        assert one.error.training_error == pytest.approx(other.error.training_error, rel=1e-4)


def test_the_merged_run_goes_on_to_a_checkpoint(merged: Run) -> None:
    report = ss.accumulate(merged)
    assert (report.layers, report.reused_layers, report.images) == (0, 3, 64)
    ss.solve(merged, budget="params=0.5")
    ss.write(merged, model=build(SmallNet))
    found = ss.evaluate(merged, torch.utils.data.TensorDataset(random_images(10)), model=build(SmallNet))
    assert found.comparison.images == 10
    stages = {stage["stage"]: stage for stage in inspect_run(merged)["stages"]}
    assert {stage["state"] for stage in stages.values()} == {"complete"}
    assert "2 captures" in stages["capture"]["detail"]
    data = merged.manifest()["data"]
    assert (data["images"], sorted(source["images"] for source in data["sources"])) == (64, [24, 40])


def test_it_holds_neither_images_nor_activations(merged: Run) -> None:
    assert merged.directory is not None
    kept = {name.split("/")[0] for name in files_below(merged.directory)}
    assert kept == {"manifest.json", "model", "statistics", "zarr.json"}


def test_it_verifies(merged: Run) -> None:
    assert not verify_run(merged)
    manifest = merged.manifest()
    del manifest["data"]["sources"][1]["seed"]
    merged.documents.write_json("manifest.json", manifest)
    assert ["data.sources[1].seed" in problem.summary for problem in verify_run(merged)] == [True]


def test_refit_says_that_the_images_are_elsewhere(merged: Run) -> None:
    ss.solve(merged, budget="params=0.5")
    with pytest.raises(UsageError, match=r"cannot be refitted in order[\s\S]*streamsparse write"):
        ss.refit(merged, random_images(64), model=build(SmallNet))


def test_capture_does_not_join_a_merged_run(merged: Run) -> None:
    with pytest.raises(RunMismatchError):
        ss.capture(build(SmallNet), random_images(64), merged)


def test_order_does_not_matter_and_merges_merge(tmp_path: Path, sites: tuple[Run, Run, Run], merged: Run) -> None:
    backwards = Run.at(tmp_path / "backwards")
    ss.merge([sites[1], sites[0]], backwards)
    ours, theirs = statistics_arrays(backwards), statistics_arrays(merged)
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    third = site(tmp_path / "third", random_images(20, seed=5))
    ss.merge([merged, third], tmp_path / "three")
    manifest = Run.at(tmp_path / "three").manifest()
    assert manifest["data"]["images"] == 84
    assert len(manifest["data"]["sources"]) == 3
    with pytest.raises(RunMismatchError, match="same sample"):  # sites[0] is in `merged` already
        ss.merge([Run.at(tmp_path / "three"), sites[0]], tmp_path / "again")


def test_resumes_and_reuses(tmp_path: Path, sites: tuple[Run, Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Statistics.write, 0

    def failing(*arguments: Any) -> None:
        nonlocal written
        if written == 2:
            raise OSError("the power is gone")
        written += 1
        write(*arguments)

    monkeypatch.setattr(Statistics, "write", failing)
    with pytest.raises(OSError, match="power"):
        ss.merge(sites[:2], tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(StageMissingError, match="merge"):
        ss.accumulate(tmp_path / "run")
    assert (report := ss.merge(sites[:2], tmp_path / "run")).layers == 1
    assert report.reused_layers == 2
    assert ss.merge(sites[:2], tmp_path / "run").reused_layers == 3


def refused(error: type[Exception], match: str, *runs: Run, into: Path) -> None:
    """Refused, and nothing is begun."""
    with pytest.raises(error, match=match):
        ss.merge(runs, into)
    assert not into.exists()


def test_refuses_what_does_not_belong_together(tmp_path: Path, sites: tuple[Run, Run, Run]) -> None:
    north, into, images = sites[0], tmp_path / "into", random_images(20, seed=9)
    assert north.directory is not None
    refused(UsageError, "two or more", north, into=into)
    refused(UsageError, "given twice", north, Run.at(north.directory / ".." / "0"), into=into)
    refused(RunNotFoundError, "no run here", north, Run.at(tmp_path / "nowhere"), into=into)
    refused(RunMismatchError, "different models", north, site(tmp_path / "a", images, seed=1), into=into)
    refused(RunMismatchError, "different models", north, site(tmp_path / "b", images, kind=TwiceNet), into=into)
    refused(RunMismatchError, "number of folds", north, site(tmp_path / "c", images, folds=5), into=into)
    refused(
        RunMismatchError, "dtype of products", north, site(tmp_path / "d", images, products="float32"), into=into
    )
    refused(RunMismatchError, "same sample", north, site(tmp_path / "e", random_images(64)[:24]), into=into)


def test_refuses_another_channel_graph(tmp_path: Path, sites: tuple[Run, Run, Run]) -> None:
    """A site whose model froze a group, or saw other shapes, sums other quantities."""
    other = site(tmp_path / "other", random_images(20, seed=9))
    manifest = other.manifest()
    manifest["graph"]["layers"][1]["input_shape"][1] += 1
    other.documents.write_json("manifest.json", manifest)
    refused(RunMismatchError, "geometry of layer 'conv2'", sites[0], other, into=tmp_path / "into")
    manifest["graph"]["groups"].pop()
    other.documents.write_json("manifest.json", manifest)
    refused(RunMismatchError, "number of channel groups", sites[0], other, into=tmp_path / "into")


def test_refuses_incomplete_statistics(tmp_path: Path, sites: tuple[Run, Run, Run]) -> None:
    half = site(tmp_path / "half", random_images(20, seed=9))
    half.documents.delete("statistics/original/fc1")
    refused(StageMissingError, "not complete", sites[0], half, into=tmp_path / "into")
    grown = site(tmp_path / "grown", random_images(20, seed=9))
    manifest = grown.manifest()
    manifest["data"]["images"] = 30
    grown.documents.write_json("manifest.json", manifest)
    refused(StageMissingError, "not those of all captured images", sites[0], grown, into=tmp_path / "into")


def test_refuses_a_target_that_is_another_run(tmp_path: Path, sites: tuple[Run, Run, Run]) -> None:
    with pytest.raises(UsageError, match="new run"):
        ss.merge(sites[:2], sites[0])
    other = site(tmp_path / "other", random_images(20, seed=9))
    with pytest.raises(RunMismatchError, match="holds another run"):
        ss.merge(sites[:2], other)


def test_samples_of_one_data_set_are_noticed(tmp_path: Path) -> None:
    """Two seeds of one data set overlap: not refused, for the name may mean another data set at the other site."""
    images, events = random_images(30), list[Event]()
    for seed in (0, 1):
        subject = Subject(data="npz:images.npz")
        run = Run.at(tmp_path / str(seed))
        ss.capture(build(SmallNet), images, run, images=20, seed=seed, subject=subject)
        ss.accumulate(run, settings=AccumulateSettings(FOLDS), executor="serial")
    ss.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "both", on_event=events.append)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    drawn = [set(torch.randperm(30, generator=torch.Generator().manual_seed(s))[:20].tolist()) for s in (0, 1)]
    assert f"{len(drawn[0] & drawn[1])} images count twice" in notice.message


def test_by_command_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(LeNet().state_dict(), tmp_path / "lenet.safetensors")
    random = np.random.default_rng(0)
    for name in ("north", "south"):
        images = random.standard_normal((40, 1, 28, 28), dtype=np.float32)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=random.integers(0, 10, 40))
        options = ("--model", "pipelines.lenet:LeNet", "--weights", tmp_path / "lenet.safetensors")
        invoke("capture", tmp_path / name, *options, "--data", f"npz:{tmp_path / name}.npz")
        invoke("accumulate", tmp_path / name)
    runs, into = (tmp_path / "north", tmp_path / "south"), tmp_path / "both"
    planned = last_json(invoke("merge", *runs, "--into", into, "--dry-run", "--json"), 0)
    assert (planned["plan"]["images"], planned["plan"]["folds"]) == (80, 5)
    assert "80 images of 2 runs" in invoke("merge", *runs, "--into", into, "--dry-run").stdout
    assert not into.exists()
    done = last_json(invoke("merge", *runs, "--into", into, "--json"), 0)
    assert (done["report"]["layers"], done["report"]["images"]) == (4, 80)
    assert "4 reused" in invoke("merge", *runs, "--into", into).stdout
    last_json(invoke("solve", into, "--channels", "conv1=8,fc1=40", "--json"), 0)
    refit = invoke("refit", into, "--json")
    assert (refit.exit_code, "UsageError" in refit.output) == (2, True)
    last_json(invoke("write", into, "--json"), 0)
    found = last_json(invoke("evaluate", into, "--data", f"npz:{tmp_path / 'north'}.npz", "--json"), 0)
    assert found["evaluation"]["comparison"]["images"] == 40
    states = [stage["state"] for stage in last_json(invoke("inspect", into, "--json"), 0)["stages"]]
    assert states == ["complete"] * 5
    assert "streamsparse merge sites/north" in invoke("merge", "--help").output
    twice = invoke("merge", runs[0], runs[0], "--into", tmp_path / "twice", "--json")
    assert (twice.exit_code, "given twice" in twice.output) == (2, True)


def test_plan_says_what_will_be_written(sites: tuple[Run, Run, Run], merged: Run) -> None:
    plan = plan_merge(sites[:2])
    assert plan.images == 64
    assert {layer.layer: layer.source for layer in plan.layers} == {
        layer: (Statistics(merged).description(layer) or {})["source"] for layer in Statistics(merged)
    }
    stored = sum(array.nbytes for array in statistics_arrays(merged).values())
    assert sum(layer.bytes for layer in plan.layers) == stored
