"""Augment batches of images on their device, and crop single images at random.

All random numbers come from a generator that the caller passes. They are drawn on the CPU, so that
a seed gives the same augmentation on every device. Batches are (N, 3, H, W).
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

EIGENVALUES: Final = (0.2175, 0.0188, 0.0045)
EIGENVECTORS: Final = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""Principal components of ImageNet's RGB colors in [0, 1], one per column (Krizhevsky et al.
2012)."""

BORDER: Final = 4
"""Pixels of padding on each side of a CIFAR image before it is cropped at random."""


LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R 601-2), the same as Pillow's."""


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalize pixel values from 0 to 255, bytes or floats, as the network takes them.

    Args:
        pixels: (N, 3, H, W).
        mean: the mean of each channel, from 0 to 1; with a single value, the images are converted
            to gray (ITU-R 601-2).
        std: the standard deviation of each channel.
    """
    pixels = gray(pixels) if len(mean) == 1 else pixels
    shift, scale = (beside(pixels, 255 * torch.tensor(v))[:, None, None] for v in (mean, std))
    return (pixels.float() - shift) / scale


def gray(pixels: Tensor) -> Tensor:
    """Convert RGB images (N, 3, H, W) to gray images (N, 1, H, W), floats from 0 to 255."""
    weights = beside(pixels, torch.tensor(LUMA))[:, None, None]
    return (pixels.float() * weights).sum(1, keepdim=True)


def beside(images: Tensor, values: Tensor) -> Tensor:
    """Move values to the device of the images, from pinned memory so that the CPU need not wait."""
    values = values.pin_memory() if images.is_cuda else values
    return values.to(images.device, non_blocking=True)


def flip(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image horizontally with probability one half."""
    chosen = beside(images, torch.rand(len(images), generator=rng) < 0.5)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def pad_and_crop(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels in each direction, and fill with 0, the mean color."""
    count, _, height, width = images.shape
    offsets = beside(images, torch.randint(0, 2 * BORDER + 1, (2, count, 1), generator=rng))
    padded = functional.pad(images, (BORDER,) * 4).permute(0, 2, 3, 1)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def lighting(pixels: Tensor, std: float, rng: torch.Generator) -> Tensor:
    """Shift the colors of each image at random along the principal components of ImageNet's colors.

    Args:
        pixels: (N, 3, H, W), from 0 to 255.
        std: standard deviation of the random factor of each component.
        rng: the source of random numbers.
    """
    strength = torch.randn(len(pixels), 3, generator=rng) * std * torch.tensor(EIGENVALUES)
    noise = 255 * strength @ torch.tensor(EIGENVECTORS).T
    return pixels + beside(pixels, noise)[:, :, None, None]


def cutout(images: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Hide a random square in each image; its center may be any pixel (DeVries and Taylor 2017)."""
    count, _, height, width = images.shape
    top = torch.randint(0, height, (count,), generator=rng) - side // 2
    left = torch.randint(0, width, (count,), generator=rng) - side // 2
    sides = torch.full((count,), side)
    return images.masked_fill(_rectangles(images, top, left, sides, sides), 0)


def erase(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Hide a random rectangle of 2 to 33 % of the area in some images (Zhong et al. 2020)."""
    count, _, height, width = images.shape
    area = torch.empty(count).uniform_(0.02, 0.33, generator=rng) * height * width
    aspect = torch.empty(count).uniform_(math.log(0.3), math.log(3.3), generator=rng).exp()
    rows = (area * aspect).sqrt().round().long().clamp(1, height)
    columns = (area / aspect).sqrt().round().long().clamp(1, width)
    top = (torch.rand(count, generator=rng) * (height - rows + 1)).long()
    left = (torch.rand(count, generator=rng) * (width - columns + 1)).long()
    chosen = torch.rand(count, generator=rng) < probability
    hidden = _rectangles(images, top, left, rows * chosen, columns)
    return images.masked_fill(hidden, 0)


def _rectangles(images: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return a mask (N, 1, H, W) that is true inside the rectangle of each image."""
    edges = torch.stack([top, top + rows, left, left + columns])[:, :, None]
    top, bottom, left, right = beside(images, edges)
    y, x = (torch.arange(size, device=images.device) for size in images.shape[2:])
    down, across = (y >= top) & (y < bottom), (x >= left) & (x < right)
    hidden: Tensor = down[:, None, :, None] & across[:, None, None, :]
    return hidden


def mix(
    images: Tensor, *, mixup: float, cutmix: float, rng: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """Mix each image with another one of the batch, by mixup or cutmix (one of them per batch).

    Args:
        images: (N, 3, H, W).
        mixup: the parameter alpha of mixup (Zhang et al. 2018); 0: no mixup.
        cutmix: the parameter alpha of cutmix (Yun et al. 2019); 0: no cutmix.
        rng: the source of random numbers.

    Returns:
        The mixed images, the index of each image's partner, and the share of each image that is its
            own rather than its partner's.
    """
    partner = beside(images, torch.randperm(len(images), generator=rng))
    cut = bool(cutmix) and (not mixup or torch.rand((), generator=rng).item() < 0.5)
    own = _beta(cutmix if cut else mixup, rng)
    if not cut:
        return torch.lerp(images[partner], images, own), partner, own
    height, width = images.shape[2:]
    rows, columns = (int(size * math.sqrt(1 - own)) for size in (height, width))
    y, x = (int(torch.randint(0, size, (), generator=rng)) for size in (height, width))
    top, left = max(y - rows // 2, 0), max(x - columns // 2, 0)
    bottom, right = min(y + (rows + 1) // 2, height), min(x + (columns + 1) // 2, width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return mixed, partner, 1 - (bottom - top) * (right - left) / (height * width)


def _beta(alpha: float, rng: torch.Generator) -> float:
    """Draw one number from the distribution Beta(alpha, alpha)."""
    seed = int(torch.randint(2**62, (), generator=rng))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


# Policies. In this part, images are floats from 0 to 255, and each operation takes the strength of
# each image as `part` (from 0 to 1) and `sign`.

STEPS: Final = 31
"""Number of strengths of the policies, from 0 to 30."""


def rand_augment(images: Tensor, magnitude: int, rng: torch.Generator) -> Tensor:
    """Apply two random operations of the same strength to each image (Cubuk et al. 2020).

    The ranges of the operations are those of torchvision's RandAugment.

    Args:
        images: (N, 3, H, W), floats from 0 to 255.
        magnitude: the strength, from 0 to 30.
        rng: the source of random numbers.
    """
    for _ in range(2):
        strength = torch.full((len(images),), min(magnitude, STEPS - 1))
        images = _random_operation(images, strength, rng, wide=False)
    return images


def trivial_augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Apply one random operation of random strength to each image (Müller and Hutter 2021, "wide").

    The ranges of the operations are those of torchvision's TrivialAugmentWide.
    """
    strength = torch.randint(0, STEPS, (len(images),), generator=rng)
    return _random_operation(images, strength, rng, wide=True)


def _random_operation(
    images: Tensor, strength: Tensor, rng: torch.Generator, *, wide: bool
) -> Tensor:
    chosen = torch.randint(0, len(_OPERATIONS), (len(images),), generator=rng)
    sign = torch.randint(0, 2, (len(images),), generator=rng) * 2.0 - 1
    part = strength / (STEPS - 1)
    result = images.clone()
    for number, operation in enumerate(_OPERATIONS):
        where = (chosen == number).nonzero()[:, 0]
        if len(where) and operation is not None:
            there = beside(images, where)
            result[there] = operation(images[there], part[where], sign[where], wide).to(images)
    return result


def _affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply (N, 2, 3) maps from output to input pixels about the center; outside is black."""
    height, width = images.shape[2:]
    matrices = matrices.clone()
    matrices[:, 0, 1] *= height / width  # from pixels to the units of affine_grid
    matrices[:, 1, 0] *= width / height
    matrices[:, 0, 2] *= 2 / width
    matrices[:, 1, 2] *= 2 / height
    grid = functional.affine_grid(beside(images, matrices), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False)


def _linear(strength: Tensor, **entries: Tensor) -> Tensor:
    """Return (N, 2, 3) identity maps with some entries replaced; `xy` is the factor of y in x."""
    matrices = torch.eye(2, 3).repeat(len(strength), 1, 1)
    places = {"xx": (0, 0), "xy": (0, 1), "x": (0, 2), "yx": (1, 0), "yy": (1, 1), "y": (1, 2)}
    for name, values in entries.items():
        row, column = places[name]
        matrices[:, row, column] = values
    return matrices


def _shear_x(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    return _affine(images, _linear(part, xy=part * sign * (0.99 if wide else 0.3)))


def _shear_y(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    return _affine(images, _linear(part, yx=part * sign * (0.99 if wide else 0.3)))


def _translate_x(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    most = 32.0 if wide else 150 / 331 * images.shape[3]
    return _affine(images, _linear(part, x=(part * sign * most).trunc()))


def _translate_y(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    most = 32.0 if wide else 150 / 331 * images.shape[2]
    return _affine(images, _linear(part, y=(part * sign * most).trunc()))


def _rotate(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    angle = part * sign * math.radians(135 if wide else 30)
    cos, sin = angle.cos(), angle.sin()
    return _affine(images, _linear(part, xx=cos, xy=sin, yx=-sin, yy=cos))


def _blend(images: Tensor, other: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    factor = beside(images, 1 + part * sign * (0.99 if wide else 0.9))[:, None, None, None]
    return (other + factor * (images - other)).clamp(0, 255)


def _gray(images: Tensor) -> Tensor:
    weights = torch.tensor([0.2989, 0.587, 0.114], device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _brightness(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    return _blend(images, torch.zeros_like(images), part, sign, wide)


def _color(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    return _blend(images, _gray(images), part, sign, wide)


def _contrast(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), part, sign, wide)


def _sharpness(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    if min(images.shape[2:]) < 3:
        return images
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    inside = functional.conv2d(images, kernel / 13, groups=3)
    smooth[:, :, 1:-1, 1:-1] = inside.round()
    return _blend(images, smooth, part, sign, wide)


def _posterize(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    bits = 8 - (part * (6 if wide else 4)).round()
    step = beside(images, 2 ** (8 - bits))[:, None, None, None]
    return (images / step).floor() * step


def _solarize(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    threshold = beside(images, 255 * (1 - part))[:, None, None, None]
    return torch.where(images >= threshold, 255 - images, images)


def _autocontrast(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    spread = high - low
    stretched = ((images - low) * 255 / spread.clamp_min(1)).clamp(0, 255)
    return torch.where(spread > 0, stretched, images)


def _equalize(images: Tensor, part: Tensor, sign: Tensor, wide: bool) -> Tensor:  # noqa: FBT001
    """Equalize the histogram of each channel, by Pillow's rule."""
    count, channels, height, width = images.shape
    flat = images.round().long().clamp(0, 255).reshape(count * channels, height * width)
    histogram = torch.zeros(len(flat), 256, dtype=torch.long, device=images.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    last = torch.where(histogram > 0, torch.arange(256, device=images.device), 0).amax(1)
    step = (height * width - histogram.gather(1, last[:, None])[:, 0]) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step[:, None] // 2) // step[:, None].clamp_min(1)).clamp(0, 255)
    new = torch.where(step[:, None] > 0, table.gather(1, flat), flat)
    return new.reshape(images.shape).to(images.dtype)


_OPERATIONS: Final[tuple[Callable[[Tensor, Tensor, Tensor, bool], Tensor] | None, ...]] = (
    None,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _color,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
)


def random_resized_crop(
    image: Image.Image, size: int, min_area: float, rng: torch.Generator
) -> Image.Image:
    """Crop a random part of an image and resize it to size x size pixels (bilinear).

    The area is uniform between `min_area` and 1 (the whole image). The aspect ratio is uniform
    between 3/4 and 4/3, and inverted with probability one half. After ten attempts that do not fit
    into the image, the largest centered square is taken. This is the method of pycls
    (`datasets/transforms.py`).
    """
    width, height = image.size
    for _ in range(10):
        draws = torch.rand(5, generator=rng, dtype=torch.float64).tolist()
        area = width * height * (min_area + (1 - min_area) * draws[0])
        aspect = 3 / 4 + (4 / 3 - 3 / 4) * draws[1]
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if draws[2] < 0.5:
            columns, rows = rows, columns
        if 0 < columns <= width and 0 < rows <= height:
            left = int(draws[3] * (width - columns + 1))
            top = int(draws[4] * (height - rows + 1))
            break
    else:
        columns = rows = min(width, height)
        left, top = (width - columns) // 2, (height - rows) // 2
    box = (left, top, left + columns, top + rows)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
