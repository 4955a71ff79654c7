"""Measure networks: outputs checked first, then single calls until steady, all samples kept."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from regnet.bench.floors import Ceilings, floor, measure_ceilings
from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_json
from regnet.design.variants import VARIANTS
from regnet.engines.base import DTYPES, Precision, Target
from regnet.engines.optimize import INPUT_SETS, build_checked, find_engine
from regnet.errors import ConfigError
from regnet.machine import environment
from regnet.nn.efficientnet import EFFICIENTNETS, EfficientNet, efficientnet_complexity
from regnet.timing import measure
from regnet.zoo.create import create
from regnet.zoo.listing import list_models

SCHEMA: Final = 1
"""Version of the document; see docs/benchmark.md."""

PAIRINGS: Final = (
    ("efficientnet_b0", "regnety_004", 24.9, 25.9),
    ("efficientnet_b1", "regnety_006", 24.1, 24.5),
    ("efficientnet_b2", "regnety_008", 23.4, 23.7),
    ("efficientnet_b3", "regnety_016", 22.5, 22.0),
    ("efficientnet_b4", "regnety_040", 21.2, 20.6),
    ("efficientnet_b5", "regnety_080", 21.5, 20.1),
)
"""The paper's Table 4: networks of about the same flops, and their errors in percent under the
same training."""

PAPER_ERRORS: Final = {"resnet50": 23.2, "resnext50_32x4d": 21.9, "regnetx_080": 20.7} | {
    name: error for a, b, e, f in PAIRINGS for name, error in ((a, e), (b, f))
}
"""Top-1 errors in percent of the paper's Tables 3 and 4."""

DEFAULT_MODELS: Final = (
    *(name for pair in PAIRINGS for name in pair[:2]),
    "regnetx_080",
    "resnet50",
    "resnext50_32x4d",
)

QUICK_MODELS: Final = ("efficientnet_b0", "regnety_004", "regnetx_004")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What to measure."""

    model: str
    batch_size: int = 1
    precision: Precision = "fp32"
    engine: str = "eager"
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
    paper_error: float | None = None
    reason: str | None = None
    output_error: float | None = None
    """norm(output - eager fp32) / norm(eager fp32), the worst of the timed inputs."""
    top1_agreement: float | None = None
    """Part of the timed images with the same most probable class as in eager fp32."""
    build_seconds: float | None = None
    steady: bool | None = None
    latency_ms: float | None = None
    """Median of a call, that is, of a batch."""
    p90_ms: float | None = None
    minimum_ms: float | None = None
    images_per_second: float | None = None
    floor_epilogue_ms: float | None = None
    floor_fused_ms: float | None = None
    seconds: tuple[float, ...] = field(default=(), repr=False)
    """Every call that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One run of the benchmark."""

    rows: tuple[Row, ...]
    environment: dict[str, Any]
    ceilings: dict[str, Ceilings]
    """By precision, measured in the same run."""
    complete: bool = True
    """Whether all cases were reached."""
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable form."""
        return asdict(self)


def expand(patterns: Sequence[str]) -> list[str]:
    """Names of networks: variants by pattern, EfficientNets, checkpoints, or files of a config.

    Raises:
        ConfigError: a pattern fits nothing.
    """
    names: list[str] = []
    for pattern in patterns:
        if Path(pattern).suffix == ".json":
            names.append(pattern)
            continue
        found = [name for name in EFFICIENTNETS if fnmatchcase(name, pattern.lower())]
        found += list_models(pattern)
        if not found:
            found = list_models(pattern, pretrained=True)
        if not found:
            raise ConfigError(f"no network fits {pattern!r}; `regnet list` names them all")
        names += found
    return list(dict.fromkeys(names))


def run(
    cases: Sequence[Case],
    *,
    device: torch.device,
    seconds: float = 3.0,
    calls: int = 200,
    on_row: Callable[[Row], object] = lambda _row: None,
) -> Document:
    """Measure cases one after another; one that fails is a row with its reason.

    Args:
        cases: what to measure.
        device: where.
        seconds: for the calls of a case that count, and at most as long again to get steady.
        calls: how many count, or fewer where the time is over.
        on_row: told each row as it comes.

    Returns:
        The rows; after Ctrl-C those that there are, with `complete` false.
    """
    rows: list[Row] = []
    ceilings: dict[str, Ceilings] = {}
    complete = True
    try:
        for row in _rows(cases, device, ceilings, seconds, calls):
            rows.append(row)
            on_row(row)
    except KeyboardInterrupt:
        complete = False
    return Document(
        rows=tuple(rows), environment=environment(device), ceilings=ceilings, complete=complete
    )


def _rows(
    cases: Sequence[Case],
    device: torch.device,
    ceilings: dict[str, Ceilings],
    seconds: float,
    calls: int,
) -> Iterator[Row]:
    for case in cases:
        if case.precision not in ceilings:
            ceilings[case.precision] = measure_ceilings(device, case.precision)
        try:
            yield _measured(case, device, ceilings[case.precision], seconds, calls)
        except Exception as error:  # noqa: BLE001 - out of memory, or whatever an engine raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            yield Row(case=case, reason=reason)


def _measured(
    case: Case, device: torch.device, ceilings: Ceilings, seconds: float, calls: int
) -> Row:
    torch.manual_seed(0)
    model, config, default_size = load(case.model)
    size = case.input_size or default_size
    cost = (
        complexity(config, size)
        if config
        else efficientnet_complexity(EFFICIENTNETS[case.model], size)
    )
    facts: dict[str, Any] = {
        "case": case,
        "input_size": size,
        "flops": cost.flops,
        "params": cost.params,
        "activations": cost.activations,
        "paper_error": PAPER_ERRORS.get(case.model),
    }
    if config:
        least = floor(
            config, size, case.batch_size, ceilings,
            element_bytes=DTYPES[case.precision].itemsize,
        )  # fmt: skip
        facts |= {
            "floor_epilogue_ms": 1e3 * least.epilogue,
            "floor_fused_ms": 1e3 * least.fused,
        }
    model = model.to(device)
    rng = torch.Generator().manual_seed(0)
    shape = (case.batch_size, 3, size, size)
    inputs = [torch.randn(shape, generator=rng).to(device) for _ in range(INPUT_SETS)]
    if case.train:
        call: Callable[[Tensor], Any] = _training_step(model, case)
    else:
        with torch.inference_mode():
            reference = [model.eval()(x).float().clone() for x in inputs]
        target = Target(device=device, precision=case.precision)
        built = build_checked(find_engine(case.engine), model, inputs, reference, target)
        facts |= {"build_seconds": built.seconds, "output_error": built.error}
        if built.runner is None:
            return Row(**facts, reason=built.reason)
        call = built.runner
        answers = zip(inputs, reference, strict=True)
        agree = [(call(x).argmax(1) == y.argmax(1)).float().mean().item() for x, y in answers]
        facts["top1_agreement"] = sum(agree) / len(agree)
        if built.reason:
            return Row(**facts, reason=f"{built.reason}; not timed")
    samples = measure(call, inputs, calls=calls, seconds=seconds, warmup_seconds=seconds)
    return Row(
        **facts,
        steady=samples.steady,
        latency_ms=1e3 * samples.median,
        p90_ms=1e3 * samples.percentile(90),
        minimum_ms=1e3 * samples.minimum,
        images_per_second=case.batch_size / samples.median,
        seconds=samples.seconds,
    )


def load(name: str) -> tuple[nn.Module, AnyNetConfig | RegNetConfig | None, int]:
    """A network by name or file, its config if it is an AnyNet, and the size of its images."""
    if name in EFFICIENTNETS:
        size = EFFICIENTNETS[name]
        return EfficientNet(size), None, size.input_size
    if Path(name).suffix == ".json":
        config = config_from_json(Path(name).read_text(encoding="utf-8"))
        return create(config), config, 224
    weights = "." in name
    model = create(name, pretrained=weights)
    architecture = model.pretrained_cfg["architecture"]
    return model, model.config, VARIANTS[architecture].input_size


def _training_step(model: nn.Module, case: Case) -> Callable[[Tensor], Any]:
    """Forward, loss, backward; weights stay as they are."""
    model.train()
    labels: dict[int, Tensor] = {}

    def step(x: Tensor) -> None:
        y = labels.setdefault(len(x), torch.arange(len(x), device=x.device) % 10)
        half = case.precision != "fp32"
        with torch.autocast(x.device.type, dtype=DTYPES[case.precision], enabled=half):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step


def speedups(document: Document) -> dict[tuple[str, str], float]:
    """Time of the EfficientNet over that of the paper's RegNet, for pairs that were measured."""
    times = {
        (row.case.model, row.case.batch_size): row.latency_ms
        for row in document.rows
        if row.latency_ms
    }
    found = {}
    for a, b, *_ in PAIRINGS:
        for (name, batch), latency in times.items():
            other = times.get((b, batch))
            if name == a and other:
                found[f"{a} / {b}", str(batch)] = (latency or math.nan) / other
    return found
