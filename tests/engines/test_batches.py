"""Tests of batches of any size, and of many batches in streams."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import regnet
from regnet.design.config import RegNetConfig
from regnet.engines.base import Runner
from regnet.engines.batches import AHEAD, Streams, for_any_batch, mapped, piece_of


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * x, x.sum(1)


@given(
    size=st.integers(1, 5),
    piece=st.integers(1, 4),
    counts=st.lists(st.integers(1, 12), max_size=6),
)
@settings(deadline=None)
def test_batches_of_any_size_give_what_the_runner_gives(
    size: int, piece: int, counts: list[int]
) -> None:
    batches = [torch.randn(count, 3) for count in counts]
    for runner in (for_any_batch(doubled, size), Streams([doubled] * size, piece)):
        for batch, found in zip(batches, mapped(runner, batches), strict=True):
            assert torch.equal(found, 2 * batch)
            assert torch.equal(runner(batch), 2 * batch)
    several: list[Runner] = [for_any_batch(both, size), Streams([both] * size, piece)]
    for runner in several:
        for batch, (first, second) in zip(batches, mapped(runner, batches), strict=True):
            assert torch.equal(first, 2 * batch)
            assert torch.equal(second, batch.sum(1))


def test_streams_run_concurrently_each_on_its_own_runner() -> None:
    together, busy = threading.Barrier(3, timeout=10), [False] * 3

    def of(number: int) -> Runner:
        def run(x: Tensor) -> Tensor:
            assert not busy[number]
            busy[number] = True
            together.wait()  # returns only when three images are being computed
            busy[number] = False
            return x

        return run

    streams = Streams([of(number) for number in range(3)])
    x = torch.arange(9.0)[:, None]
    assert torch.equal(streams(x), x)


def test_a_piece_is_never_larger_than_a_streams_share() -> None:
    assert piece_of(16, 2) == 4
    assert piece_of(7, 2) == 3
    assert piece_of(2, 4) == 1
    assert piece_of(16, 0) == 16  # without streams, the batch is not divided


def test_streams_give_their_runners_pieces_of_one_size() -> None:
    sizes: list[int] = []

    def run(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    streams = Streams([run, run], 4)
    assert streams(torch.arange(10.0)[:, None]).flatten().tolist() == list(range(10))
    assert sizes == [4, 4, 4]


def test_streams_fetch_only_a_few_batches_ahead() -> None:
    asked = 0

    def batches() -> Iterator[Tensor]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield torch.zeros(2, 1)

    answers = Streams([doubled] * 2).map(batches())
    for number in range(1, 5):
        next(answers)
        assert asked == number + AHEAD


def test_an_error_in_a_stream_is_raised_with_its_batch() -> None:
    def failing(x: Tensor) -> Tensor:
        if x.item() == 5:
            raise ValueError("on purpose")
        time.sleep(0.001)
        return x

    answers = Streams([failing] * 2).map(torch.arange(8.0)[:, None].split(2))
    assert [next(answers).tolist() for _ in range(2)] == [[[0], [1]], [[2], [3]]]
    with pytest.raises(ValueError, match="on purpose"):
        next(answers)


SMALL = RegNetConfig(depth=3, w0=16, wa=16.0, wm=2.0, se_ratio=0.25, stem="cifar", num_classes=10)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx_runtime", "openvino"])
def test_streams_can_win_a_race_for_throughput(engine: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = regnet.create(SMALL).eval()
        fast = regnet.optimize(
            model, torch.zeros(16, 3, 32, 32), goal="throughput", engines=[engine],
            precision="fp32", seconds=0.05, refresh=True, progress=False,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    rows = {row.streams: row for row in fast.report.candidates}
    assert set(rows) == {0, 2}
    assert all(row.latency_ms and row.error is not None for row in rows.values())
    assert f"{engine} fp32 2 streams" in str(fast.report)
    batches = [torch.randn(count, 3, 32, 32) for count in (16, 3, 20)]
    for batch, found in zip(batches, fast.map(batches), strict=True):
        with torch.inference_mode():
            assert torch.allclose(found, model(batch), atol=1e-4)
    assert regnet.optimize(
        model, batches[0], goal="latency", engines=[engine], precision="fp32", seconds=0.05,
        progress=False,
    ).report.winner.streams == 0  # fmt: skip
