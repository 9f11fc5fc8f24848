"""The study of sample sizes, on few images of the embedded MNIST."""

from __future__ import annotations

import torch

from pipelines import sample_size
from pipelines.sample_size_tables import page


def test_lenet_on_few_images() -> None:
    found = sample_size.study("lenet", 256, 500)
    assert [point["images"] for point in found["points"]] == [64, 128, 256]
    assert found["baseline_accuracy"] > 0.97
    scores = [point["accuracy"] for point in found["points"]]
    assert min(scores) > 0.95  # 64 images are not enough for least squares alone: fc1 has 800 columns
    assert 0.5 < found["keep_fraction"] < 0.9
    fc1 = [look for look in found["looks"] if look["layer"] == "fc1"]
    gaps = [look["held_out_error"] - look["training_error"] for look in fc1]
    assert gaps == sorted(gaps, reverse=True)
    assert found["stops"]["0.01"]["layers"]["conv1"] == 128
    text = page(found, {"torch": torch.__version__}, "command")
    assert "| conv1 |" in text
    assert "not yet" in text
