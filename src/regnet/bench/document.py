"""The document of a benchmark run: what was asked and what was measured."""

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

AUTO: Final = "auto"
"""Name that stands for the engine that `regnet.optimize` finds for each network, among those that
need no compiler and therefore build in seconds."""

BEST: Final = "best"
"""The same among all engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to measure."""

    model: str | AnyNetConfig | RegNetConfig
    """A name that `regnet.bench.networks.load` knows, or a config."""
    batch_size: int = 1
    precision: Precision = "fp32"
    engine: str = AUTO
    layout: Layout = "channels_last"
    image_size: int | None = None
    """Side of the images in pixels; None: what the network was made for."""
    train: bool = False
    """Forward and backward, eager, instead of inference."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def name(self) -> str:
        """The network, for tables."""
        if isinstance(self.model, str):
            return self.model
        return f"{self.model.kind} {list(self.model.depths)} {list(self.model.widths)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came out of a case, or why nothing did."""

    case: Case
    image_size: int = 0
    flops: int = 0
    params: int = 0
    activations: int = 0
    top1_error: float | None = None
    """In percent of ImageNet-1k, as `top1_source` publishes it."""
    top1_source: str | None = None
    reason: str | None = None
    ran: str | None = None
    """Engine and precision that ran."""
    output_error: float | None = None
    """norm(output - eager fp32) / norm(eager fp32), the worst of the timed inputs."""
    top1_agreement: float | None = None
    """Part of the timed images with the same most probable class as in eager fp32."""
    data_top1: float | None = None
    """On one's own images, in percent: of the model run eagerly, or of a file as it is."""
    data_agreement: float | None = None
    """Part of those images that get the same class as from the first model, in percent."""
    build_seconds: float | None = None
    peak_bytes: int | None = None
    """Growth of memory from building to the last call, at its highest."""
    steady: bool | None = None
    problem: str | None = None
    """Why the times mean little, such as a busy machine; None where nothing is known."""
    reference_ms: tuple[float, float] | None = None
    """Least and most of a fixed piece of work beside its calls: what it changes, the machine
    changed."""
    latency_ms: float | None = None
    """Median of a call, that is, of a batch."""
    low_ms: float | None = None
    high_ms: float | None = None
    """95 % bootstrap interval of the median."""
    p90_ms: float | None = None
    p99_ms: float | None = None
    """None where fewer than 1,000 calls were made."""
    minimum_ms: float | None = None
    queued_ms: float | None = None
    """Per call, where calls do not wait for each other: by CUDA events; on CPUs the mean."""
    with_copy_ms: float | None = None
    """Median of a call that also brings the images from pinned memory; on accelerators."""
    images_per_second: float | None = None
    """Batch over `queued_ms`."""
    floor_epilogue_ms: float | None = None
    floor_fused_ms: float | None = None
    seconds: tuple[float, ...] = field(default=(), repr=False)
    """Every call that counts."""

    def __post_init__(self) -> None:
        times = [self.latency_ms, self.low_ms, self.high_ms, self.p90_ms, self.images_per_second]
        if any(time is not None for time in times) and not all(time and time > 0 for time in times):
            raise ConfigError("a row has all of its times, and all positive, or none")

    @property
    def ran_as(self) -> str:
        """Engine and precision that ran, or those that were asked for where nothing ran."""
        return "train" if self.case.train else self.ran or self.case.engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two networks in turn, in the same run: A B B A."""

    a: str
    b: str
    ran_a: str
    """Engine and precision of a."""
    ran_b: str
    batch_size: int
    precision: Precision
    engine: str
    layout: Layout
    verdict: str
    ratio: float
    """Time of a over that of b, the median of pairs: above 1, b is faster."""
    low: float
    high: float
    """95 % bootstrap interval."""
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
    """By precision, measured in the same run."""
    gpu_after: dict[str, str] | None = None
    """Clocks, power and throttling at the end; `environment` has them at the start."""
    seed: int = 0
    complete: bool = True
    """Whether all cases were reached."""
    schema: int = SCHEMA

    @property
    def fastest(self) -> tuple[Row, ...]:
        """Of each network, batch size and precision the row of its fastest engine, in order."""
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
        """Milliseconds of each network that ran, with the engine that was fastest for it."""
        found: dict[str, float] = {}
        for row in self.fastest:
            assert row.latency_ms is not None, "it ran"
            before = found.get(row.case.name, inf)
            found[row.case.name] = min(row.latency_ms, before)
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Document":
        """Return the document of its JSON form.

        Raises:
            ConfigError: it is of another schema, or a field has a value that cannot be.
        """
        schema = values.get("schema")
        if schema != SCHEMA:
            raise ConfigError(
                f"its schema is {schema}, and this version reads {SCHEMA}; measure again"
            )
        return build(cls, values)


def read(path: Path) -> Document:
    """Return the document that `regnet bench --out` wrote.

    Raises:
        ConfigError: there is none, or it is damaged or of another schema.
    """
    try:
        values = documents.read(path, "a document of `regnet bench --out`")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        return Document.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
