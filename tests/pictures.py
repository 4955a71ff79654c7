"""Small labelled pictures that a network can tell apart, because each class has its own color."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200))


def pictures(count: int, size: tuple[int, int] = (16, 16), *, seed: int = 0, classes: int = 3):
    """Return `count` noisy pictures (height, width, 3) and their labels, which cycle."""
    rng = np.random.default_rng(seed)
    labels = [number % classes for number in range(count)]
    noise = rng.integers(-40, 40, (count, *size, 3))
    colors = np.array(COLORS)[np.array(labels, dtype=int)][:, None, None]
    return (colors + noise).clip(0, 255).astype(np.uint8), labels


def write_folder(
    folder: Path,
    count: int,
    *,
    names: tuple[str, ...] = ("red", "green", "blue"),
    size: tuple[int, int] = (16, 16),
    seed: int = 0,
    suffix: str = ".png",
) -> Path:
    """Write pictures into a folder per class, and return the folder."""
    images, labels = pictures(count, size, seed=seed, classes=len(names))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / names[label] / f"{number:04d}{suffix}")
    return folder
