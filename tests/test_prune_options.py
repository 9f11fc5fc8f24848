"""What prune adds to solve: sensitivities by default, constraints, recalibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamsparse.capture import CaptureSettings
from streamsparse.errors import UsageError
from streamsparse.events import Event, Notice, Reused, Started
from streamsparse.run import Result, prune
from streamsparse.solve import Constraints, SolveSettings
from tests.small import SmallNet, build, random_images

SETTINGS = CaptureSettings("float32", batch_images=20)
IMAGES = random_images(120)


class TwoOutputs(SmallNet):
    """Nothing to compare class probabilities of."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(images)
        return {"logits": logits, "sums": logits.sum(1)}


def pruned(run: Path | None, kind: type[nn.Module] = SmallNet, **options: object) -> Result:
    chosen: dict[str, object] = {"budget": "params=0.5", "stages": 1, **options}
    return prune(
        build(kind), IMAGES, run=run, capture_settings=SETTINGS, solve_settings=SolveSettings("elimination"),
        executor="serial", **chosen,  # type: ignore[arg-type]
    )  # fmt: skip


def test_measures_by_default_and_once(tmp_path: Path) -> None:
    events: list[Event] = []
    plan = pruned(tmp_path, on_event=events.append).solution.plan
    assert plan.loss_kind == "divergence"
    assert "sensitivity" in [event.stage for event in events if isinstance(event, Started)]
    events.clear()
    again = pruned(tmp_path, budget="max-loss=0.1", on_event=events.append).solution.plan
    assert sum(again.predicted_losses.values()) <= 0.1
    assert Reused("sensitivity", "3 of 3 groups") in events
    assert "sensitivity" not in [event.stage for event in events if isinstance(event, Started)]


@pytest.mark.parametrize("options", [{"sensitivity": "none"}, {"budget": "max-error=0.3"}])
def test_measures_nothing_where_it_would_not_matter(options: dict[str, Any]) -> None:
    events: list[Event] = []
    plan = pruned(None, on_event=events.append, **options).solution.plan
    assert plan.loss_kind == "error"
    assert "sensitivity" not in [event.stage for event in events if isinstance(event, Started)]


def test_outputs_without_a_measure_are_said_and_pruned(tmp_path: Path) -> None:
    events: list[Event] = []
    result = pruned(tmp_path, TwoOutputs, on_event=events.append)
    assert result.solution.plan.loss_kind == "error"
    assert result.solution.plan.sparsity >= 0.5
    said = [event.message for event in events if isinstance(event, Notice) and event.stage == "sensitivity"]
    assert any("not measured" in message for message in said)


def test_an_unknown_way_to_measure_is_refused_before_the_capture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measure"):
        pruned(tmp_path / "run", sensitivity="magic")
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_constraints_hold_in_the_pruned_model(tmp_path: Path) -> None:
    constraints = Constraints(round_to=2, keep={"conv1": (0, 3)}, drop={"conv2": (2,)}, leave=("fc2",))
    result = pruned(tmp_path, budget="params=0.7", constraints=constraints)
    keep = result.solution.plan.keep
    assert {0, 3} <= set(keep["conv1"])
    assert 2 not in keep["conv2"]
    assert "fc1" not in keep, "fc2 consumes it"
    model = result.model
    assert isinstance(model, SmallNet)
    assert model.fc1.out_features == 12
    assert model.conv1.out_channels == len(keep["conv1"])
    assert len(keep["conv1"]) % 2 == 0
    conflicting = Constraints(drop={"conv1": (0,)}, leave=("conv1",))
    with pytest.raises(UsageError, match="stays whole"):
        pruned(tmp_path / "other", constraints=conflicting)
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_recalibrates_if_asked_to(tmp_path: Path) -> None:
    plain, other = pruned(tmp_path), pruned(tmp_path, recalibrate=True)
    assert other.solution.recalibrated
    assert not plain.solution.recalibrated
    changed = [
        name
        for name, value in other.model.state_dict().items()
        if not torch.equal(value, plain.model.state_dict()[name])
    ]
    assert any("running_mean" in name for name in changed)
