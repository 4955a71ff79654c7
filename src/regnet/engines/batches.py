"""Run batches of any size, and many batches, by padding, splitting, or several streams."""

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
"""Most images in a piece. Single images are slower, and 8 images gain nothing more
(benchmarks/streams.py)."""

AHEAD: Final = 2
"""Batches that wait while one is computed, so that no stream is idle between batches."""


class Streams:
    """Run the pieces of a batch on several runners, each in a thread of its own.

    Each runner has its share of the cores. Cores that work on different images wait for one another
    less than cores that work on the same images.
    """

    def __init__(self, runners: Sequence[Runner], piece: int = 1) -> None:
        """Take the runners and start a pool with a thread for each.

        Args:
            runners: functions that run one piece each. A runner that several threads may call at
                the same time can be given several times.
            piece: number of images in a piece.
        """
        self.count, self.piece = len(runners), piece
        self._free: SimpleQueue[Runner] = SimpleQueue()
        for runner in runners:
            self._free.put(for_any_batch(runner, piece))
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="stream")

    def __call__(self, x: Tensor) -> Any:
        """Return the outputs for a batch of any size."""
        return self._answers(self._begun(x))

    def map(self, batches: Iterable[Tensor]) -> Iterator[Any]:
        """Yield the outputs of each batch, in order, while the next batches are computed."""
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
    """Return how many images are computed together: a piece on streams, else the complete batch."""
    return max(1, min(PIECE, batch // streams)) if streams else batch


def mapped(runner: Runner, batches: Iterable[Tensor]) -> Iterator[Any]:
    """Return the outputs of each batch, in order; streams compute the next batches meanwhile."""
    return runner.map(batches) if isinstance(runner, Streams) else map(runner, batches)


def for_any_batch(runner: Runner, size: int) -> Runner:
    """Make a runner of one batch size take any: batches are padded with zeros or cut into pieces.

    `Streams` already take batches of any size, and are returned as they are.
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
    """Join the outputs of the pieces of a batch into the outputs of the batch."""
    if isinstance(pieces[0], Tensor):
        return torch.cat(list(pieces))
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
