"""`inspect --verify`: what is damaged is named with its key, what is merely unfinished is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from streamsparse.accumulate import AccumulateSettings, accumulate, task
from streamsparse.capture import CaptureSettings, Subject, capture
from streamsparse.errors import RunNotFoundError, SchemaVersionError
from streamsparse.events import Advanced, Event, Finished, Notice, Started
from streamsparse.merging import merge
from streamsparse.run import prune
from streamsparse.solve import SolveSettings
from streamsparse.store import Run, layout
from streamsparse.store.statistics import Statistics
from streamsparse.store.window import discard
from streamsparse.verification import CHECKS, Findings, Problem, verify_run
from streamsparse.verification import Subject as Verified
from tests.cli.invoking import invoke, last_json
from tests.small import DAMAGE, SmallNet, batch_by_batch, build, files_below, flip_bit, random_images, summed_run

SPEC = f"{__name__}:small_net"


def small_net() -> SmallNet:
    """For the manifest: how the model is built."""
    return SmallNet()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through all stages, with a sequential refit."""
    path = tmp_path_factory.mktemp("finished") / "run"
    prune(
        build(SmallNet), random_images(40), budget="params=0.4", run=path, executor="serial",
        capture_settings=CaptureSettings("float32", batch_images=8), subject=Subject(model=SPEC),
        solve_settings=SolveSettings("elimination"),
    )  # fmt: skip
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def inspect(path: Path, *options: str) -> Result:
    return invoke("inspect", path, "--verify", *options)


def keys(path: Path) -> list[str]:
    return [problem.key for problem in verify_run(Run.at(path))]


def notes(path: Path) -> list[str]:
    events: list[Event] = []
    assert verify_run(Run.at(path), events.append) == []
    return [event.message for event in events if isinstance(event, Notice)]


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_whole_run_has_no_problems_and_is_not_touched(finished: Path) -> None:
    before = files_below(finished)
    events: list[Event] = []
    assert verify_run(Run.at(finished), events.append) == []
    assert not [event for event in events if isinstance(event, Notice)]
    stages = [event.stage for event in events if isinstance(event, Started)]
    assert stages == [event.stage for event in events if isinstance(event, Finished)]
    assert {"verify original 1/1", "verify statistics original", "verify checkpoints"} <= set(stages)
    assert files_below(finished) == before


def test_the_command_says_so_with_status_0(finished: Path) -> None:
    result = inspect(finished, "--json")
    assert result.exit_code == 0
    assert last_json(result)["problems"] == []
    assert last_json(result)["stages"]
    assert "no problems" in inspect(finished).stdout


def test_the_command_lists_problems_with_status_1(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    chunk = next(run.rglob("fc1@0/output/c/2/*"))
    flip_bit(chunk)
    (run / layout.WEIGHTS).unlink()
    result = inspect(run, "--json")
    assert result.exit_code == 1
    first, second = last_json(result)["problems"]
    assert first["part"] == "model"
    assert "missing" in first["summary"]
    assert second["key"].endswith("fc1@0/output, batch 2 (images 16 to 23)")
    assert {"summary", "expected", "got", "remedy"} < second.keys()
    table = inspect(run)
    assert table.exit_code == 1
    assert "2 problems" in table.stdout
    assert "fc1@0/output, batch 2" in table.stdout
    assert "delete the batch's marker" in " ".join(table.stdout.split())


def test_what_cannot_be_inspected_can_still_be_verified(run: Path) -> None:
    edit(run / "manifest.json", lambda manifest: manifest.pop("graph"))
    assert invoke("inspect", run).exit_code == 2
    result = inspect(run, "--json")
    assert result.exit_code == 1
    assert "'graph'" in last_json(result)["problems"][0]["summary"]
    assert "stages" not in last_json(result)


def test_a_dry_run_says_how_much_it_would_read(run: Path) -> None:
    (run / layout.WEIGHTS).unlink()
    result = inspect(run, "--dry-run", "--json")
    assert result.exit_code == 0
    assert last_json(result)["plan"]["read_bytes"] > 10_000


@pytest.mark.parametrize("options", [("--groups",), ("--model", "torchvision:resnet18")])
def test_verify_is_of_a_whole_run(finished: Path, options: tuple[str, ...]) -> None:
    assert inspect(finished, *options).exit_code == 2


def test_no_run_and_other_versions(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        verify_run(Run.at(tmp_path / "nothing"))
    edit(run / "manifest.json", lambda manifest: manifest.update(schema=0))
    with pytest.raises(SchemaVersionError):
        verify_run(Run.at(run))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("model/weights.safetensors", "model/weights.safetensors"),
        ("activations/original/*/conv2@0/output/c/0/**/0", "conv2@0/output, batch 0"),
        ("statistics/original/conv2/**/gram/c/0/**/0", "statistics/original/conv2"),
        ("statistics/refit-*/fc1/**/cross/c/0/**/0", "/fc1"),
        ("solution/fronts/conv1/**/errors/c/0", "solution/fronts/conv1"),
        ("solution/weights/*/fc2/**/weight/c/0/0", "fc2"),
        ("checkpoints/pruned/model.safetensors", "checkpoints/pruned"),
    ],
)
def test_damage_is_named_in_every_part(run: Path, pattern: str, key: str, damage: str) -> None:
    DAMAGE[damage](next(file for file in run.glob(pattern) if file.is_file()))
    found = verify_run(Run.at(run))
    assert len(found) == 1
    assert key in found[0].key
    assert found[0].remedy


@pytest.mark.parametrize(
    ("entry", "value", "word"),
    [
        ("sink", "tape", "sink"),
        ("layers", 3, "'layers'"),
        ("layers", ["conv9"], "channel graph"),
        ("data", None, "'data'"),
        ("created", 5, "'created'"),
        ("costs", {}, "not readable"),
    ],
)
def test_manifests_are_checked_entry_by_entry(run: Path, entry: str, value: object, word: str) -> None:
    edit(run / "manifest.json", lambda manifest: manifest.update({entry: value}))
    found = [problem for problem in verify_run(Run.at(run)) if problem.part == "manifest"]
    assert len(found) == 1
    assert word in found[0].summary
    assert found[0].key.endswith("manifest.json")


def test_manifest_sections_are_checked_too(run: Path) -> None:
    edit(run / "manifest.json", lambda manifest: manifest["data"].update(images=True))
    edit(run / "manifest.json", lambda manifest: manifest["model"].pop("weights_sha256"))
    summaries = " ".join(problem.summary for problem in verify_run(Run.at(run)) if problem.part == "manifest")
    assert "'data.images'" in summaries
    assert "'model.weights_sha256'" in summaries


@pytest.fixture(scope="module")
def summed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one shard with statistics in four folds."""
    path = tmp_path_factory.mktemp("summed") / "run"
    summed_run(path)
    return path


@pytest.fixture
def summed(summed_once: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(summed_once, tmp_path / "summed")
    return tmp_path / "summed"


def sums_of(path: Path, layer: str = "fc2") -> Any:
    return Statistics(Run.at(path)), Statistics(Run.at(path))[layer]


@pytest.mark.parametrize(
    ("field", "spoil", "law"),
    [
        ("gram", lambda values: values[0, 0].add_(1e9), "symmetric"),
        ("gram", lambda values: values.diagonal(dim1=1, dim2=2).mul_(0.1), "diagonal"),
        ("gram", lambda values: values.diagonal(dim1=1, dim2=2).neg_(), "not negative"),
        ("cross", lambda values: values.mul_(1e6), "powers of both sides"),
        ("sum_x", lambda values: values.add_(1e6), "sums of inputs"),
        ("sum_y", lambda values: values.add_(1e6), "sums of outputs"),
        ("power", lambda values: values.fill_(float("nan")), "finite"),
        ("count", lambda values: values.add_(0.5), "whole count"),
        ("count", lambda values: values.add_(1), "10 for each"),
    ],
)
def test_statistics_must_agree_with_themselves(
    summed: Path, field: str, spoil: Callable[[Any], object], law: str
) -> None:
    """Written with a right checksum, but wrong."""
    statistics, sums = sums_of(summed)
    spoil(getattr(sums[1], field))
    description = statistics.description("fc2")
    statistics.write(Run.at(summed).reader().layers["fc2"].geometry, sums, description)
    found = verify_run(Run.at(summed))
    assert found
    assert all("statistics/original/fc2" in problem.key for problem in found)
    if law != "10 for each":
        assert any(law in str(problem.expected) and "fold 1" in problem.key for problem in found)
    else:
        assert [problem.got for problem in found] == ["41"]


def test_statistics_of_other_shapes(summed: Path) -> None:
    statistics, sums = sums_of(summed, "fc1")
    statistics.write(Run.at(summed).reader().layers["fc2"].geometry, sums, statistics.description("fc1"))
    found = verify_run(Run.at(summed))
    assert len(found) == 4
    assert all("shapes or dtypes" in problem.summary for problem in found)


def summed_capture(path: Path) -> Run:
    run = Run.at(path)
    for shard in range(2):
        settings = CaptureSettings(batch_images=5, shard=shard, shards=2, sink="statistics", folds=4)
        capture(build(SmallNet), random_images(31), run, settings=settings)
    return run


@pytest.mark.parametrize("damage", DAMAGE)
def test_sums_of_a_capture_that_dumps_nothing(tmp_path: Path, damage: str) -> None:
    run = summed_capture(tmp_path)
    assert verify_run(run) == []
    chunk = next(file for file in sorted(tmp_path.glob("partials/**/fc1/**/products-0/c/0/**/0")) if file.is_file())
    DAMAGE[damage](chunk)
    found = verify_run(run)
    assert len(found) == 1
    assert "shard-0000-of-0002" in found[0].key
    assert "fc1" in found[0].key


def test_sums_over_other_images_than_they_stand_for(tmp_path: Path) -> None:
    run = summed_capture(tmp_path)
    progress = next(tmp_path.rglob("shard-0001-of-0002/progress.json"))
    edit(progress, lambda document: document.update(batches=1))
    found = verify_run(run)
    assert len(found) == 3
    assert all("images that they stand for" in problem.summary for problem in found)


class StopError(Exception):
    """Stands for whatever ends an accumulation."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_sums_of_an_accumulation_that_was_stopped(run: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(task, "pieces", batch_by_batch)
    shutil.rmtree(run / "statistics")
    batches = 0

    def stop(event: Event) -> None:
        nonlocal batches
        batches += isinstance(event, Advanced)
        if batches == 3:
            raise StopError

    with pytest.raises(StopError):
        accumulate(
            Run.at(run),
            settings=AccumulateSettings(folds=4, product_dtype="float64"),
            executor="serial",
            on_event=stop,
        )
    files = [file for file in sorted(run.glob("partials/*/sums-*/**/c/**/*")) if file.is_file()]
    assert files
    assert verify_run(Run.at(run)) == []
    DAMAGE[damage](files[0])
    found = verify_run(Run.at(run))
    assert len(found) == 1
    assert str(found[0].key).startswith(str(files[0].relative_to(run)).partition("/lane-")[0])


def test_a_merged_run_has_no_problems(tmp_path: Path) -> None:
    for seed in range(2):
        capture(
            build(SmallNet), random_images(20, seed=seed), tmp_path / str(seed),
            settings=CaptureSettings("float32", batch_images=10),
        )  # fmt: skip
        accumulate(
            tmp_path / str(seed), settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial"
        )
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "both")
    assert verify_run(Run.at(tmp_path / "both")) == []
    stages = last_json(inspect(tmp_path / "both", "--json"))["stages"]
    assert "2 captures" in stages[0]["detail"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan.update(images="ten"), "no meaning"),
        (lambda plan: plan.update(batch_images=0), "no meaning"),
        (lambda plan: plan.update(shard=3), "another place"),
        (lambda plan: plan.update(codec="magic"), "Unknown codec"),
        (lambda plan: plan.update(dtype="int8"), "no meaning"),
        (lambda plan: plan.pop("layers"), "not readable"),
        (lambda plan: plan["layers"][0]["geometry"].update(out_channels=9), "manifest"),
    ],
)
def test_plans_are_checked(run: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    edit(next(run.rglob("shard-0000-of-0001/plan.json")), change)
    found = verify_run(Run.at(run))
    assert words in " ".join(problem.summary for problem in found)
    assert any("shard-0000-of-0001/plan.json" in problem.key for problem in found)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"plan": 3}'])
def test_markers_that_are_none(run: Path, content: str) -> None:
    marker = next(run.rglob("batch-00000002.json"))
    marker.write_text(content)
    assert keys(run) == [str(marker.relative_to(run))]


def test_the_array_of_a_batch_is_gone(run: Path) -> None:
    array = next(run.rglob("fc2@0/input"))
    shutil.rmtree(array)
    assert keys(run) == [f"{array.relative_to(run)}/zarr.json"]


def test_activations_that_are_not_finite(summed: Path) -> None:
    """Stored whole, with a right checksum."""
    run = Run.at(summed)
    plan = run.plans("original")[0]
    reader = run.reader()
    values = {
        (name, 0, side): reader.read(reader.batches()[1], name, 0, side).copy()
        for name in reader.layers
        for side in ("input", "output")
    }
    values["fc1", 0, "input"][0, 0] = np.inf
    run.writer(plan).write(1, values, reader.batches()[1].digest)
    found = verify_run(run)
    assert [problem.summary for problem in found] == ["Stored activations are not finite."]
    assert found[0].key.endswith("fc1@0/input, batch 1")


def test_leftovers_of_kills_are_notes(run: Path) -> None:
    marker = next(run.rglob("batch-00000003.json"))
    marker.unlink()
    (marker.parent / "batch-00000003.0123.partial").write_bytes(b"half")
    array = next(run.rglob("fc1@0/input"))
    (array / "c").joinpath("0123.partial").write_bytes(b"half")
    (run / "checkpoints/pruned/config.json").unlink()
    found = notes(run)
    assert any("6 chunks of batches without a right marker (3)" in note for note in found)
    assert any("1 temporary files" in note for note in found)
    assert any("config.json" in note for note in found)
    assert any("leftover" in note for note in found)


def test_discarded_batches_are_not_missed(run: Path) -> None:
    opened = Run.at(run)
    reader = opened.reader()
    discard(opened, reader.plans, reader.batches()[:2])
    assert any("2 batches were discarded" in note for note in notes(run))


def test_a_run_that_has_just_begun_has_no_problems(tmp_path: Path, run: Path) -> None:
    for part in ("activations", "statistics", "solution", "checkpoints"):
        shutil.rmtree(run / part)
        assert keys(run) == []


def test_solutions_are_compared_with_the_graph(run: Path) -> None:
    edit(run / layout.SOLUTION, lambda document: document["plan"]["keep"].update(conv1=[0, 99]))
    found = verify_run(Run.at(run))
    assert [problem.key for problem in found] == [layout.SOLUTION]
    assert "'conv1'" in found[0].summary


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"plan": []}'])
def test_solutions_that_are_none(run: Path, content: str) -> None:
    (run / layout.SOLUTION).write_text(content)
    assert keys(run) == [layout.SOLUTION]


def test_a_checkpoint_that_does_not_load_is_named(run: Path) -> None:
    """Its two files agree with each other, but not with the model."""
    from streamsparse.write.checkpoint import encode_checkpoint
    from tests.small import ConcatNet

    Run.at(run).write_checkpoint("foreign", encode_checkpoint(build(ConcatNet)), last="config.json")
    assert [key for key in keys(run) if key.startswith("checkpoints/foreign")]


def test_lossy_codecs_are_said(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    settings = CaptureSettings("float16", "bitround:5+zstd:1", batch_images=10)
    capture(build(SmallNet), random_images(20), run, settings=settings)
    assert any("lossy" in note for note in notes(tmp_path))
    found = invoke("inspect", tmp_path, "--json")
    assert "5 of 10 bits" in last_json(found)["stages"][0]["detail"]


def test_a_new_kind_of_data_adds_its_own_check(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(subject: Verified, findings: Findings) -> None:
        assert subject.captured is not None
        findings.add("extra/key", "Wrong.", expected=1, got=2, remedy="mend it")
        raise KeyError("lost")

    monkeypatch.setattr("streamsparse.verification.CHECKS", [*CHECKS, ("extra", check)])
    first, second = verify_run(Run.at(finished))
    assert first == Problem("extra", "extra/key", "Wrong.", "1", "2", "mend it")
    assert (second.part, second.got) == ("extra", "KeyError: 'lost'")
