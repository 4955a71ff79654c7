"""What one run of the benchmark asked and found: the document that it writes and reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from regnet.bench.floors import Ceilings
from regnet.engines.base import Layout, Precision
from regnet.errors import ConfigError

SCHEMA: Final = 2
"""Version of the document; see docs/benchmark.md."""

AUTO: Final = "auto"
"""Stands for the engine that `regnet.optimize` finds for each network, of those that need no
compiler and so build in seconds."""

BEST: Final = "best"
"""The same, of all engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to measure."""

    model: str
    batch_size: int = 1
    precision: Precision = "fp32"
    engine: str = AUTO
    layout: Layout = "channels_last"
    input_size: int | None = None
    """Side of the images; None: what the network was made for."""
    train: bool = False
    """Forward and backward, eager, instead of inference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came out, or why nothing did."""

    case: Case
    input_size: int = 0
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
    build_seconds: float | None = None
    peak_bytes: int | None = None
    """Growth of memory from building to the last call, at its highest."""
    steady: bool | None = None
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable form."""
        return asdict(self)


def read(path: Path) -> dict[str, Any]:
    """A document that `regnet bench --out` wrote.

    Raises:
        ConfigError: it is not one, or of another schema.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        why = "it has no schema" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path}: not a document of regnet bench ({why})") from error
    if schema != SCHEMA:
        raise ConfigError(f"{path}: schema {schema}; this version reads {SCHEMA}; measure again")
    if not isinstance(document.get("rows"), list):
        raise ConfigError(f"{path}: not a document of regnet bench (it has no rows)")
    return document


def latencies(document: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of each network that ran, on the engine that was fastest for it."""
    found: dict[str, float] = {}
    for row in document["rows"]:
        name, ms = row["case"]["model"], row["latency_ms"]
        if ms:
            found[name] = min(ms, found.get(name, ms))
    return found
