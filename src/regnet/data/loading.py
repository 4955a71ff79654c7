"""Many images of a set at once: preprocessed by worker processes, or as bytes in memory."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regnet.data.sets import ImageSet
from regnet.errors import DataError, ImageError

Transform: TypeAlias = Callable[[Image.Image], Tensor]

SMALL: Final = 64
"""Images up to this many pixels a side are small: a whole set of them fits into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Some images of a set."""

    indices: tuple[int, ...]
    """Numbers of those that could be read."""
    images: Tensor | None
    """(N, 3, H, W), in that order; None where there are none."""
    failures: tuple[tuple[int, str], ...]
    """Number and reason of each that could not."""


def load(
    images: ImageSet,
    indices: Sequence[int],
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
) -> Iterator[Loaded]:
    """The images of these numbers, in order, in batches.

    Args:
        images: the set.
        indices: which.
        transform: gives tensors of one shape.
        batch_size: images per batch; less where some cannot be read, and at the end.
        workers: processes that read; 0: this one.
    """
    loader: DataLoader[Any] = DataLoader(
        _Transformed(images, transform),
        batch_size=batch_size,
        sampler=indices,
        num_workers=min(workers, len(indices) // batch_size),  # none for what is one batch
        collate_fn=_collate,
        worker_init_fn=ignore_signals,
    )
    yield from loader


def ignore_signals(_worker: int) -> None:
    """A worker leaves it to the process that started it to end well."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Transformed(Dataset[Any]):
    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, self.transform(self.images.open(index))
        except ImageError as error:
            return index, str(error)


def _collate(items: list[tuple[int, Tensor | str]]) -> Loaded:
    read = [(index, value) for index, value in items if isinstance(value, Tensor)]
    return Loaded(
        indices=tuple(index for index, _ in read),
        images=torch.stack([image for _, image in read]) if read else None,
        failures=tuple((index, value) for index, value in items if isinstance(value, str)),
    )


def load_pixels(images: ImageSet) -> Tensor:
    """All images of a set of small ones as bytes (N, 3, H, W).

    Raises:
        DataError: they differ in size or are too large, or one cannot be read.
    """
    pixels: np.ndarray[Any, Any] | None = None
    for index in range(len(images)):
        try:
            image = images.open(index)
        except ImageError as error:
            raise DataError(f"{error}; a set that is kept in memory must be whole") from error
        if pixels is None:
            if max(image.size) > SMALL:
                raise DataError(
                    f"{images.source}: images of {image.width} x {image.height} pixels are too "
                    f"large for the crop 'pad' (up to {SMALL}); use a recipe that crops 'resized'"
                )
            pixels = np.empty((len(images), image.height, image.width, 3), dtype=np.uint8)
        if (image.height, image.width) != pixels.shape[1:3]:
            raise DataError(
                f"{images.source}: {images.names[index]} has {image.width} x {image.height} "
                f"pixels, others {pixels.shape[2]} x {pixels.shape[1]}; the crop 'pad' needs one "
                "size, use a recipe that crops 'resized'"
            )
        pixels[index] = np.asarray(image)
    assert pixels is not None, "a set has images"
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
