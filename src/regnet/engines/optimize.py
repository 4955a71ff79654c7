"""The fastest correct way to run a network here: every engine is built, checked and timed."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor, nn

from regnet.engines.base import TOLERANCES, Engine, Precision, Runner, Target, relative_error
from regnet.engines.compiled import AOTInductor, Compiled
from regnet.engines.cuda_graph import CUDAGraph
from regnet.engines.eager import ChannelsLast, Eager, Padded
from regnet.engines.onnx_runtime import ONNXRuntime
from regnet.engines.openvino import OpenVINO
from regnet.errors import ConfigError, EngineError
from regnet.nn.model import AnyNet, evaluating
from regnet.timing import measure

ENGINES: Final[tuple[Engine, ...]] = (
    Eager(),
    ChannelsLast(),
    Padded(),
    Compiled(),
    AOTInductor(),
    CUDAGraph(),
    ONNXRuntime(),
    OpenVINO(),
)
"""All engines, the reference first."""

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")

INPUT_SETS: Final = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way that was tried, or why it was not."""

    engine: str
    precision: Precision
    reason: str | None = None
    """Why it is out; None if it is in the race."""
    latency_ms: float | None = None
    """Median of single calls."""
    error: float | None = None
    """norm(output - reference) / norm(reference), the worst of the inputs."""
    build_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `optimize` tried, and what it chose."""

    candidates: tuple[Candidate, ...]
    winner: Candidate
    shape: tuple[int, ...]
    """Shape of the images that it was chosen for."""
    speedup: float
    """Time of eager fp32 over the winner's."""
    note: str = (
        "other batch sizes are padded to this one, or cut into pieces of it; other heights and "
        "widths run eagerly"
    )

    def __str__(self) -> str:
        lines = []
        for row in sorted(self.candidates, key=lambda c: c.latency_ms or math.inf):
            name = f"{row.engine} {row.precision}"
            if row.latency_ms is None:
                lines.append(f"{name:20s} {row.reason}")
            else:
                out = f"  out: {row.reason}" if row.reason else ""
                lines.append(f"{name:20s} {row.latency_ms:9.3f} ms  error {row.error:.1e}{out}")
        return "\n".join(lines)


class Optimized(nn.Module):
    """A network in the form that was fastest here. Inference only; takes and gives float32.

    `report` says what was tried. Batches of other sizes than it was made for are padded to it, or
    cut into pieces; images of another size run on the model itself.
    """

    def __init__(self, model: AnyNet, runner: Runner, report: Report) -> None:
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
    model: AnyNet,
    example: Tensor | None = None,
    *,
    goal: Literal["latency", "throughput"] = "latency",
    precision: Precision | Literal["auto"] = "auto",
    engines: Sequence[str] | Literal["auto"] = "auto",
    seconds: float = 1.5,
) -> Optimized:
    """The fastest way to run this model on its device whose outputs agree with eager float32.

    Args:
        model: in any mode; it is not changed, and must not change while the result is in use.
        example: images (N, C, H, W) of the size to be fast for; None: one image for latency, 16 for
            throughput, of the size that the model was made for. Its values do not matter.
        goal: what the default example stands for.
        precision: "auto" also tries halves where this device has instructions for them; "fp32"
            tries nothing else.
        engines: names of those to try; "auto": all.
        seconds: to time each candidate for, building not counted.

    Raises:
        ConfigError: an engine, a precision or a goal is not known.
        EngineError: none of the engines asked for works; the message says why.
    """
    chosen = _chosen(engines)
    if precision not in (*PRECISIONS, "auto"):
        raise ConfigError(f"precision must be auto, {', '.join(PRECISIONS)}; got {precision!r}")
    wanted = tuple(p for p in PRECISIONS if precision in ("auto", p) or p == "fp32")
    if goal not in ("latency", "throughput"):
        raise ConfigError(f"goal must be 'latency' or 'throughput', got {goal!r}")
    device = next(model.parameters()).device
    shape = tuple(example.shape) if example is not None else _default_shape(model, goal)
    rng = torch.Generator().manual_seed(0)
    # Random numbers, never zeros: processors are quicker on zeros.
    inputs = [torch.randn(shape, generator=rng).to(device) for _ in range(INPUT_SETS)]
    with evaluating(model), torch.inference_mode(), _unchanged_settings():
        reference = [model(x).float().clone() for x in inputs]
        runners: dict[int, Runner] = {}
        candidates: list[Candidate] = []
        for engine in chosen:
            for half in wanted:
                target = Target(device=device, precision=half)
                row, runner = _try(engine, model, inputs, reference, target, seconds)
                _log.info("%s", row)
                if runner and row.reason is None:
                    runners[len(candidates)] = runner
                candidates.append(row)
    if not runners:
        reasons = "; ".join(f"{c.engine} {c.precision}: {c.reason}" for c in candidates)
        raise EngineError(f"none of these engines works here: {reasons}")
    best = min(runners, key=lambda index: candidates[index].latency_ms or math.inf)
    eager = next((c.latency_ms for c in candidates if c.engine == "eager" and c.latency_ms), None)
    winner = candidates[best]
    report = Report(
        candidates=tuple(candidates),
        winner=winner,
        shape=shape,
        speedup=(eager or math.nan) / (winner.latency_ms or math.nan),
    )
    return Optimized(model, runners[best], report)


def _chosen(engines: Sequence[str] | str) -> tuple[Engine, ...]:
    if engines == "auto":
        return ENGINES
    return tuple(map(find_engine, [engines] if isinstance(engines, str) else engines))


def find_engine(name: str) -> Engine:
    """The engine with this name.

    Raises:
        ConfigError: there is none.
    """
    known = {engine.name: engine for engine in ENGINES}
    if name not in known:
        raise ConfigError(f"there is no engine {name!r}; there are {', '.join(known)}")
    return known[name]


def _default_shape(model: AnyNet, goal: str) -> tuple[int, ...]:
    size = tuple(model.pretrained_cfg.get("input_size", (model.config.in_chans, 224, 224)))
    return (1 if goal == "latency" else 16, *size)


def _try(
    engine: Engine,
    model: nn.Module,
    inputs: Sequence[Tensor],
    reference: Sequence[Tensor],
    target: Target,
    seconds: float,
) -> tuple[Candidate, Runner | None]:
    row = Candidate(engine=engine.name, precision=target.precision)
    try:
        built = build_checked(engine, model, inputs, reference, target)
        row = replace(row, reason=built.reason, build_seconds=built.seconds, error=built.error)
        if built.runner is None or built.reason:
            return row, None
        samples = measure(built.runner, inputs, seconds=seconds, warmup_seconds=seconds)
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
