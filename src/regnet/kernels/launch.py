"""Launch kernels in the fastest of several ways."""

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
"""Times that each way is measured; the best counts."""

CALLS: Final = 10
"""Calls that are measured together, in a graph: launched one by one, small kernels would wait."""

PROCESSORS: Final = 132
"""Multiprocessors of an H200, for plans that are made where there is no GPU."""

HOPELESS: Final = 1.5
"""A way whose predicted time is more than this many times the least one is not timed."""

Way = TypeVar("Way")

_chosen: dict[Hashable, object] = {}
_resources: dict[Binary, Resources | None] = {}
"""What is known about binaries; None: it could not be compiled."""
_plan: ContextVar["list[tuple[Launch, ...]] | None"] = ContextVar("plan", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a launch moves and computes."""

    memory: float
    """Bytes that the device's memory reads and writes in any way of running the kernel."""
    cache: float
    """Bytes that all blocks read and write, whether the L2 cache or the memory serves them."""
    products: float
    """Multiply-adds on the matrix units, padding included."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Launch:
    """A kernel with everything that it is launched with; call it to launch it."""

    kernel: Any
    """A function of `triton.jit`, none of whose numbers is specialized."""
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    """Tensors, then numbers."""
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int
    stages: int
    work: Work | None = None
    before: tuple[Callable[[], object], ...] = ()
    """What must run first, such as another launch whose result it reads."""

    def __call__(self) -> None:
        """Launch it; with tensors that have no memory (`meta`) nothing happens."""
        for call in self.before:
            call()
        if not self.args[0].is_meta:
            self.kernel[self.grid](
                *self.args, **self.constants, num_warps=self.warps, num_stages=self.stages
            )

    @property
    def binary(self) -> Binary:
        """What must be compiled for it."""
        return Binary.of(self.kernel, self.args, self.constants, self.warps, self.stages)


def runs_kernels(x: Tensor) -> bool:
    """Return whether Triton takes this tensor.

    Its interpreter (TRITON_INTERPRET=1) takes any; tensors on `meta` are planned with.
    """
    return HAS_TRITON and (x.is_cuda or x.is_meta or bool(triton.knobs.runtime.interpret))


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover a size."""
    return -(-size // block)


def power_of_two(size: int, *, least: int, most: int) -> int:
    """Return the smallest power of two that holds a size, within bounds that are powers of two."""
    return min(max(1 << max(size - 1, 0).bit_length(), least), most)


def processors(x: Tensor) -> int:
    """Return the multiprocessors of a tensor's device; those of an H200 where it is on no GPU."""
    if not x.is_cuda:
        return PROCESSORS
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count)


@contextmanager
def planned() -> Iterator[list[tuple[Launch, ...]]]:
    """Collect, for every call with tensors on `meta`, the launches that it would choose among."""
    found: list[tuple[Launch, ...]] = []
    token = _plan.set(found)
    try:
        yield found
    finally:
        _plan.reset(token)


def prepare(choices: Iterable[Sequence[Launch]], target: tuple[str, int, int]) -> None:
    """Compile what a plan chooses among, in parallel, so that ways need only be timed.

    Args:
        choices: what `planned` collected.
        target: backend, architecture and threads of a warp.
    """
    binaries = {one.binary for ways in choices for one in ways}
    remember(compile_all(binaries - _resources.keys(), target))


def remember(resources: dict[Binary, Resources | None]) -> None:
    """Use what is known about binaries when ways are chosen to be timed."""
    _resources.update(resources)


def fastest(
    key: Hashable, ways: Sequence[Way], launch: Callable[[Way], Callable[[], object]], x: Tensor
) -> Way:
    """Return the way of running a kernel that took the least time for this key, on this device.

    Args:
        key: what decides the time: shapes, types, options.
        ways: what to try. A way that cannot be compiled or needs more registers or shared memory
            than there are is left out, and so is one that is predicted to be hopeless.
        launch: gives what runs the kernel in one of the ways.
        x: a tensor on the device.

    Raises:
        RuntimeError: none of the ways runs, or a CUDA graph is being captured before this key was
            measured.
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
                "kernels choose their fastest way by timing; call the network once with this shape "
                "before a CUDA graph captures it"
            )
        _chosen[key] = _timed(key, ways, launch, x)
    return _chosen[key]  # type: ignore[return-value]  # keys name one kind of way each


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
        raise RuntimeError(f"no way to run this kernel fits the device: {key}") from problem
    return best


def promising(
    ways: Sequence[Way], launches: Sequence[Callable[[], object]], multiprocessors: int
) -> list[Way]:
    """Return the ways that are worth timing, by what is known about their binaries.

    Left out are those that were not compiled or spill registers, and those that are predicted to
    take much longer than another; but the most promising way of each kind stays.
    """
    guesses: dict[int, float] = {}
    for number, made in enumerate(launches):
        guess = 0.0  # nothing is known: it must be timed
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
"""Bytes per second of its L2 cache, roughly."""

MATRIX_SPEED: Final = 372e12
"""Multiply-adds per second of its matrix units in half precision, as measured."""

LAUNCH_SECONDS: Final = 2e-6
"""For the start and the end of a kernel."""


def predicted(launch: Launch, resources: Resources | None, multiprocessors: int) -> float:
    """Return the seconds that a launch takes on an H200, roughly: infinite if it spills registers.

    The slowest of memory, cache and matrix units decides; the last wave of blocks is not full.
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
    rounded = blocks(int(1e6 * waves), int(1e6)) / waves if waves > 1 else 1.0
    rounded *= max(1.0, multiprocessors / count)  # some multiprocessors have no block at all
    seconds = max(
        work.memory / MEMORY_SPEED, work.cache / CACHE_SPEED, work.products / MATRIX_SPEED
    )
    return seconds * rounded + LAUNCH_SECONDS


def seconds_alone(call: Callable[[], object], x: Tensor) -> float:
    """Return the seconds of a call, without what emptying the L2 cache before it takes."""
    return _graph_seconds(call, x) - _graph_seconds(lambda: None, x)


def _graph_seconds(call: Callable[[], object], x: Tensor) -> float:
    """Time calls in a graph, each of them after the L2 cache was emptied; that is included."""
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
    """Memory of the size of the L2 cache, and as much again."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", device))
