"""Whether kernels run, and which of several ways to run one is the fastest here."""

from collections.abc import Callable, Hashable, Sequence
from importlib import util
from typing import Final, TypeVar

import torch
from torch import Tensor

HAS_TRITON: Final = util.find_spec("triton") is not None

if HAS_TRITON:
    import triton

TRIES: Final = 3
"""Times that each way is measured; the best counts."""

CALLS: Final = 10
"""Calls that are measured together, in a graph: launched one by one, small kernels would wait."""

Way = TypeVar("Way")

_chosen: dict[Hashable, object] = {}


def runs_kernels(x: Tensor) -> bool:
    """Whether Triton takes this tensor; its interpreter (TRITON_INTERPRET=1) takes any."""
    return HAS_TRITON and (x.is_cuda or bool(triton.knobs.runtime.interpret))


def blocks(size: int, block: int) -> int:
    """How many blocks cover a size."""
    return -(-size // block)


def power_of_two(size: int, *, least: int, most: int) -> int:
    """The smallest power of two that holds a size, within bounds that are powers of two."""
    return min(max(1 << max(size - 1, 0).bit_length(), least), most)


def fastest(key: Hashable, ways: Sequence[Way], run: Callable[[Way], object], x: Tensor) -> Way:
    """The way of running a kernel that took the least time for this key, on this device.

    Args:
        key: what decides the time: shapes, types, options.
        ways: what to try; one that needs more registers or shared memory than there are is out.
        run: calls the kernel in one of the ways.
        x: a tensor on the device.

    Raises:
        RuntimeError: none of the ways runs.
    """
    if not x.is_cuda:
        return ways[0]
    key = (key, torch.cuda.get_device_name(x.device))
    if key not in _chosen:
        times = {number: _seconds(run, way) for number, way in enumerate(ways)}
        best = min(times, key=lambda number: times[number])
        if times[best] == float("inf"):
            raise RuntimeError(f"no way to run this kernel fits the device: {key}")
        _chosen[key] = ways[best]
    return _chosen[key]  # type: ignore[return-value]  # keys name one kind of way each


def _seconds(run: Callable[[Way], object], way: Way) -> float:
    try:
        run(way)
    except triton.runtime.errors.OutOfResources:
        return float("inf")
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        graph.capture_begin()
        for _ in range(CALLS):
            run(way)
        graph.capture_end()
        best = float("inf")
        for _ in range(TRIES):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end))
    torch.cuda.current_stream().wait_stream(side)
    return best / CALLS
