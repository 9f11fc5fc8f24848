"""Training learns, repeats itself exactly, reports its progress and refuses what it cannot use."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.lenet import LeNet
from pipelines.mnist import calibration
from pipelines.recipe import Distillation, Recipe
from pipelines.training import Labelled, accuracy, fine_tune, shifted, train_classifier
from streamsparse.errors import DataError, NonFiniteError, UsageError
from streamsparse.events import Advanced, Event, Finished, Started


@pytest.fixture(scope="module")
def digits() -> Labelled:
    """2,000 images to train on."""
    images, labels = calibration().tensors()
    return images[:2000], labels[:2000]


@pytest.fixture(scope="module")
def other_digits() -> Labelled:
    """1,000 images that were not trained on."""
    images, labels = calibration().tensors()
    return images[-1000:], labels[-1000:]


def fresh_lenet(seed: int = 0) -> LeNet:
    torch.manual_seed(seed)
    return LeNet()


def identical(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_training_learns_digits(digits: Labelled, other_digits: Labelled) -> None:
    model = fresh_lenet()
    before = accuracy(model, other_digits)
    history = train_classifier(model, digits, Recipe(epochs=4, batch_size=32), validation=other_digits)
    assert before < 0.3
    assert accuracy(model, other_digits) > 0.9
    assert history[-1].validation_accuracy == accuracy(model, other_digits)
    assert history[-1].loss < history[0].loss
    assert not model.training


def test_the_same_recipe_gives_the_same_weights(digits: Labelled) -> None:
    recipe = Recipe(epochs=1, shift_pixels=1, seed=3)
    models = [fresh_lenet() for _ in range(3)]
    train_classifier(models[0], digits, recipe)
    torch.manual_seed(99)  # the caller's random state must not matter
    train_classifier(models[1], digits, recipe)
    train_classifier(models[2], digits, Recipe(epochs=1, shift_pixels=1, seed=4))
    assert identical(models[0], models[1])
    assert not identical(models[0], models[2])


def test_validation_changes_nothing(digits: Labelled, other_digits: Labelled) -> None:
    models = [fresh_lenet(), fresh_lenet()]
    train_classifier(models[0], digits, Recipe(epochs=2))
    train_classifier(models[1], digits, Recipe(epochs=2), validation=other_digits)
    assert identical(*models)


def test_dropout_is_seeded_and_the_callers_random_state_is_kept(digits: Labelled) -> None:
    images, labels = digits[0][:256], digits[1][:256]
    torch.manual_seed(0)
    one = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    two = copy.deepcopy(one)
    state = torch.get_rng_state()
    train_classifier(one, (images, labels), Recipe(epochs=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    train_classifier(two, (images, labels), Recipe(epochs=1))
    assert identical(one, two)


def test_distillation_follows_the_teacher_not_the_labels(digits: Labelled) -> None:
    images, labels = digits
    teacher = fresh_lenet()
    train_classifier(teacher, digits, Recipe(epochs=3))
    untouched = copy.deepcopy(teacher)
    student = fresh_lenet(seed=1)
    misleading = (labels + 1) % 10
    fine_tune(student, (images, misleading), Recipe(epochs=3), distillation=Distillation(teacher, weight=1.0))
    taught = teacher(images).argmax(1)
    assert accuracy(student, (images, taught)) > 0.9
    assert identical(teacher, untouched)


def test_the_loss_of_distillation_is_hintons(digits: Labelled) -> None:
    """One step in which nothing is learned: the reported loss is that of the formula."""
    images, labels = digits[0][:32], digits[1][:32]
    teacher, student = fresh_lenet(), fresh_lenet(seed=1)
    with torch.no_grad():
        wanted = functional.softmax(teacher(images).double() / 3, 1)
        given = functional.softmax(student(images).double() / 3, 1)
        divergence = (wanted * (wanted / given).log()).sum(1).mean()
        expected = 0.7 * 9 * divergence + 0.3 * functional.cross_entropy(student(images).double(), labels)
    recipe = Recipe(epochs=1, batch_size=32)
    history = fine_tune(student, (images, labels), recipe, distillation=Distillation(teacher, 3.0, 0.7))
    assert history[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_fine_tuning_without_a_teacher_is_training(digits: Labelled) -> None:
    models = [fresh_lenet(), fresh_lenet()]
    train_classifier(models[0], digits, Recipe(epochs=1))
    fine_tune(models[1], digits, Recipe(epochs=1))
    assert identical(*models)


def test_learning_rate_is_halved(digits: Labelled) -> None:
    data = (digits[0][:64], digits[1][:64])
    history = train_classifier(fresh_lenet(), data, Recipe(epochs=5, learning_rate=0.008, halve_every=2))
    assert [epoch.learning_rate for epoch in history] == [0.008, 0.008, 0.004, 0.004, 0.002]


@pytest.mark.parametrize(("tune", "stage"), [(train_classifier, "train"), (fine_tune, "fine_tune")])
def test_progress(tune: Callable[..., object], stage: str, digits: Labelled) -> None:
    events: list[Event] = []
    data = (digits[0][:100], digits[1][:100])
    tune(fresh_lenet(), data, Recipe(epochs=2, batch_size=64), on_event=events.append)
    assert events[0] == Started(stage, 4, "batches")
    assert events[1:-1] == [Advanced(stage, 1)] * 4
    assert isinstance(events[-1], Finished)


def test_accuracy_counts_every_image(digits: Labelled) -> None:
    model = fresh_lenet()
    images, labels = digits[0][:70], digits[1][:70]
    expected = sum(int(model(image[None]).argmax()) == label for image, label in zip(images, labels, strict=True))
    assert accuracy(model, (images, labels), batch_size=32) == expected / 70
    assert model.training  # as it was


def test_shifted_moves_whole_images() -> None:
    images = torch.zeros(500, 1, 7, 7)
    images[:, 0, 3, 3] = 1
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(500))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in range(1, 6) for column in range(1, 6)}


def test_shifted_fills_with_the_darkest_value_and_keeps_channels_together() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4) - 5
    moved = shifted(images, 1, torch.Generator().manual_seed(1))
    for image, original in zip(moved, images, strict=True):
        padded = functional.pad(original, (1,) * 4, value=-5.0)
        windows = [padded[:, row : row + 4, column : column + 4] for row in range(3) for column in range(3)]
        assert any(torch.equal(image, window) for window in windows)


def test_no_shift_is_the_image_itself(digits: Labelled) -> None:
    assert torch.equal(shifted(digits[0][:9], 0, torch.Generator()), digits[0][:9])


@pytest.mark.parametrize(
    "data",
    [(torch.zeros(0, 1, 28, 28), torch.zeros(0).long()), (torch.zeros(3, 1, 28, 28), torch.zeros(2).long())],
    ids=["empty", "a label missing"],
)
@pytest.mark.parametrize("use", [accuracy, lambda model, data: train_classifier(model, data, Recipe())])
def test_unusable_data(use: Callable[[nn.Module, Labelled], object], data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(DataError, match="do not fit together"):
        use(fresh_lenet(), data)


def test_divergence_is_an_error(digits: Labelled) -> None:
    images = digits[0][:64].clone()
    images[5, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="diverged") as caught:
        train_classifier(fresh_lenet(), (images, digits[1][:64]), Recipe(epochs=2))
    assert caught.value.where == "epoch 1 of 2"


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"learning_rate": -1.0}, {"halve_every": 0}, {"batch_size": 0}, {"shift_pixels": -1}]
)
def test_recipes_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Recipe(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"weight": 1.5}, {"weight": -0.1}])
def test_distillations_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Distillation(fresh_lenet(), **wrong)


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_mixed_precision(device: str, digits: Labelled, other_digits: Labelled) -> None:
    model = fresh_lenet()
    train_classifier(model, digits, Recipe(epochs=8, device=device, mixed_precision=True))
    assert accuracy(model, other_digits, device=device) > 0.9
    for parameter in model.parameters():  # as it was handed over
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()


def test_a_rate_goes_up_and_down_once(digits: Labelled) -> None:
    """From a 25th to the whole at a fifth of the way, to a thousandth at the end; applied batch by batch."""
    recipe = Recipe(epochs=10, learning_rate=0.5, one_cycle=True)
    rates = [recipe.learning_rate_in(epoch / 4) for epoch in range(41)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[8] == max(rates) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0005)
    assert rates[:9] == sorted(rates[:9])
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert [Recipe(epochs=9, halve_every=4).learning_rate_in(epoch) for epoch in (0, 3.9, 4, 8)] == [
        1e-3, 1e-3, 5e-4, 2.5e-4,
    ]  # fmt: skip
    model = fresh_lenet()
    history = train_classifier(model, digits, Recipe(epochs=3, learning_rate=4e-3, batch_size=50, one_cycle=True))
    assert history[-1].loss < history[0].loss < 2.3
