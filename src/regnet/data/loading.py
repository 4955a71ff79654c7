"""Load many images: preprocessed in batches by worker processes, or as bytes into memory."""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regnet.data.readers import Reader
from regnet.data.sets import ImageSet
from regnet.errors import DataError, ImageError, check_whole

_log = logging.getLogger(__name__)

Transform: TypeAlias = Callable[[Image.Image], Tensor]

PATIENCE: Final = 600.0
"""Seconds to wait for a batch. A worker that takes longer hangs, for example on a lost disk."""

AHEAD: Final = 2
"""Batches that each worker reads in advance."""

SHARED_MEMORY: Final = "/dev/shm"
"""The memory file system of Linux through which workers send batches; it is often only 64 MB large
in containers."""

_KILLED: Final = (
    "a worker process that reads images was killed (out of memory?); fewer --workers need less"
)

SMALL: Final = 64
"""Images of at most this many pixels a side count as small: a complete set of them fits into
memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A batch of images."""

    indices: tuple[int, ...]
    """Indices of the images that could be read."""
    images: Tensor | None
    """The images in the order of `indices`, (N, 3, H, W); None if no image could be read."""
    failures: tuple[tuple[int, str], ...]
    """Index and reason of each image that could not be read."""


def load(
    images: Reader,
    indices: Sequence[int],
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
) -> Iterator[Loaded]:
    """Yield the images with these indices, in order, in batches.

    Args:
        images: a set of images, or a chunk of a collection.
        indices: indices of the images to load.
        transform: converts an image to a tensor; all tensors must have the same shape.
        batch_size: images per batch; the last batch, and batches with unreadable images, have
            fewer.
        workers: number of worker processes; 0 loads the images in this process.

    Raises:
        ConfigError: `batch_size` or `workers` is not such a number.
        DataError: a worker was killed, or has stopped sending batches.
    """
    batch_size = check_whole("batch_size", batch_size, least=1)
    workers = check_whole("workers", workers, least=0)
    found = _Transformed(images, transform)
    batches = [list(indices[at : at + batch_size]) for at in range(0, len(indices), batch_size)]
    workers = min(workers, len(indices) // batch_size)  # one batch is not worth a process
    batch_bytes = 0
    if workers:
        read_here = (found[index][1] for index in indices)
        first = next((value for value in read_here if isinstance(value, Tensor)), None)
        batch_bytes = 0 if first is None else batch_size * first.nbytes  # all have one shape
    yield from read(found, batches, _collate, workers=workers, batch_bytes=batch_bytes)


def read(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    collate: Callable[[list[Any]], Any],
    *,
    workers: int,
    batch_bytes: int,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Yield the batches of a data set in order, read by workers that cannot make this process hang.

    Args:
        dataset: returns an item for each key.
        batches: the keys of each batch.
        collate: combines the items of a batch.
        workers: number of worker processes; 0 reads in this process. Fewer are used if the shared
            memory cannot hold what they send.
        batch_bytes: size of a batch in bytes.
        pin_memory: whether to put batches into pinned memory, for copies to a GPU.

    Raises:
        DataError: a worker was killed, or has stopped sending batches.
    """
    workers = _workers_that_fit(workers, batch_bytes)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=collate,
        worker_init_fn=_ignore_signals,
        pin_memory=pin_memory,
    )
    iterator = iter(loader)
    processes: Sequence[BaseProcess] = getattr(iterator, "_workers", [])
    end = partial(_kill, processes)
    # When this process ends, multiprocessing waits for its workers; kill them before that.
    atexit.register(end)
    try:
        with lost_workers():
            while (batch := _next(iterator, processes)) is not None:
                yield batch
    finally:
        del iterator  # PyTorch asks its workers to end; those that hang are killed next
        atexit.unregister(end)
        end()
        for process in processes:
            process.join(timeout=5)


def _next(iterator: Iterator[Any], processes: Sequence[BaseProcess]) -> Any:
    """Return the next batch, or None at the end; kill workers that do not send one in time.

    A timeout of the waiting call would not suffice: PyTorch also asks the worker for the memory of
    each batch, and a worker that hangs never answers.
    """
    if not processes:
        return next(iterator, None)
    late = threading.Event()

    def give_up() -> None:
        late.set()
        _kill(processes)

    timer = threading.Timer(PATIENCE, give_up)
    timer.daemon = True
    timer.start()
    try:
        return next(iterator, None)
    except (RuntimeError, OSError, EOFError) as error:
        if late.is_set():
            raise DataError(
                f"a worker process that reads images has sent nothing for {PATIENCE:.0f} s; check "
                "that their disk can be reached, or read them without workers (--workers 0)"
            ) from error
        if not isinstance(error, RuntimeError) and _any_ended(processes):
            raise DataError(_KILLED) from error
        raise
    finally:
        timer.cancel()


def _any_ended(processes: Sequence[BaseProcess]) -> bool:
    """Return whether a worker has ended; wait for it, because its connection closes first."""
    end = time.monotonic() + 2
    while all(process.is_alive() for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return not all(process.is_alive() for process in processes)


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers that are still alive: one that hangs ignores PyTorch's request to end."""
    alive = [worker for worker in workers if worker.is_alive()]
    if alive and hasattr(signal, "SIGCHLD"):
        # PyTorch raises an error from its SIGCHLD handler when a worker dies. It installs the
        # handler only in the main thread; in any other thread signal() raises a ValueError.
        with suppress(ValueError):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in alive:
        worker.kill()


@contextmanager
def lost_workers() -> Iterator[None]:
    """Convert PyTorch's error about a dead worker, which it may raise anywhere, to a clear message.

    Raises:
        DataError: a worker was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" in str(error) and "Caught" not in str(error):
            raise DataError(_KILLED) from error
        raise


def _workers_that_fit(workers: int, batch_bytes: int) -> int:
    """Return how many workers can send their batches through the free shared memory."""
    free = _free_shared_memory() if workers else None
    if free is None:
        return workers
    fit = min(workers, int(free // max(1, (AHEAD + 1) * batch_bytes)))
    if fit < workers:
        _log.warning(
            "%s has %d MB free, enough for %d of %d worker processes with batches of %d MB; only "
            "these are used (in Docker, pass --shm-size=2g or --ipc=host)",
            SHARED_MEMORY, free // 10**6, fit, workers, batch_bytes // 10**6,
        )  # fmt: skip
    return fit


def _free_shared_memory() -> int | None:
    """Return the bytes of shared memory that are free; None if there is no such limit."""
    if sys.platform != "linux":
        return None
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize if os.access(SHARED_MEMORY, os.W_OK) else 0


def _ignore_signals(_worker: int) -> None:
    """Ignore signals in a worker; the process that started it handles them and ends its workers."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class _Transformed(Dataset[Any]):
    def __init__(self, images: Reader, transform: Transform) -> None:
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
    """Load all images of a set of small images as bytes (N, 3, H, W).

    Raises:
        DataError: the images differ in size or are too large, or one cannot be read.
    """
    pixels: np.ndarray[Any, Any] | None = None
    for index in range(len(images)):
        try:
            image = images.open(index)
        except ImageError as error:
            raise DataError(
                f"{error}; repair or remove it, a set in memory must be complete"
            ) from error
        if pixels is None:
            if max(image.size) > SMALL:
                raise DataError(
                    f"{images.source}: images of {image.width} x {image.height} pixels are too "
                    f"large for the crop 'pad' (up to {SMALL}); use a recipe with crop='resized'"
                )
            pixels = np.empty((len(images), image.height, image.width, 3), dtype=np.uint8)
        if (image.height, image.width) != pixels.shape[1:3]:
            raise DataError(
                f"{images.source}: {images.names[index]} has {image.width} x {image.height} "
                f"pixels, others {pixels.shape[2]} x {pixels.shape[1]}; the crop 'pad' needs one "
                "size, so use a recipe with crop='resized'"
            )
        pixels[index] = np.asarray(image)
    assert pixels is not None, "a set has images"
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
