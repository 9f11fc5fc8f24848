"""The study of sample sizes, on few images of the embedded MNIST."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines import sample_size
from pipelines.sample_size_tables import page
from streamsparse.errors import DataError


def test_lenet_on_few_images() -> None:
    found = sample_size.study("lenet", 256, 500)
    assert [point["images"] for point in found["points"]] == [64, 128, 256]
    assert found["baseline_accuracy"] > 0.97
    scores = [point["accuracy"] for point in found["points"]]
    assert scores[0] < scores[-1]
    assert scores[-1] > 0.95
    assert 0.5 < found["keep_fraction"] < 0.9
    fc1 = [look for look in found["looks"] if look["layer"] == "fc1"]
    gaps = [look["held_out_error"] - look["training_error"] for look in fc1]
    assert gaps == sorted(gaps, reverse=True)
    assert found["stops"]["0.01"]["layers"]["conv1"] == 128
    text = page(found, {"torch": torch.__version__}, "command")
    assert "| conv1 |" in text
    assert "not yet" in text


def test_the_trained_vgg16_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_size, "SHARED", tmp_path)
    with pytest.raises(DataError, match="VGG-16"):
        sample_size.vgg16()


@pytest.mark.skipif(
    not sample_size.VGG16_WEIGHTS.exists(), reason="the trained VGG-16 is not beside the repository"
)
def test_fashion_images_are_those_that_the_vgg16_was_trained_on() -> None:
    subjects = sample_size.vgg16()
    one, label = subjects.test[0]
    batch, labels = subjects.test[0:3]
    assert torch.equal(batch[0], one)
    assert labels[0] == label
    assert one.shape == (3, 32, 32)
    assert one[0, 0, 0] == pytest.approx(-0.2860 / 0.3530)
    assert sample_size.accuracy(subjects.model, subjects.test, 250) > 0.9
