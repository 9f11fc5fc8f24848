"""Preprocessing as explicit numbers, against the transforms that the publishers ship."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from streamsparse.errors import DataError, UsageError
from streamsparse.intake.preprocessing import Preprocessing, choose_preprocessing, published_preprocessing

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "efficientnet_b0", "inception_v3", "swin_t"])
def test_torchvision_transforms_exactly(name: str) -> None:
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    published = published_preprocessing(f"torchvision:{name}?num_classes=3")
    assert published is not None
    assert torch.equal(published(PICTURE), transform(PICTURE))
    assert Preprocessing.from_json(json.loads(json.dumps(published.to_json()))) == published


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientvit_b0", "res2net50_26w_4s", "nf_resnet50", "convnext_tiny"]
)
def test_timm_transforms_exactly(name: str) -> None:
    timm = pytest.importorskip("timm")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**config, is_training=False)
    published = published_preprocessing(f"timm:{name}")
    assert published is not None
    torch.testing.assert_close(published(PICTURE), transform(PICTURE), rtol=0, atol=1e-6)


def test_nothing_is_published_for_own_code() -> None:
    assert published_preprocessing("package.module:function") is None
    assert choose_preprocessing("package.module:function") == Preprocessing()


def test_the_users_choice_wins() -> None:
    chosen = choose_preprocessing("torchvision:resnet18", normalize="0.5,0.25", size="32x40")
    pixels = chosen(PICTURE)
    assert pixels.shape == (3, 32, 40)
    assert torch.allclose(pixels * 0.25 + 0.5, Preprocessing(resize=(32, 40))(PICTURE), atol=1e-6)
    only_size = choose_preprocessing("torchvision:resnet18", size="64")
    assert (only_size.resize, only_size.mean) == ((64, 64), (0.485, 0.456, 0.406))


def test_lenet_and_padded_colour() -> None:
    grey = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8)
    pixels = Preprocessing(pad=2, channels=3, mean=(0.286,), std=(0.353,))(grey)
    assert pixels.shape == (3, 32, 32)
    assert torch.equal(pixels[0], pixels[2])
    assert torch.allclose(pixels[:, :2], torch.tensor(-0.286 / 0.353))
    assert torch.allclose(pixels[0, 2:-2, 2:-2], (grey[0] / 255 - 0.286) / 0.353)


@pytest.mark.parametrize("text", ["0.5", "a,b", "1,2,3", "", "0.5,0", "0.5,-1", "0.1/0.2,0.3", "nan,1"])
def test_normalisation_that_does_not_parse(text: str) -> None:
    with pytest.raises(UsageError):
        choose_preprocessing("a:b", normalize=text)


@pytest.mark.parametrize("text", ["0", "-3", "a", "3x4x5", "", "3x"])
def test_sizes_that_do_not_parse(text: str) -> None:
    with pytest.raises(UsageError):
        choose_preprocessing("a:b", size=text)


def test_means_must_fit_the_channels() -> None:
    with pytest.raises(DataError, match="number of channels"):
        Preprocessing(mean=(0.1, 0.2), std=(1.0, 1.0))(PICTURE)
