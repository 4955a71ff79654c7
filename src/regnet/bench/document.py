"""The document of a benchmark run: the cases, and what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final

from regnet import documents
from regnet.bench.floors import Ceilings
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.documents import build
from regnet.engines.base import Layout, Precision
from regnet.errors import ConfigError

SCHEMA: Final = 3
"""Version of the document; see docs/benchmark.md."""

NAMED: Final = frozenset({"device", "threads", "date"})
"""Facts of the environment that reports and plots show."""

AUTO: Final = "auto"
"""Name that stands for the engine that `regnet.optimize` finds for each network, among those that
need no compiler and therefore build in seconds."""

BEST: Final = "best"
"""Name that stands for the fastest of all engines, including those that need a compiler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network to measure, and how to run it."""

    model: str | AnyNetConfig | RegNetConfig
    """A name that `regnet.bench.networks.load` knows, or a config."""
    batch_size: int = 1
    precision: Precision = "fp32"
    engine: str = AUTO
    layout: Layout = "channels_last"
    image_size: int | None = None
    """Side of the images in pixels; None: the size that the network was made for."""
    train: bool = False
    """Measure the eager forward and backward pass instead of inference."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def name(self) -> str:
        """Name of the network, for tables."""
        if isinstance(self.model, str):
            return self.model
        return f"{self.model.kind} {list(self.model.depths)} {list(self.model.widths)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The result of a case, or the reason why there is none."""

    case: Case
    image_size: int = 0
    flops: int = 0
    params: int = 0
    activations: int = 0
    top1_error: float | None = None
    """Top-1 error on ImageNet-1k in percent, as `top1_source` publishes it."""
    top1_source: str | None = None
    reason: str | None = None
    """Why the case was not timed; None if it was."""
    ran: str | None = None
    """Engine and precision that ran."""
    output_error: float | None = None
    """norm(output - eager fp32) / norm(eager fp32), the largest over the timed inputs."""
    top1_agreement: float | None = None
    """Share of the timed images with the same most probable class as from eager float32."""
    data_top1: float | None = None
    """Top-1 accuracy on your own images, in percent, at the image size of the case: in half
    precision by the engine that ran, in float32 by eager PyTorch; of an exported file as it is."""
    data_agreement: float | None = None
    """Share of those images that get the same class as from the first model, in percent."""
    build_seconds: float | None = None
    peak_bytes: int | None = None
    """Largest growth of memory from the build to the last call."""
    steady: bool | None = None
    """Whether the calls became steady before those that count."""
    problem: str | None = None
    """Why the times are not reliable, such as a busy machine; None if no problem is known."""
    reference_ms: tuple[float, float] | None = None
    """Least and largest time of a fixed piece of work beside the calls. A change of this time is a
    change of the machine."""
    latency_ms: float | None = None
    """Median time of a call, that is, of a batch."""
    low_ms: float | None = None
    high_ms: float | None = None
    """Ends of the 95 % bootstrap interval of the median."""
    p90_ms: float | None = None
    p99_ms: float | None = None
    """None if fewer than 1,000 calls were made."""
    minimum_ms: float | None = None
    queued_ms: float | None = None
    """Time per call if calls do not wait for each other, by CUDA events; on CPUs the mean."""
    with_copy_ms: float | None = None
    """Median time of a call that also copies the images from pinned memory, on CUDA."""
    images_per_second: float | None = None
    """Batch size divided by `queued_ms`."""
    floor_epilogue_ms: float | None = None
    floor_fused_ms: float | None = None
    """The least times that the network can take (`regnet.bench.floors`)."""
    seconds: tuple[float, ...] = field(default=(), repr=False)
    """Time of every call that counts."""

    def __post_init__(self) -> None:
        times = [self.latency_ms, self.low_ms, self.high_ms, self.p90_ms, self.images_per_second]
        if any(time is not None for time in times) and not all(time and time > 0 for time in times):
            raise ConfigError("a row must have all of its times, all positive, or none of them")

    @property
    def ran_as(self) -> str:
        """Engine and precision that ran; the engine of the case if nothing ran."""
        return "train" if self.case.train else self.ran or self.case.engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two networks, timed in alternation (A B B A) in the same run."""

    a: str
    b: str
    ran_a: str
    """Engine and precision that ran a."""
    ran_b: str
    batch_size: int
    precision: Precision
    engine: str
    layout: Layout
    verdict: str
    ratio: float
    """Time of a divided by that of b, the median over the pairs: above 1, b is faster."""
    low: float
    high: float
    """Ends of its 95 % bootstrap interval."""
    control: tuple[float, float]
    """The same interval for b against itself."""
    ratios: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One run of the benchmark."""

    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    environment: dict[str, Any]
    ceilings: dict[str, Ceilings]
    """What the machine can do, by precision, measured in the same run."""
    gpu_after: dict[str, str] | None = None
    """Clocks, power and throttling at the end; `environment` has those at the start."""
    seed: int = 0
    complete: bool = True
    """Whether all cases were measured; false after Ctrl-C."""
    schema: int = SCHEMA

    @property
    def fastest(self) -> tuple[Row, ...]:
        """The row of the fastest engine for each network, batch size and precision, in order."""
        best: dict[tuple[Any, ...], Row] = {}
        for row in self.rows:
            case = row.case
            key = case.name, case.batch_size, case.precision, case.train
            before = best[key].latency_ms if key in best else None
            if row.latency_ms and row.latency_ms < (before or inf):
                best[key] = row
        return tuple(row for row in self.rows if row in best.values())

    @property
    def latencies(self) -> dict[str, float]:
        """Milliseconds of each network that ran, on its fastest engine."""
        found: dict[str, float] = {}
        for row in self.fastest:
            assert row.latency_ms is not None, "it ran"
            before = found.get(row.case.name, inf)
            found[row.case.name] = min(row.latency_ms, before)
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Document":
        """Build a document from its JSON form.

        Raises:
            ConfigError: the document has another schema, or a field has a value that is not valid.
        """
        schema = values.get("schema")
        if schema != SCHEMA:
            raise ConfigError(
                f"its schema is {schema}, and this version reads {SCHEMA}; measure again"
            )
        found = build(cls, values)
        if lacking := sorted(NAMED - found.environment.keys()):
            raise ConfigError(f"its environment lacks {lacking[0]!r}")
        return found


def read(path: Path) -> Document:
    """Read a document that `regnet bench --out` wrote.

    Raises:
        ConfigError: there is no such file, it is damaged, or it has another schema.
    """
    try:
        values = documents.read(path, "a document of `regnet bench --out`")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        return Document.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
