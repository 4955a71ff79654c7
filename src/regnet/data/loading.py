"""Load many images of a set at once: preprocessed by worker processes, or as bytes in memory."""

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
from regnet.errors import DataError, ImageError

_log = logging.getLogger(__name__)

Transform: TypeAlias = Callable[[Image.Image], Tensor]

PATIENCE: Final = 600.0
"""Seconds to wait for a batch; a worker that takes longer hangs, for example on a lost disk."""

AHEAD: Final = 2
"""Batches that each worker reads before they are asked for."""

SHARED_MEMORY: Final = "/dev/shm"
"""Where Linux keeps what a worker sends; containers often have only 64 MB of it."""

_KILLED: Final = (
    "a process that reads images was killed (is memory short?); fewer --workers need less memory"
)

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
    images: Reader,
    indices: Sequence[int],
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
) -> Iterator[Loaded]:
    """The images of these numbers, in order, in batches.

    Args:
        images: a set, or a chunk of a collection.
        indices: which.
        transform: gives tensors of one shape.
        batch_size: images per batch; less where some cannot be read, and at the end.
        workers: processes that read; 0: this one.
    """
    found = _Transformed(images, transform)
    batches = [list(indices[at : at + batch_size]) for at in range(0, len(indices), batch_size)]
    workers = min(workers, len(indices) // batch_size)  # none for what is one batch
    batch_bytes = 0
    if workers:
        read_here = (found[index][1] for index in indices)
        first = next((value for value in read_here if isinstance(value, Tensor)), None)
        batch_bytes = 0 if first is None else batch_size * first.nbytes  # all are of one size
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
    """Yield batches of a data set in order, read by worker processes that cannot make us hang.

    Args:
        dataset: gives an item for each key.
        batches: the keys of each batch.
        collate: makes a batch of its items.
        workers: processes that read; 0: this one. Fewer are used where the shared memory cannot
            hold what they send.
        batch_bytes: size of a batch.
        pin_memory: for copies to a GPU.

    Raises:
        DataError: a worker was killed, or sends nothing.
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
    # Whatever ends this process ends its workers, which would be waited for.
    atexit.register(end)
    try:
        with lost_workers():
            while (batch := _next(iterator, processes)) is not None:
                yield batch
    finally:
        del iterator  # workers that listen end
        atexit.unregister(end)
        end()
        for process in processes:
            process.join(timeout=5)


def _next(iterator: Iterator[Any], processes: Sequence[BaseProcess]) -> Any:
    """The next batch, or None; workers that do not send one in time are killed.

    Waiting with a time-out is not enough: for the memory of a batch, PyTorch asks the worker.
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
                f"a process that reads images has sent nothing for {PATIENCE:.0f} s; can the disk "
                "be reached? With --workers 0 this process reads them itself"
            ) from error
        if not isinstance(error, RuntimeError) and _any_ended(processes):
            raise DataError(_KILLED) from error
        raise
    finally:
        timer.cancel()


def _any_ended(processes: Sequence[BaseProcess]) -> bool:
    """Whether a worker has ended; of one that was killed, its connection ends first."""
    end = time.monotonic() + 2
    while all(process.is_alive() for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return not all(process.is_alive() for process in processes)


def _kill(workers: Sequence[BaseProcess]) -> None:
    """End workers that do not listen, as PyTorch's are when they hang."""
    alive = [worker for worker in workers if worker.is_alive()]
    if alive and hasattr(signal, "SIGCHLD"):
        with suppress(ValueError):  # in another thread than the first, PyTorch watches nothing
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in alive:
        worker.kill()


@contextmanager
def lost_workers() -> Iterator[None]:
    """Say what the death of a worker means; PyTorch reports it wherever the process happens to be.

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
    """How many workers can send their batches through the shared memory that is free."""
    free = _free_shared_memory() if workers else None
    if free is None:
        return workers
    fit = min(workers, int(free // max(1, (AHEAD + 1) * batch_bytes)))
    if fit < workers:
        _log.warning(
            "%s has %d MB free, enough for %d of %d processes that read batches of %d MB; so many "
            "are used (Docker: --shm-size=2g, or --ipc=host)",
            SHARED_MEMORY, free // 10**6, fit, workers, batch_bytes // 10**6,
        )  # fmt: skip
    return fit


def _free_shared_memory() -> int | None:
    """Bytes that workers can share; None where there is no such bound."""
    if sys.platform != "linux":
        return None
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize if os.access(SHARED_MEMORY, os.W_OK) else 0


def _ignore_signals(_worker: int) -> None:
    """A worker leaves it to the process that started it to end well."""
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
