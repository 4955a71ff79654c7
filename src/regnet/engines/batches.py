"""Batches of any size, and many of them: padded or cut, or image by image on several streams."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Final

import torch
from torch import Tensor

from regnet.engines.base import Runner
from regnet.engines.outputs import each

AHEAD: Final = 2
"""Batches that wait while one is computed, so that no stream is idle between them."""


class Streams:
    """Runs the images of a batch one by one on several runners, each in a thread of its own.

    Each runner has its part of the cores: they wait for one another less than all cores do that
    work on the same image.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        """Set up.

        Args:
            runners: of single images; one that may be called by several threads may be given
                several times.
        """
        self.count = len(runners)
        self._free: SimpleQueue[Runner] = SimpleQueue()
        for runner in runners:
            self._free.put(runner)
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="stream")

    def __call__(self, x: Tensor) -> Any:
        """The answers for a batch of any size."""
        return self._answers(self._begun(x))

    def map(self, batches: Iterable[Tensor]) -> Iterator[Any]:
        """The answers for each batch, in order; the next ones are begun meanwhile."""
        running: deque[list[Future[Any]]] = deque()
        for batch in batches:
            running.append(self._begun(batch))
            if len(running) > AHEAD:
                yield self._answers(running.popleft())
        while running:
            yield self._answers(running.popleft())

    def _begun(self, batch: Tensor) -> list["Future[Any]"]:
        return [self._pool.submit(self._one, image) for image in batch.split(1)]

    def _one(self, image: Tensor) -> Any:
        runner = self._free.get()
        try:
            return runner(image)
        finally:
            self._free.put(runner)

    def _answers(self, begun: Sequence["Future[Any]"]) -> Any:
        return joined([future.result() for future in begun])


def mapped(runner: Runner, batches: Iterable[Tensor]) -> Iterator[Any]:
    """The answers for each batch, in order; on streams the next ones are begun meanwhile."""
    return runner.map(batches) if isinstance(runner, Streams) else map(runner, batches)


def for_any_batch(runner: Runner, size: int) -> Runner:
    """A runner of batches of one size for batches of any: padded with zeros, or cut into pieces.

    Streams take batches of any size as they are.
    """
    if isinstance(runner, Streams):
        return runner

    def piece(x: Tensor) -> Any:
        missing = size - len(x)
        if missing:
            x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        return each(lambda output: output[: size - missing], runner(x))

    def run(x: Tensor) -> Any:
        if len(x) == size:
            return runner(x)
        return joined([piece(part) for part in x.split(size)])

    return run


def joined(pieces: Sequence[Any]) -> Any:
    """What a runner gives for a batch, from what it gave for the pieces of it."""
    if isinstance(pieces[0], Tensor):
        return torch.cat(list(pieces))
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
