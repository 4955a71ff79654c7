from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import regnet
from regnet.data.preprocess import Preprocess
from regnet.errors import ConfigError, ImageError
from tests import golden

PHOTO = Path(__file__).parents[2] / "docs/photos/chelsea.png"
REFERENCE = np.load(golden.DATA / "preprocess_torchvision.npz")


@pytest.mark.parametrize("case", REFERENCE.files)
def test_pixels_equal_those_of_torchvision(case):
    shape, size, crop_pct, interpolation = case.split("-")
    side = int(size)
    transform = Preprocess(
        size=(side, side),
        crop_pct=float(crop_pct),
        resize="squash" if shape == "squash" else "short_side",
        interpolation=interpolation,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    with Image.open(PHOTO) as photo:
        image = photo.transpose(Image.Transpose.ROTATE_90) if shape == "tall" else photo.copy()
    step = max(1, side // 32)
    found = transform(image)[:, ::step, ::step].permute(1, 2, 0).numpy()
    assert np.abs(found - REFERENCE[case] / 255).max() < 1e-6


def test_result_is_normalized():
    white = Image.new("RGB", (40, 40), "white")
    out = Preprocess(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))(white)
    assert out.shape == (3, 8, 8)
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([1.0, 3.0, 7.0]))


@pytest.mark.parametrize("image", [(1, 1), (1, 500), (500, 1), (7, 31)])
@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 16)])
def test_any_shape_of_image_fills_the_crop(image, size):
    out = Preprocess(size=size, crop_pct=0.9)(Image.new("RGB", image))
    assert out.shape == (3, *size)


def test_a_long_thin_image_does_not_fill_the_memory():
    with pytest.raises(ImageError, match=r"too long and thin to resize to .* crop it first"):
        Preprocess()(Image.new("RGB", (60_000, 1)))


def test_paths_are_opened():
    assert Preprocess()(PHOTO).shape == Preprocess()(str(PHOTO)).shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 224}, "size needs 2 values, got 224"),
        ({"size": (0, 3)}, r"size must be at least 1 pixel in height and width, got \(0, 3\)"),
        ({"crop_pct": 1.5}, r"crop_pct must lie in \(0, 1\], got 1.5"),
        ({"interpolation": "cubic"}, "interpolation must be one of bicubic, .* got 'cubic'"),
        ({"mean": (0.5,)}, r"std needs 1 values, got \(0.229, 0.224, 0.225\)"),
        ({"mean": ()}, r"mean needs one or more values, got \(\)"),
        ({"std": (1, 0, 1)}, r"std must be positive, got \(1, 0, 1\)"),
        ({"resize": "fit"}, "resize must be 'short_side' or 'squash', got 'fit'"),
    ],
)
def test_impossible_transforms_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Preprocess(**options)


@pytest.mark.parametrize(
    "transform",
    [
        Preprocess(),
        Preprocess(size=(32, 48), crop_pct=1.0, resize="squash", interpolation="bilinear"),
        Preprocess(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
    ],
)
def test_transforms_survive_conversion_to_timm_and_back(transform):
    assert Preprocess.from_timm(transform.to_timm()) == transform
    assert hash(transform) == hash(Preprocess.from_timm(transform.to_timm()))


def test_preprocess_returns_the_transform_of_a_model():
    transform = regnet.preprocess(regnet.create("regnety_cifar", pretrained=True))
    assert transform.size == (32, 32)
    assert transform.crop_pct == 1.0
    transform = regnet.preprocess(regnet.create("regnetz_b16"))
    assert transform == Preprocess()


def test_a_model_without_a_card_is_refused():
    with pytest.raises(ConfigError, match="no card that specifies its preprocessing"):
        regnet.preprocess(torch.nn.Identity())
