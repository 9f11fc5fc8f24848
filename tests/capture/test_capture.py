"""Capture: what is dumped is what the layers saw, and a restart changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from streamsparse.accumulate import AccumulateSettings, accumulate
from streamsparse.capture import CaptureSettings, calibration_images, capture
from streamsparse.errors import (
    DataError,
    HalfOverflowError,
    InputError,
    NonFiniteError,
    RunError,
    RunLockedError,
    RunMismatchError,
    StorageError,
    UsageError,
)
from streamsparse.events import Advanced, Event, Reused
from streamsparse.kernels.patches import patches, responses
from streamsparse.store import Run
from streamsparse.store.activations import ActivationWriter
from streamsparse.store.statistics import Statistics
from tests.small import (
    SmallNet,
    TwiceNet,
    build,
    captured_run,
    files_below,
    largest_difference,
    random_images,
    statistics_arrays,
)

SETTINGS = CaptureSettings("float32", batch_images=10)


def everything(run: Run, layer: str, side: str, call: int = 0) -> np.ndarray:
    reader = run.reader()
    return np.concatenate([reader.read(batch, layer, call, side) for batch in reader.require_complete()])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("layer", ["conv2", "fc1", "fc2"])
def test_the_stored_input_and_output_are_the_layers(tmp_path: Path, dtype: str, layer: str) -> None:
    """In-place ReLUs follow conv1 and fc1; without copies they would have overwritten the dump."""
    run, model = Run.at(tmp_path), build(SmallNet)
    capture(model, random_images(), run, settings=CaptureSettings(dtype, batch_images=10))
    inputs, outputs = everything(run, layer, "input"), everything(run, layer, "output")
    with torch.no_grad():
        wanted = model.get_submodule(layer)(torch.from_numpy(inputs).float()).numpy()
    assert inputs.dtype == np.dtype(dtype)
    tolerance = 1e-5 if dtype == "float32" else 5e-3
    np.testing.assert_allclose(outputs.astype(np.float32), wanted, atol=tolerance * np.abs(wanted).max())
    assert (outputs < 0).any()


def test_stored_inputs_are_what_hooks_see_in_order(tmp_path: Path) -> None:
    run, model, images = captured_run(tmp_path), build(SmallNet), random_images()
    sample = calibration_images(images, seed=0)
    seen: list[Tensor] = []
    with torch.no_grad():
        handle = model.fc2.register_forward_hook(lambda _module, given, _output: seen.append(given[0].clone()))  # type: ignore[union-attr]
        model(images[list(sample.indices)])
        handle.remove()
    np.testing.assert_allclose(everything(run, "fc2", "input"), seen[0].numpy(), atol=1e-5)


def test_a_module_called_twice_is_dumped_per_call_and_summed_over_both(tmp_path: Path) -> None:
    run = captured_run(tmp_path, TwiceNet)
    accumulate(run, settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial")
    geometry = run.reader().layers["shared"].geometry
    gram, cross, rows = 0.0, 0.0, 0
    for call in range(2):
        x = patches(torch.from_numpy(everything(run, "shared", "input", call)).double(), geometry)[0].numpy()
        y = responses(torch.from_numpy(everything(run, "shared", "output", call)).double(), geometry)[0].numpy()
        gram, cross, rows = gram + x.T @ x, cross + x.T @ y, rows + len(x)
    found = Statistics(run)["shared"]
    np.testing.assert_allclose(sum(part.gram[0].numpy() for part in found), gram, rtol=1e-10)
    np.testing.assert_allclose(sum(part.cross[0].numpy() for part in found), cross, rtol=1e-8, atol=1e-8)
    assert sum(float(part.count) for part in found) == rows == 2 * 40 * 64


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = build(SmallNet).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture(model, random_images(), tmp_path, settings=SETTINGS)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class DyingWriter:
    """Lets the first batches through and then fails, as a full disk would."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.original = ActivationWriter.write

    def write(self, writer: ActivationWriter, index: int, tensors: Any, digest: str) -> None:
        if index >= self.batches:
            raise StorageError("The store could not be read or written.", got="No space left on device")
        self.original(writer, index, tensors, digest)


@pytest.mark.parametrize("survive", [0, 1, 3])
def test_a_resumed_capture_is_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survive: int
) -> None:
    undisturbed = captured_run(tmp_path / "whole")
    dying = DyingWriter(survive)
    with monkeypatch.context() as patch:
        patch.setattr(ActivationWriter, "write", lambda *arguments: dying.write(*arguments))
        with pytest.raises(StorageError, match="could not be read or written"):
            captured_run(tmp_path / "part")
    assert len(Run.at(tmp_path / "part").reader().batches()) == survive
    events: list[Event] = []
    report = capture(build(SmallNet), random_images(), tmp_path / "part", settings=SETTINGS, on_event=events.append)
    assert (report.images, report.reused_images) == (40 - 10 * survive, 10 * survive)
    assert sum(event.amount for event in events if event == Advanced("capture", 10)) == 40 - 10 * survive
    assert [event.what for event in events if isinstance(event, Reused)] == (
        [f"{10 * survive} of 40 images"] if survive else []
    )
    whole, part = files_below(tmp_path / "whole/activations"), files_below(tmp_path / "part/activations")
    assert whole == part
    assert undisturbed.reader().batches() == Run.at(tmp_path / "part").reader().batches()


def test_a_finished_capture_runs_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured_run(tmp_path)
    before = files_below(tmp_path)
    monkeypatch.setattr(ActivationWriter, "write", lambda *_: pytest.fail("a batch was written again"))
    report = capture(build(SmallNet), random_images(), tmp_path, settings=SETTINGS)
    assert (report.images, report.reused_images, report.batches) == (0, 40, 0)
    assert files_below(tmp_path) == before


def other_model(path: Path) -> None:
    capture(build(SmallNet, seed=9), random_images(), path, settings=SETTINGS)


def other_images(path: Path) -> None:
    capture(build(SmallNet), random_images(seed=9), path, settings=SETTINGS)


def other_seed(path: Path) -> None:
    capture(build(SmallNet), random_images(), path, seed=9, settings=SETTINGS)


def fewer_images(path: Path) -> None:
    capture(build(SmallNet), random_images(), path, images=30, settings=SETTINGS)


def other_batches(path: Path) -> None:
    capture(build(SmallNet), random_images(), path, settings=CaptureSettings("float32", batch_images=8))


def other_dtype(path: Path) -> None:
    capture(build(SmallNet), random_images(), path, settings=CaptureSettings("float16", batch_images=10))


@pytest.mark.parametrize(
    "attempt", [other_model, other_images, other_seed, fewer_images, other_batches, other_dtype]
)
def test_nothing_else_may_join_a_run(tmp_path: Path, attempt: Callable[[Path], None]) -> None:
    captured_run(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(RunMismatchError) as raised:
        attempt(tmp_path)
    assert raised.value.expected != raised.value.got
    assert raised.value.remedy is not None
    assert files_below(tmp_path) == before


def test_images_that_change_behind_the_first_are_noticed_on_resume(tmp_path: Path) -> None:
    """The manifest's digest covers the first image; the first committed batch covers the others."""
    images = random_images()
    captured_run(tmp_path)
    next(tmp_path.rglob("batch-00000003.json")).unlink()
    sample = calibration_images(images, seed=0)
    images[sample.indices[5]] += 1
    with pytest.raises(RunMismatchError, match="not those that this capture began with"):
        capture(build(SmallNet), images, tmp_path, settings=SETTINGS)


def test_overwrite_begins_anew(tmp_path: Path) -> None:
    captured_run(tmp_path)
    capture(build(SmallNet, seed=9), random_images(20), tmp_path, settings=SETTINGS, overwrite=True)
    capture(build(SmallNet, seed=9), random_images(20), tmp_path / "fresh", settings=SETTINGS)
    assert files_below(tmp_path / "activations") == files_below(tmp_path / "fresh/activations")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_directory_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/thesis.tex").write_text("years of work")
    with pytest.raises(RunError) as raised:
        capture(build(SmallNet), random_images(), tmp_path, settings=SETTINGS, overwrite=overwrite)
    assert raised.value.where == str(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "thesis.tex"]


def test_shards_give_the_statistics_of_one_capture(tmp_path: Path) -> None:
    whole = captured_run(tmp_path / "whole")
    for shard in (2, 0, 1):
        settings = CaptureSettings("float32", batch_images=10, shard=shard, shards=3)
        capture(build(SmallNet), random_images(), tmp_path / "shards", settings=settings)
    runs = [whole, Run.at(tmp_path / "shards")]
    for run in runs:
        accumulate(run, settings=AccumulateSettings(folds=4, product_dtype="float64"), executor="serial")
    # other batches mean another order of float32 operations inside the model
    assert largest_difference(statistics_arrays(runs[1]), statistics_arrays(runs[0])) <= 1e-5
    np.testing.assert_allclose(
        everything(runs[1], "conv2", "input"), everything(runs[0], "conv2", "input"), atol=1e-5
    )


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    captured_run(tmp_path)
    with Run.at(tmp_path).lock(), pytest.raises(RunLockedError):
        captured_run(tmp_path)


class Brightening(nn.Module):
    """Activations beyond float16 in front of `last`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.relu(self.first(images)) * 1e6) * 1e-6
        return logits


def test_float16_overflow_names_layer_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(HalfOverflowError) as raised:
        capture(build(Brightening), torch.rand(20, 4), tmp_path / "run")
    assert raised.value.where == "input of layer 'last'"
    assert "--dtype float32" in str(raised.value.remedy)
    assert Run.at(tmp_path / "run").reader().batches() == []
    report = capture(build(Brightening), torch.rand(20, 4), tmp_path / "other", settings=SETTINGS)
    assert report.images == 20


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["conv1.weight", "norm2.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, tensor: str) -> None:
    model = build(SmallNet)
    model.state_dict()[tensor].view(-1)[0] = value
    with pytest.raises(NonFiniteError) as raised:
        capture(model, random_images(), tmp_path / "run", settings=SETTINGS)
    assert raised.value.where == tensor
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_keep_the_batches_before_them(tmp_path: Path, value: float) -> None:
    images = random_images()
    images[calibration_images(images).indices[25]] = value
    with pytest.raises(NonFiniteError) as raised:
        capture(build(SmallNet), images, tmp_path, settings=SETTINGS)
    assert raised.value.where == "input of layer 'conv2'"
    assert [batch.index for batch in Run.at(tmp_path).reader().batches()] == [0, 1]


class Stream(IterableDataset[Tensor]):
    """A data set that has a length but no random access."""

    def __iter__(self) -> Any:
        return iter(random_images())

    def __len__(self) -> int:
        return 40


class Failing(Dataset[Tensor]):
    """The last image cannot be read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tensor:
        if self.size == 0 and index == 39:
            raise OSError("image39.jpg is truncated")
        return random_images(1, size=self.size if index == 39 else 8)[0]


UNUSABLE: dict[str, Callable[[], object]] = {
    "no images": lambda: torch.zeros(0, 1, 8, 8),
    "an empty list": list,
    "no length": lambda: iter([torch.zeros(1, 8, 8)]),
    "a stream": Stream,
    "no tensors": lambda: [{"image": 1}],
    "integers": lambda: torch.zeros(10, 1, 8, 8, dtype=torch.uint8),
}


@pytest.mark.parametrize("data", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_data_is_refused_before_anything_is_written(tmp_path: Path, data: Callable[[], object]) -> None:
    with pytest.raises(DataError) as raised:
        capture(build(SmallNet), data(), tmp_path / "run", settings=SETTINGS)
    assert raised.value.expected is not None
    assert raised.value.got is not None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 8, 8), (8,), (1, 12, 12)])
def test_images_of_a_shape_that_the_model_does_not_take(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as raised:
        capture(build(SmallNet), torch.zeros(20, *shape), tmp_path / "run", settings=SETTINGS)
    assert raised.value.exit_status == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "said"), [(0, "image39.jpg is truncated"), (6, "equal size")])
def test_an_image_that_fails_is_a_data_error(tmp_path: Path, size: int, said: str) -> None:
    with pytest.raises(DataError) as raised:
        capture(build(SmallNet), Failing(size), tmp_path, settings=SETTINGS)
    assert said in str(raised.value.got)


def test_a_data_loader_is_sampled_anew_with_its_collation() -> None:
    images = random_images(30)
    labelled = TensorDataset(images, torch.arange(30))

    def collate(items: list[Any]) -> Any:
        return torch.stack([2 * image for image, _ in items]), torch.tensor([label for _, label in items])

    loader = DataLoader(labelled, batch_size=7, shuffle=True, collate_fn=collate)
    sample = calibration_images(loader, images=12, seed=4)
    assert sample.indices == calibration_images(images, images=12, seed=4).indices
    assert len(set(sample.indices)) == 12
    batch = next(sample.batches([range(3, 8)]))
    torch.testing.assert_close(batch, 2 * images[list(sample.indices[3:8])])
    assert sample.indices != calibration_images(images, images=12, seed=5).indices


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "int8"},
        {"codec": "lzma"},
        {"batch_images": 0},
        {"shard": 2, "shards": 2},
        {"shard": -1},
        {"device": "abacus"},
    ],
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as raised:
        CaptureSettings(**settings)
    assert raised.value.got is not None
