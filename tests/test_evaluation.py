"""Evaluation: latency where it is asked for, and measured errors only of the weights that were predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from streamsparse.capture import CaptureSettings
from streamsparse.cli.results import show_evaluation
from streamsparse.errors import UsageError
from streamsparse.evaluation import evaluate
from streamsparse.run import prune
from streamsparse.solve import SolveSettings
from streamsparse.store import Run, layout
from streamsparse.write.checkpoint import decode_checkpoint, encode_checkpoint, verify_checkpoint
from streamsparse.write.description import CONFIG_FILE
from tests.small import SmallNet, build, random_images

DATA = TensorDataset(random_images(20, seed=7))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "run"
    prune(
        build(SmallNet), random_images(60), budget="params=0.5", run=path, stages=1, executor="serial",
        capture_settings=CaptureSettings("float32", batch_images=20), solve_settings=SolveSettings("elimination"),
    )  # fmt: skip
    return path


def test_weights_tuned_after_the_solution_are_not_measured_as_its_own(finished: Path) -> None:
    run = Run.at(finished)
    assert evaluate(run, DATA, model=build(SmallNet)).layer_errors != {}
    files = run.read_checkpoint("pruned")
    tuned = decode_checkpoint(files, build(SmallNet))
    with torch.no_grad():
        tuned.get_parameter("fc2.bias").add_(0.01)
    changed = encode_checkpoint(tuned, verify_checkpoint(files)[0].config)
    run.write_checkpoint("tuned", changed, last=CONFIG_FILE)
    found = evaluate(run, DATA, model=build(SmallNet), name="tuned")
    assert found.layer_errors == {}
    assert found.pruned_costs == evaluate(run, DATA, model=build(SmallNet)).pruned_costs


def test_latency_is_measured_stored_and_shown(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(finished, DATA, model=build(SmallNet), latency_batch_sizes=(1, 4))
    assert found.latency is not None
    assert found.latency.batch_sizes == (1, 4)
    for seconds in (found.latency.original_seconds, found.latency.pruned_seconds):
        assert len(seconds) == 2
        assert all(0 < one < 10 for one in seconds)
    stored = Run.at(finished).documents.read_json(layout.evaluation_key("pruned"))
    assert stored is not None
    assert stored["latency"] == json.loads(json.dumps(found.latency.__dict__))
    show_evaluation(found)
    assert "ms for 4 images" in capsys.readouterr().out


def test_latency_is_left_out_unless_asked_for(finished: Path) -> None:
    assert evaluate(finished, DATA, model=build(SmallNet)).latency is None
    with pytest.raises(UsageError, match="Latency"):
        evaluate(finished, DATA, model=build(SmallNet), latency_batch_sizes=(0,))
