"""The fastest correct way to run a network here: every engine is built, checked and timed."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from regnet.engines.base import (
    TOLERANCES,
    Engine,
    Layout,
    Precision,
    Runner,
    Target,
    relative_error,
)
from regnet.engines.choices import key_of, recall, remember
from regnet.engines.compiled import AOTInductor, Compiled
from regnet.engines.cuda_graph import CUDAGraph
from regnet.engines.eager import Eager, Folded, Padded
from regnet.engines.onnx_runtime import ONNXRuntime
from regnet.engines.openvino import OpenVINO
from regnet.engines.tensorrt import TensorRT
from regnet.errors import ConfigError, EngineError
from regnet.machine import what_decides_speed
from regnet.nn.model import AnyNet, evaluating
from regnet.timing import measure, peak_memory

ENGINES: Final[tuple[Engine, ...]] = (
    Eager(),
    Folded(),
    Padded(),
    Compiled(),
    AOTInductor(),
    CUDAGraph(),
    ONNXRuntime(),
    OpenVINO(),
    TensorRT(),
)
"""All engines, the reference first."""

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")

LAYOUTS: Final[tuple[Layout, ...]] = ("channels_last", "contiguous")

INPUT_SETS: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way that was tried, or why it was not."""

    engine: str
    precision: Precision
    layout: Layout = "channels_last"
    reason: str | None = None
    """Why it is out; None if it is in the race."""
    latency_ms: float | None = None
    """Median of single calls."""
    error: float | None = None
    """norm(output - reference) / norm(reference), the worst of the inputs."""
    build_seconds: float | None = None
    peak_bytes: int | None = None
    """Growth of memory while it was built and first called, at its highest."""

    def __str__(self) -> str:
        contiguous = " contiguous" if self.layout == "contiguous" else ""
        return f"{self.engine} {self.precision}{contiguous}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `optimize` tried, and what it chose."""

    candidates: tuple[Candidate, ...]
    winner: Candidate
    shape: tuple[int, ...]
    """Shape of the images that it was chosen for."""
    speedup: float | None
    """Time of eager fp32 over the winner's; None where eager did not run."""
    remembered: bool = False
    """Whether the times are those of an earlier race, on the same device and software."""
    note: str = (
        "other batch sizes are padded to this one, or cut into pieces of it; other heights and "
        "widths run eagerly"
    )

    def __str__(self) -> str:
        """A table, the fastest first."""
        lines = [f"{'':28s}{'ms':>10s}{'error':>10s}{'build s':>9s}{'MB':>7s}"]
        for row in sorted(self.candidates, key=lambda c: c.latency_ms or math.inf):
            if row.latency_ms is None:
                lines.append(f"{row!s:28s}  {row.reason}")
                continue
            memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
            lines.append(
                f"{row!s:28s}{row.latency_ms:10.3f}{row.error:10.1e}{row.build_seconds:9.1f}"
                f"{memory:>7s}"
            )
        return "\n".join(lines)


class Optimized(nn.Module):
    """A network in the form that was fastest here. Inference only; takes and gives float32.

    `report` says what was tried. Batches of other sizes than it was made for are padded to it, or
    cut into pieces; images of another size run on the model itself.
    """

    def __init__(self, model: nn.Module, runner: Runner, report: Report) -> None:
        super().__init__()
        self.model = model
        self.report = report
        self._runner = runner

    def forward(self, x: Tensor) -> Tensor:
        batch, *image = self.report.shape
        if list(x.shape[1:]) != image:
            with evaluating(self.model), torch.inference_mode():
                out: Tensor = self.model(x)
                return out
        if len(x) == batch:
            return self._runner(x)
        return torch.cat([self._piece(piece, batch) for piece in x.split(batch)])

    def _piece(self, x: Tensor, batch: int) -> Tensor:
        missing = batch - len(x)
        if missing:
            x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        return self._runner(x)[: batch - missing]


def optimize(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    goal: Literal["latency", "throughput"] = "latency",
    precision: Precision | Literal["auto"] = "auto",
    engines: Sequence[str] | Literal["auto"] = "auto",
    seconds: float = 1.5,
    refresh: bool = False,
) -> Optimized:
    """The fastest way to run this model on its device whose outputs agree with eager float32.

    The times of a race are kept on disk (see `regnet.engines.choices`), for the same network,
    shape, device, threads and versions, so that the next call only builds and checks the winner.

    Args:
        model: in any mode; it is not changed, and must not change while the result is in use.
        example: images (N, C, H, W) of the size to be fast for; None: one image for latency, 16 for
            throughput, of the size that the model was made for. Its values do not matter.
        goal: what the default example stands for.
        precision: "auto" also tries halves where this device has instructions for them; "fp32"
            tries nothing else.
        engines: names of those to try; "auto": all.
        seconds: to time each candidate for, building not counted.
        refresh: race again, whatever is remembered.

    Raises:
        ConfigError: an engine, a precision or a goal is not known.
        EngineError: none of the engines asked for works; the message says why.
    """
    chosen = _chosen(engines)
    if precision not in (*PRECISIONS, "auto"):
        raise ConfigError(f"precision must be auto, {', '.join(PRECISIONS)}; got {precision!r}")
    if goal not in ("latency", "throughput"):
        raise ConfigError(f"goal must be 'latency' or 'throughput', got {goal!r}")
    device = next(model.parameters()).device
    layouts = LAYOUTS if device.type == "cuda" else LAYOUTS[:1]
    targets = [
        Target(device=device, precision=half, layout=layout)
        for half in PRECISIONS
        if precision in ("auto", half) or half == "fp32"
        for layout in layouts
    ]
    shape = tuple(example.shape) if example is not None else default_shape(model, goal)
    with evaluating(model), torch.inference_mode(), _unchanged_settings():
        race = _Race(model, shape, device)
        ways = list(product(chosen, targets))
        key = key_of(model, {"shape": shape, **what_decides_speed(device)})
        known = {} if refresh else _known(key)
        remembered = all((engine.name, t.precision, t.layout) in known for engine, t in ways)
        candidates: list[Candidate] = []
        runners: dict[int, Runner] = {}
        if remembered:
            candidates = [known[engine.name, t.precision, t.layout] for engine, t in ways]
            index = _fastest(candidates)
            if index is not None:
                row, runner = race.enter(*ways[index])
                remembered = runner is not None
                if runner:
                    runners[index] = runner
        if not remembered:
            candidates = []
            for number, (engine, target) in enumerate(ways):
                row, runner = race.enter(engine, target, seconds)
                _log.info("%s: %s", row, row.reason or f"{row.latency_ms:.3f} ms")
                if runner:
                    runners[number] = runner
                candidates.append(row)
            known |= {(row.engine, row.precision, row.layout): row for row in candidates}
            remember(key, [asdict(row) for row in known.values()])
    index = _fastest(candidates)
    if index is None:
        reasons = "; ".join(f"{row}: {row.reason}" for row in candidates)
        raise EngineError(f"none of these engines works here: {reasons}")
    winner = candidates[index]
    eager = next((c.latency_ms for c in candidates if c.engine == "eager" and c.latency_ms), None)
    report = Report(
        candidates=tuple(candidates),
        winner=winner,
        shape=shape,
        speedup=eager / winner.latency_ms if eager and winner.latency_ms else None,
        remembered=remembered,
    )
    return Optimized(model, runners[index], report)


def _chosen(engines: Sequence[str] | str) -> tuple[Engine, ...]:
    if engines == "auto":
        return ENGINES
    return tuple(map(find_engine, [engines] if isinstance(engines, str) else engines))


def _fastest(candidates: Sequence[Candidate]) -> int | None:
    times = {n: row.latency_ms for n, row in enumerate(candidates) if row.latency_ms}
    return min(times, key=lambda n: times[n] or math.inf) if times else None


def _known(key: str) -> dict[tuple[str, str, str], Candidate]:
    """Candidates of earlier races."""
    try:
        rows = [Candidate(**row) for row in recall(key) or ()]
    except TypeError:  # of another version, or damaged
        return {}
    return {(row.engine, row.precision, row.layout): row for row in rows}


def find_engine(name: str) -> Engine:
    """The engine with this name.

    Raises:
        ConfigError: there is none.
    """
    known = {engine.name: engine for engine in ENGINES}
    if name not in known:
        raise ConfigError(f"there is no engine {name!r}; there are {', '.join(known)}")
    return known[name]


def default_shape(model: nn.Module, goal: str) -> tuple[int, ...]:
    """Shape of the images that a model was made for: one for "latency", 16 for "throughput"."""
    if not isinstance(model, AnyNet):
        raise ConfigError("for a model that is no AnyNet, give an example: images of its size")
    size = tuple(model.pretrained_cfg.get("input_size", (model.config.in_chans, 224, 224)))
    return (1 if goal == "latency" else 16, *size)


class _Race:
    """Inputs and right answers for one network and shape."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], device: torch.device) -> None:
        rng = torch.Generator().manual_seed(0)
        # Random numbers, never zeros: processors are quicker on zeros.
        self.inputs = [torch.randn(shape, generator=rng).to(device) for _ in range(INPUT_SETS)]
        self.reference = [model(x).float().clone() for x in self.inputs]
        self.model = model

    def enter(
        self, engine: Engine, target: Target, seconds: float | None = None
    ) -> tuple[Candidate, Runner | None]:
        """Build, check, and time for so many seconds; a runner only if it may be used."""
        row = Candidate(engine=engine.name, precision=target.precision, layout=target.layout)
        try:
            with peak_memory(target.device) as grown:
                built = build_checked(engine, self.model, self.inputs, self.reference, target)
                facts: dict[str, Any] = {"build_seconds": built.seconds, "error": built.error}
                row = replace(row, reason=built.reason, peak_bytes=grown(), **facts)
            if built.reason or seconds is None:
                return row, None if built.reason else built.runner
            assert built.runner is not None
            samples = measure(built.runner, self.inputs, seconds=seconds, warmup_seconds=seconds)
        except Exception as problem:  # noqa: BLE001 - an engine may fail in any way; the race goes on
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:200]
            return replace(row, reason=reason), None
        return replace(row, latency_ms=1e3 * samples.median), built.runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A runner, and whether its answers are right."""

    runner: Runner | None = None
    seconds: float | None = None
    error: float | None = None
    """See `worst_error`."""
    reason: str | None = None
    """Why it must not be used; None if it may."""


def build_checked(
    engine: Engine,
    model: nn.Module,
    inputs: Sequence[Tensor],
    reference: Sequence[Tensor],
    target: Target,
) -> Built:
    """Build a runner and compare its answers; whatever the engine raises is passed on."""
    if obstacle := engine.obstacle(target):
        return Built(reason=obstacle)
    start = time.perf_counter()
    runner = engine.build(model, inputs[0], target)
    seconds = time.perf_counter() - start
    error = worst_error(runner, inputs, reference)
    wrong = not error <= TOLERANCES[target.precision]  # nan is wrong too
    reason = f"wrong: its outputs differ by {error:.1e}" if wrong else None
    return Built(runner=runner, seconds=seconds, error=error, reason=reason)


def worst_error(runner: Runner, inputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest relative error over several inputs; each is asked twice.

    The second answer must be the first: an engine that hands out its own memory would change it.
    """
    answers = [runner(x) for x in inputs]
    again = [runner(x) for x in inputs]
    pairs = zip([*answers, *again], [*reference, *reference], strict=True)
    errors = [relative_error(found, expected) for found, expected in pairs]
    return max(errors) if all(math.isfinite(e) for e in errors) else math.nan


@contextmanager
def _unchanged_settings() -> Iterator[None]:
    """Global settings of torch as before, whatever engines do to them."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, torch.get_num_threads())
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[:3]
        torch.set_num_threads(before[3])
