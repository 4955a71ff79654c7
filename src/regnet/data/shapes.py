"""Draw shapes: labelled images that need no files, for trying things out."""

from collections.abc import Sequence
from math import cos, pi, sin
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

NAME: Final = "shapes"
CLASSES: Final = ("circle", "cross", "ring", "square", "star", "triangle")
COUNTS: Final = {"train": 6000, "val": 1200}
SIDE: Final = 32
VERSION: Final = 1
"""Version of the drawing code, part of the fingerprint of the set."""

_FINER: Final = 4  # shapes are drawn at four times the size, then averaged, for smooth edges
_NOISE: Final = 30.0  # standard deviation, for pixel values from 0 to 255


class Shapes:
    """The images of a split, each a shape with random position, size, angle and colors, and noise.

    Every image depends only on the split and its index, so the set is the same on every machine.
    """

    def __init__(self, split: str) -> None:
        self.stream = list(COUNTS).index(split)
        self.files: Sequence[Path] = ()

    def open(self, index: int) -> Image.Image:
        """Draw the image with this index, 32x32 pixels in RGB, of class `CLASSES[index % 6]`."""
        rng = np.random.default_rng((self.stream, index))
        back, front = rng.integers(0, 256, (2, 3))
        while np.abs(back - front).sum() < 150:  # such a shape would be hardly visible
            front = rng.integers(0, 256, 3)
        large = Image.new("RGB", (SIDE * _FINER, SIDE * _FINER), tuple(back.tolist()))
        radius = rng.uniform(7, 13)
        x, y = rng.uniform(radius, SIDE - radius, 2)
        outline = _outline(CLASSES[index % len(CLASSES)], rng.uniform(0, 2 * pi))
        pen = ImageDraw.Draw(large)
        for part, color in zip(outline, (front, back), strict=False):
            points = [(_FINER * (x + radius * u), _FINER * (y + radius * v)) for u, v in part]
            pen.polygon(points, fill=tuple(color.tolist()))
        small = np.asarray(large.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
        noisy = small + rng.normal(0, _NOISE, small.shape)
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _outline(name: str, angle: float) -> list[list[tuple[float, float]]]:
    """Return polygons in the unit circle: the shape, then the hole in it if it has one."""
    if name == "circle":
        return [_around([1.0] * 40, angle)]
    if name == "ring":
        return [_around([1.0] * 40, angle), _around([0.55] * 40, angle)]
    if name == "star":
        return [_around([1.0, 0.42] * 5, angle)]
    if name == "cross":
        arm = [(0.96, -0.28), (0.96, 0.28), (0.28, 0.28)]
        return [[_turned(point, angle + k * pi / 2) for k in range(4) for point in arm]]
    return [_around([1.0] * {"triangle": 3, "square": 4}[name], angle)]


def _around(radii: list[float], angle: float) -> list[tuple[float, float]]:
    step = 2 * pi / len(radii)
    return [_turned((radius, 0.0), angle + k * step) for k, radius in enumerate(radii)]


def _turned(point: tuple[float, float], angle: float) -> tuple[float, float]:
    x, y = point
    return x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)
