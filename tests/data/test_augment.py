"""Tests of augmentation, against Pillow where it has the operation and by statistics elsewhere."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from regnet.data import augment
from tests.pictures import pictures


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)
    images[1] = 77  # an image of a single color
    images[2] //= 3
    images[3] = images[3] // 8 * 8
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def pillow(batch, operation):
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in batch]
    found = np.stack([np.asarray(operation(image)) for image in images])
    return torch.from_numpy(found).permute(0, 3, 1, 2).float()


def apply(operation, batch, part=0.5, sign=1.0, *, wide=False):
    count = len(batch)
    return operation(batch.float(), torch.full((count,), part), torch.full((count,), sign), wide)


@pytest.mark.parametrize(
    ("operation", "part", "reference"),
    [
        (augment._posterize, 0.5, lambda image: ImageOps.posterize(image, 6)),
        (augment._solarize, 0.4, lambda image: ImageOps.solarize(image, 153)),
        (augment._equalize, 0.5, ImageOps.equalize),
        (augment._autocontrast, 0.5, ImageOps.autocontrast),
        (augment._brightness, 0.5, lambda image: ImageEnhance.Brightness(image).enhance(1.45)),
        (augment._color, 0.5, lambda image: ImageEnhance.Color(image).enhance(1.45)),
        (augment._contrast, 0.5, lambda image: ImageEnhance.Contrast(image).enhance(1.45)),
        (augment._sharpness, 0.5, lambda image: ImageEnhance.Sharpness(image).enhance(1.45)),
        (
            augment._translate_x,
            0.5,
            lambda image: image.transform(
                image.size, Image.Transform.AFFINE, (1, 0, int(0.5 * 150 / 331 * 24), 0, 1, 0)
            ),
        ),
        (
            augment._rotate,
            1.0,
            lambda image: image.rotate(-30),
        ),
    ],
)
def test_operations_equal_those_of_pillow(batch, operation, part, reference):
    found, expected = apply(operation, batch, part), pillow(batch, reference)
    # Pillow rounds intermediate values to bytes, and a rotated pixel may cross an edge.
    different = ((found - expected).abs() > 1.5).float().mean()
    assert different < (0.05 if operation is augment._rotate else 1e-9)


def test_shears_keep_the_center(batch):
    for operation, line in ((augment._shear_x, (slice(None), 10)), (augment._shear_y, None)):
        sheared = apply(operation, batch, 0.3)
        assert sheared.shape == batch.shape
        assert not torch.equal(sheared, batch.float())
        if line:  # rows near the middle hardly move
            torch.testing.assert_close(sheared[:, :, 10], batch.float()[:, :, 10])


@pytest.mark.parametrize("policy", ["rand", "trivial"])
def test_policies_draw_only_from_their_generator(policy):
    images = torch.from_numpy(pictures(40, (32, 32))[0]).permute(0, 3, 1, 2).float()

    def run(seed):
        if policy == "rand":
            return augment.rand_augment(images, 9, rng(seed))
        return augment.trivial_augment(images, rng(seed))

    state = torch.random.get_rng_state()
    first = run(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, run(1))
    assert not torch.equal(first, run(2))
    assert first.min() >= 0
    assert first.max() <= 255
    assert first.shape == images.shape
    changed = (first != images).flatten(1).any(1).float().mean()
    assert 0.7 < changed <= 1


def test_crops_are_moved_images():
    images = torch.arange(1, 2 * 3 * 8 * 8 + 1).float().view(2, 3, 8, 8)
    moved = augment.pad_and_crop(images, rng(3))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    for image, source in zip(moved, padded, strict=True):
        windows = [
            source[:, top : top + 8, left : left + 8] for top in range(9) for left in range(9)
        ]
        assert any(torch.equal(image, window) for window in windows)


def test_crops_use_every_offset_equally_often(batch):
    image = torch.zeros(4000, 1, 3, 3)
    image[:, :, 1, 1] = 1
    moved = augment.pad_and_crop(image, rng())
    # At 9 of the 81 offsets, the bright pixel stays in the window.
    assert moved.sum() / 4000 == pytest.approx(9 / 81, abs=0.02)


def test_lighting_has_the_colors_of_alexnet():
    noise = augment.lighting(torch.zeros(50_000, 3, 1, 1), 0.1, rng())[:, :, 0, 0] / 255
    vectors, values = torch.tensor(augment.EIGENVECTORS), torch.tensor(augment.EIGENVALUES)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(noise.T.cov(), expected, rtol=0.05, atol=2e-6)
    assert noise.mean().abs() < 3e-4


def test_flips_mirror_about_half_of_the_images():
    images = torch.arange(1000 * 3 * 2 * 4).float().view(1000, 3, 2, 4)
    found = augment.flip(images, rng())
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    same = (found == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert 0.45 < mirrored.float().mean() < 0.55


def test_cutout_and_erasing_hide_rectangles():
    images = torch.ones(500, 3, 32, 32)
    hidden = (augment.cutout(images, 10, rng()) == 0)[:, 0].sum((1, 2))
    assert hidden.max() == 100
    assert hidden.min() >= 25  # the center is always inside
    erased = (augment.erase(images, 0.5, rng()) == 0)[:, 0].flatten(1).float().mean(1)
    assert 0.4 < (erased > 0).float().mean() < 0.6
    assert erased.max() < 0.36


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixing_returns_partners_and_shares(mixup, cutmix):
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 16, 16).contiguous()
    for seed in range(20):
        mixed, partner, own = augment.mix(images, mixup=mixup, cutmix=cutmix, rng=rng(seed))
        assert 0 <= own <= 1
        expected = own * images.mean((1, 2, 3)) + (1 - own) * images[partner].mean((1, 2, 3))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected)


def test_beta_draws_have_the_mean_and_variance_of_their_law():
    generator = rng()
    for alpha in (0.2, 1.0):
        draws = torch.tensor([augment._beta(alpha, generator) for _ in range(4000)])
        assert draws.mean() == pytest.approx(0.5, abs=0.03)
        assert draws.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_random_resized_crops():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    generator = rng()
    crops = [augment.random_resized_crop(image, 24, 0.08, generator) for _ in range(20)]
    assert {crop.size for crop in crops} == {(24, 24)}
    assert len({crop.tobytes() for crop in crops}) == 20
    strip = Image.new("RGB", (400, 2), "red")  # no crop of the wanted shape fits into it
    assert augment.random_resized_crop(strip, 8, 0.9, rng()).getpixel((0, 0)) == (255, 0, 0)


def test_bytes_become_what_the_network_takes():
    pixels = torch.tensor([0, 255, 128], dtype=torch.uint8).expand(1, 3, 1, 3)
    found = augment.normalize(pixels, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    expected = torch.tensor([[-2, 2], [-1, 1], [-0.5, 0.5]])
    torch.testing.assert_close(found[0, :, 0, :2], expected)
    assert math.isclose(found[0, 2, 0, 2], 128 / 255 - 0.5, rel_tol=1e-5)
