"""Launch a kernel in the fastest of several ways, which is found by timing.

A way is a choice of tile sizes, warps and pipeline stages, and sometimes of another kernel for the
same result.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import util
from math import inf
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from regnet.kernels.binary import Binary, Resources, compile_all

HAS_TRITON: Final = util.find_spec("triton") is not None

if HAS_TRITON:
    import triton

TRIES: Final = 3
"""How often each way is measured; the smallest time counts."""

CALLS: Final = 10
"""Calls that are measured together in a CUDA graph. Launched singly, small kernels would wait for
the CPU."""

PROCESSORS: Final = 132
"""Multiprocessors of an H200, for plans that are made without a GPU."""

HOPELESS: Final = 1.5
"""A way is not timed if its predicted time exceeds the smallest prediction by this factor."""

Way = TypeVar("Way")

_chosen: dict[Hashable, object] = {}
_resources: dict[Binary, Resources | None] = {}
"""Resources of the binaries that `prepare` compiled; None for one that could not be compiled."""
_plan: ContextVar["list[tuple[Launch, ...]] | None"] = ContextVar("plan", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The bytes that a launch moves, and the products that it computes."""

    memory: float
    """Bytes that must be read from and written to the device's memory, whatever the way."""
    cache: float
    """Bytes that all blocks read and write, in the L2 cache or in memory."""
    products: float
    """Multiply-adds on the matrix units, padding included."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launch:
    """A kernel with all arguments of its launch; call the object to launch it."""

    kernel: Any
    """A function of `triton.jit` that is not specialized on any of its numbers."""
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    """Tensors, then numbers."""
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int
    stages: int
    work: Work | None = None
    before: tuple[Callable[[], object], ...] = ()
    """Calls that must run first, such as another launch whose result this one reads."""

    def __call__(self) -> None:
        """Launch the kernel; with tensors on the device "meta", nothing is launched."""
        for call in self.before:
            call()
        if not self.args[0].is_meta:
            self.kernel[self.grid](
                *self.args, **self.constants, num_warps=self.warps, num_stages=self.stages
            )

    @property
    def binary(self) -> Binary:
        """The binary that this launch needs."""
        return Binary.of(self.kernel, self.args, self.constants, self.warps, self.stages)


def runs_kernels(x: Tensor) -> bool:
    """Return whether kernels run on this tensor.

    They run on CUDA tensors, and on any tensor in Triton's interpreter (TRITON_INTERPRET=1).
    Tensors on the device "meta" take the same path, for planning.
    """
    return HAS_TRITON and (x.is_cuda or x.is_meta or bool(triton.knobs.runtime.interpret))


def blocks(size: int, block: int) -> int:
    """Return how many blocks of size `block` cover `size`."""
    return -(-size // block)


def power_of_two(size: int, *, least: int, most: int) -> int:
    """Return the smallest power of two that is at least `size`, limited to [least, most]."""
    return min(max(1 << max(size - 1, 0).bit_length(), least), most)


def processors(x: Tensor) -> int:
    """Return the number of multiprocessors of a tensor's GPU, or of an H200 if it is on no GPU."""
    if not x.is_cuda:
        return PROCESSORS
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count)


@contextmanager
def planned() -> Iterator[list[tuple[Launch, ...]]]:
    """Collect, for every call with tensors on "meta", the launches that it would choose among."""
    found: list[tuple[Launch, ...]] = []
    token = _plan.set(found)
    try:
        yield found
    finally:
        _plan.reset(token)


def prepare(choices: Iterable[Sequence[Launch]], target: tuple[str, int, int]) -> None:
    """Compile all launches of a plan in parallel, so that the ways only need to be timed.

    Args:
        choices: the launches that `planned` collected.
        target: backend, compute capability and threads per warp.
    """
    binaries = {one.binary for ways in choices for one in ways}
    remember(compile_all(binaries - _resources.keys(), target))


def remember(resources: dict[Binary, Resources | None]) -> None:
    """Store the resources of binaries, from which `promising` predicts times."""
    _resources.update(resources)


def fastest(
    key: Hashable, ways: Sequence[Way], launch: Callable[[Way], Callable[[], object]], x: Tensor
) -> Way:
    """Return the way of running a kernel that took the least time for this key on this device.

    The first call for a key times the ways; later calls return the stored result. Without a GPU,
    the first way is returned.

    Args:
        key: everything that determines the time: shapes, types and options.
        ways: the ways to try. A way is left out if it cannot be compiled, if it needs more
            registers or shared memory than the device has, or if its prediction is far from the
            best.
        launch: returns, for one way, the call that runs the kernel in it.
        x: a tensor on the device.

    Raises:
        RuntimeError: no way runs on this device, or a CUDA graph is being captured before this key
            was timed.
    """
    if x.is_meta:
        launches = [launch(way) for way in ways]
        if (plan := _plan.get()) is not None:
            plan.append(tuple(made for made in launches if isinstance(made, Launch)))
        return ways[0]
    if not x.is_cuda:
        return ways[0]
    key = (key, torch.cuda.get_device_name(x.device))
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "kernels must be timed before a CUDA graph captures them; call the network with "
                "this shape once, outside the graph"
            )
        _chosen[key] = _timed(key, ways, launch, x)
    return _chosen[key]  # type: ignore[return-value]  # a key is used with one type of way


def _timed(
    key: Hashable, ways: Sequence[Way], launch: Callable[[Way], Callable[[], object]], x: Tensor
) -> Way:
    best, least, problem = None, inf, None
    for way in promising(ways, [launch(way) for way in ways], processors(x)):
        try:
            seconds = _graph_seconds(launch(way), x)
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything
            problem = error
            continue
        if seconds < least:
            best, least = way, seconds
    if best is None:
        raise RuntimeError(
            f"this kernel does not run on this device in any way: {key}; use another engine"
        ) from problem
    return best


def promising(
    ways: Sequence[Way], launches: Sequence[Callable[[], object]], multiprocessors: int
) -> list[Way]:
    """Return the ways that are worth timing, judged by the resources of their binaries.

    A way is left out if it could not be compiled, if it spills registers, or if it is predicted to
    take much longer than the best. The best way of each class is included unless it spills, because
    the prediction ignores waits, which differ between classes.
    """
    guesses: dict[int, float] = {}
    for number, made in enumerate(launches):
        guess = 0.0  # without resources there is no prediction, and the way must be timed
        if isinstance(made, Launch) and made.binary in _resources:
            guess = predicted(made, _resources[made.binary], multiprocessors)
        guesses[number] = guess
    known = [guess for guess in guesses.values() if 0 < guess < inf]
    most = HOPELESS * min(known, default=inf)
    kept = {number for number, guess in guesses.items() if guess <= most and guess < inf}
    for kind in {type(way) for way in ways}:
        same = [number for number, way in enumerate(ways) if type(way) is kind]
        first = min(same, key=lambda number: guesses[number])
        if guesses[first] < inf:
            kept.add(first)
    return [ways[number] for number in sorted(kept)] or list(ways)


MEMORY_SPEED: Final = 4.05e12
"""Bytes per second of an H200's memory, as measured by this project's benchmark."""

CACHE_SPEED: Final = 5.5e12
"""Bytes per second of an H200's L2 cache, approximately."""

MATRIX_SPEED: Final = 372e12
"""Multiply-adds per second of an H200's matrix units in half precision, as measured."""

LAUNCH_SECONDS: Final = 2e-6
"""Approximate time for the start and the end of a kernel."""


def predicted(launch: Launch, resources: Resources | None, multiprocessors: int) -> float:
    """Predict the seconds that a launch takes on an H200; infinite if it spills registers.

    The prediction is the slowest of memory, L2 cache and matrix units, extended by the idle part of
    the last wave of blocks. It ignores waits within a kernel.
    """
    if resources is None or resources.spills:
        return inf
    work = launch.work
    if work is None:
        return LAUNCH_SECONDS
    count = 1
    for size in launch.grid:
        count *= size
    waves = count / (multiprocessors * resources.blocks_per_multiprocessor(32 * launch.warps))
    # Waves are rounded up; counting in millionths absorbs rounding errors of the division.
    rounded = blocks(int(1e6 * waves), int(1e6)) / waves if waves > 1 else 1.0
    rounded *= max(1.0, multiprocessors / count)  # some multiprocessors have no block at all
    seconds = max(
        work.memory / MEMORY_SPEED, work.cache / CACHE_SPEED, work.products / MATRIX_SPEED
    )
    return seconds * rounded + LAUNCH_SECONDS


def seconds_alone(call: Callable[[], object], x: Tensor) -> float:
    """Return the seconds of a call, without the time that emptying the L2 cache takes."""
    return _graph_seconds(call, x) - _graph_seconds(lambda: None, x)


def _graph_seconds(call: Callable[[], object], x: Tensor) -> float:
    """Time calls in a CUDA graph, each together with emptying the L2 cache before it."""
    with torch.cuda.device(x.device), torch.inference_mode(mode=False), torch.no_grad():
        call()
        return _replayed(call)


def _replayed(call: Callable[[], object]) -> float:
    scratch = _scratch(torch.cuda.current_device())
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    best = inf
    with torch.cuda.stream(side):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(CALLS):
                scratch.zero_()
                call()
        finally:
            graph.capture_end()
        for _ in range(TRIES):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end))
    torch.cuda.current_stream().wait_stream(side)
    return best / 1e3 / CALLS


@cache
def _scratch(device: int) -> Tensor:
    """Return memory of twice the size of the L2 cache; writing to it empties the cache."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", device))
