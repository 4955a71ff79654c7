"""Run batches of any size, and many batches: padded, split, or on several streams."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Final

import torch
from torch import Tensor

from regnet.engines.base import Runner
from regnet.engines.outputs import each

PIECE: Final = 4
"""Most images of a piece: single ones are slower, and 8 gain no more (benchmarks/streams.py)."""

AHEAD: Final = 2
"""Batches that wait while one is computed, so that no stream is idle between them."""


class Streams:
    """Runs the pieces of a batch on several runners, each in a thread of its own.

    Each runner has its part of the cores: they wait for one another less than all cores do that
    work on the same images.
    """

    def __init__(self, runners: Sequence[Runner], piece: int = 1) -> None:
        """Set up.

        Args:
            runners: of pieces; one that may be called by several threads may be given several
                times.
            piece: images of a piece.
        """
        self.count, self.piece = len(runners), piece
        self._free: SimpleQueue[Runner] = SimpleQueue()
        for runner in runners:
            self._free.put(for_any_batch(runner, piece))
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
        return [self._pool.submit(self._one, part) for part in batch.split(self.piece)]

    def _one(self, part: Tensor) -> Any:
        runner = self._free.get()
        try:
            return runner(part)
        finally:
            self._free.put(runner)

    def _answers(self, begun: Sequence["Future[Any]"]) -> Any:
        return joined([future.result() for future in begun])


def piece_of(batch: int, streams: int) -> int:
    """Images that are computed together: a piece for each stream, or all where there are none."""
    return max(1, min(PIECE, batch // streams)) if streams else batch


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
