"""The fastest correct way to run a network here: every engine is built, checked and timed."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from regnet.documents import build
from regnet.engines.base import (
    Engine,
    Layout,
    Precision,
    Runner,
    Target,
    for_any_batch,
    inference,
)
from regnet.engines.check import INPUT_SETS, answers, build_checked
from regnet.engines.choices import key_of, recall, remember
from regnet.engines.compiled import AOTInductor, Compiled, CompiledCUDAGraph
from regnet.engines.cuda_graph import CUDAGraph, PaddedCUDAGraph
from regnet.engines.eager import Eager, Folded, Padded
from regnet.engines.fused import Fused
from regnet.engines.onnx_runtime import ONNXRuntime
from regnet.engines.openvino import OpenVINO
from regnet.engines.outputs import form_of
from regnet.engines.tensorrt import TensorRT
from regnet.errors import ConfigError, EngineError, check_number, in_one_line, unknown
from regnet.machine import what_decides_speed
from regnet.nn.features import Described
from regnet.nn.model import evaluation_view
from regnet.timing import compare, measure, peak_memory

ENGINES: Final[tuple[Engine, ...]] = (
    Eager(),
    Folded(),
    Padded(),
    Compiled(),
    AOTInductor(),
    CUDAGraph(),
    PaddedCUDAGraph(),
    CompiledCUDAGraph(),
    Fused(),
    ONNXRuntime(),
    OpenVINO(),
    TensorRT(),
)
"""All engines, the reference first."""

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")

LAYOUTS: Final[tuple[Layout, ...]] = ("channels_last", "contiguous")

LASTING: Final = ("wrong: ", "unsuitable: ")
"""How reasons begin that will be the same next time."""

CLOSE: Final = 1.25
"""Candidates whose time is at most so many times the best are run in turn with it. Alone, the same
engine was seen to take 19 % longer than in turn, on a machine that it shares with others."""

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

    `report` says what was tried. Not for two threads at once: some engines answer from buffers that
    they use again. Batches of other sizes than it was made for are padded to it, or
    cut into pieces; images of another size run on the model itself.
    """

    def __init__(
        self, model: nn.Module, runner: Runner, report: Report, restored: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self.model = model
        self._restored = restored
        self._eager = inference(evaluation_view(model, always=True))
        self.report = report
        self._runner = for_any_batch(runner, report.shape[0])

    def forward(self, x: Tensor) -> Any:
        if tuple(x.shape[1:]) != tuple(self.report.shape[1:]):
            return self._eager(x)
        return self._restored(self._runner(x))


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
        model: in any mode; it is not changed, and must not change while the result is in use. Any
            module will do that takes images and gives a tensor, or a list, a tuple or a dictionary
            of tensors, of which the first axis is the batch.
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
    check_number("seconds", seconds, least=0)
    chosen = _chosen(engines)
    for kind, value, known in (
        ("precision", precision, ("auto", *PRECISIONS)),
        ("goal", goal, ("latency", "throughput")),
    ):
        if value not in known:
            raise ConfigError(unknown(kind, value, known))
    device = device_of(model)
    layouts = LAYOUTS if device.type == "cuda" else LAYOUTS[:1]
    targets = [
        Target(device=device, precision=half, layout=layout)
        for half in PRECISIONS
        if precision in ("auto", half) or half == "fp32"
        for layout in layouts
    ]
    shape = tuple(example.shape) if example is not None else default_shape(model, goal)
    with _settings_of_a_race(device):
        form = form_of(evaluation_view(model), torch.zeros(shape, device=device))
        race = _Race(form.flat, shape, device, seconds)
        ways = list(product(chosen, targets))
        key = key_of(model, {"shape": shape, "seconds": seconds, **what_decides_speed(device)})
        before = {} if refresh else _known(key)
        candidates = _recalled(ways, before)
        remembered = candidates is not None
        runner: Runner | None = None
        if candidates and (index := _fastest(candidates)) is not None:
            _, runner = race.enter(*ways[index], timed=False)
        if runner is None:
            candidates, runner = race.run(ways)
            remembered = False
            before |= {(row.engine, row.precision, row.layout): row for row in candidates}
            remember(key, [asdict(row) for row in before.values()])
    assert candidates is not None
    index = _fastest(candidates)
    if index is None or runner is None:
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
    return Optimized(model, runner, report, form.restored)


def _chosen(engines: Sequence[str] | str) -> tuple[Engine, ...]:
    if engines == "auto":
        return ENGINES
    return tuple(map(find_engine, [engines] if isinstance(engines, str) else engines))


def _fastest(candidates: Sequence[Candidate]) -> int | None:
    times = {n: row.latency_ms for n, row in enumerate(candidates) if row.latency_ms}
    return min(times, key=lambda n: times[n] or math.inf) if times else None


def _recalled(
    ways: Sequence[tuple[Engine, Target]],
    known: Mapping[tuple[str, str, str], Candidate],
) -> list[Candidate] | None:
    """All candidates as they were; None if one was not tried, or may fare better today."""
    rows = []
    for engine, target in ways:
        row = known.get((engine.name, target.precision, target.layout))
        if obstacle := engine.obstacle(target):
            row = _candidate(engine, target, reason=obstacle)
        elif row is None or not (row.latency_ms or (row.reason or "").startswith(LASTING)):
            return None
        rows.append(row)
    return rows


def _candidate(engine: Engine, target: Target, **facts: Any) -> Candidate:
    return Candidate(engine=engine.name, precision=target.precision, layout=target.layout, **facts)


def _known(key: str) -> dict[tuple[str, str, str], Candidate]:
    """Candidates of earlier races."""
    try:
        rows = [build(Candidate, row) for row in recall(key) or ()]
    except ConfigError:  # of another version
        return {}
    return {(row.engine, row.precision, row.layout): row for row in rows}


def find_engine(name: str) -> Engine:
    """The engine with this name.

    Raises:
        ConfigError: there is none.
    """
    known = {engine.name: engine for engine in ENGINES}
    if name not in known:
        raise ConfigError(unknown("engine", name, known))
    return known[name]


def device_of(model: nn.Module) -> torch.device:
    """Where a model's tensors are; the CPU where it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def default_shape(model: nn.Module, goal: str) -> tuple[int, ...]:
    """Shape of the images that a model was made for: one for "latency", 16 for "throughput"."""
    if not isinstance(model, Described):
        raise ConfigError(
            f"for a model that was not made here ({type(model).__name__}), give an example: images "
            "(N, C, H, W) of its size"
        )
    size = model.card.preprocess.size if model.card else (224, 224)
    return (1 if goal == "latency" else 16, model.config.in_chans, *size)


class _Race:
    """Inputs and right answers for one network and shape."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], device: torch.device, seconds: float
    ) -> None:
        rng = torch.Generator().manual_seed(0)
        # Random numbers, never zeros: processors are quicker on zeros.
        self.inputs = [torch.randn(shape, generator=rng).to(device) for _ in range(INPUT_SETS)]
        self.reference = answers(model, self.inputs)
        self.model, self.seconds = model, seconds

    def run(self, ways: Sequence[tuple[Engine, Target]]) -> tuple[list[Candidate], Runner | None]:
        """Every way timed alone, the closest in turn; and the fastest's runner."""
        rows: list[Candidate] = []
        runners: dict[int, Runner] = {}
        for number, (engine, target) in enumerate(ways):
            row, runner = self.enter(engine, target)
            _log.info("%s: %s", row, row.reason or f"{row.latency_ms:.3f} ms")
            rows.append(row)
            if runner:
                runners[number] = runner
            best = _fastest(rows)
            if best is None:
                continue
            limit = CLOSE * (rows[best].latency_ms or math.inf)
            # Runners hold weights and memory for maps: only those that may win are kept.
            runners = {n: r for n, r in runners.items() if (rows[n].latency_ms or 0) <= limit}
            del runner
            if target.device.type == "cuda":
                torch.cuda.empty_cache()
        best = _fastest(rows)
        if best is None:
            return rows, None
        for number in runners.keys() - {best}:
            found = compare(
                runners[best], runners[number], self.inputs, pairs=20, seconds=self.seconds
            )
            latency = (rows[best].latency_ms or math.nan) * found.median
            rows[number] = replace(rows[number], latency_ms=latency)
        best = _fastest(rows)
        return rows, None if best is None else runners[best]

    def enter(
        self, engine: Engine, target: Target, *, timed: bool = True
    ) -> tuple[Candidate, Runner | None]:
        """Build, check, and time one way; a runner only if it may be used."""
        row = _candidate(engine, target)
        try:
            with peak_memory(target.device) as grown:
                built = build_checked(engine, self.model, self.inputs, self.reference, target)
                row = replace(
                    row,
                    reason=built.reason,
                    build_seconds=built.seconds,
                    error=built.error,
                    peak_bytes=grown() if built.runner else None,
                )
            if built.runner is None or built.reason:
                return row, None
            if timed:
                samples = measure(
                    built.runner,
                    self.inputs,
                    seconds=self.seconds,
                    warmup_seconds=self.seconds,
                )
                row = replace(row, latency_ms=1e3 * samples.median)
        except EngineError as problem:
            return replace(row, reason=f"unsuitable: {problem}"), None
        except Exception as problem:  # noqa: BLE001 - an engine may fail in any way; the race goes on
            reason = in_one_line(problem, most=200)
            return replace(row, reason=reason), None
        return row, built.runner


@contextmanager
def _settings_of_a_race(device: torch.device) -> Iterator[None]:
    """On CUDA, this device is the current one; settings are restored afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, torch.get_num_threads())
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[:3]
        torch.set_num_threads(before[3])
