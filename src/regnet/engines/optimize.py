"""Find the fastest engine for a network on this machine whose outputs are correct."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from regnet import digest
from regnet.data.images import ImageSource
from regnet.documents import build
from regnet.engines.base import (
    Engine,
    Layout,
    Precision,
    Runner,
    Target,
    inference,
)
from regnet.engines.batches import for_any_batch, mapped
from regnet.engines.check import check_float32
from regnet.engines.choices import key_of, recall, remember
from regnet.engines.compiled import AOTInductor, Compiled, CompiledCUDAGraph
from regnet.engines.cuda_graph import CUDAGraph, PaddedCUDAGraph
from regnet.engines.eager import Eager, Folded, Padded
from regnet.engines.files import FileNetwork
from regnet.engines.fused import Fused
from regnet.engines.int8 import check_installed, read_images
from regnet.engines.onnx_runtime import ONNXRuntime
from regnet.engines.openvino import OpenVINO
from regnet.engines.outputs import form_of
from regnet.engines.program import shared_programs
from regnet.engines.race import (
    LASTING,
    NOT_TRIED,
    Candidate,
    Key,
    OnStep,
    Race,
    Way,
    candidate,
    fastest,
    settings_of_a_race,
)
from regnet.engines.tensorrt import TensorRT
from regnet.errors import ConfigError, EngineError, check_number, unknown
from regnet.machine import what_decides_speed
from regnet.nn.features import Described
from regnet.nn.views import evaluation_view, unwrapped
from regnet.zoo.create import create

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
"""Every engine; the first one is the reference."""

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp16")

LAYOUTS: Final[tuple[Layout, ...]] = ("channels_last", "contiguous")

QUICK: Final[Mapping[str, tuple[str, ...]]] = {
    "cpu": ("folded", "onnx_runtime", "openvino"),
    "cuda": ("folded", "cuda_graph", "fused"),
}
"""Engines that build within seconds, by type of device; the first one belongs to PyTorch. Where a
network is chosen for a CPU, or a collection of images is predicted, "auto" takes the fastest of
these engines."""

STREAMS: Final = ("onnx_runtime", "openvino")
"""Engines that can compute several pieces of a batch at the same time (`Target.streams`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The candidates that `optimize` tried, and the one that it chose."""

    candidates: tuple[Candidate, ...]
    winner: Candidate
    shape: tuple[int, ...]
    """Shape (N, C, H, W) of the images that the winner was chosen for."""
    remembered: bool = False
    """Whether the times come from an earlier race on the same device with the same software."""
    note: str = (
        "batches of another size are padded to this one or cut into pieces of it; images of "
        "another height or width run eagerly"
    )

    @property
    def speedup(self) -> float | None:
        """Time of eager float32 divided by the winner's time; None if eager was not timed."""
        if self.winner.speedup:
            return self.winner.speedup[0]
        return 1.0 if self.winner.engine == "eager" else None

    def __str__(self) -> str:
        """Format a table of the candidates, fastest first, and the winner's verdict."""
        lines = [f"{'':28s}{'ms':>10s}{'error':>10s}{'build s':>9s}{'MB':>7s}"]
        out: dict[str, list[str]] = {}
        for row in sorted(self.candidates, key=lambda c: c.latency_ms or math.inf):
            if row.latency_ms is None:
                out.setdefault(row.reason or "", []).append(str(row))
                continue
            memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
            same = "" if row.agreement is None else f"  same class for {row.agreement:.1%}"
            lines.append(
                f"{row!s:28s}{row.latency_ms:10.3f}{row.error:10.1e}{row.build_seconds:9.1f}"
                f"{memory:>7s}{same}"
            )
        lines += [f"{', '.join(rows)}: {reason}" for reason, rows in out.items()]
        return "\n".join([*lines, *filter(None, [self.winner.verdict])])


class Optimized(nn.Module):
    """A network on the engine that was fastest on this machine, for inference only.

    It takes and returns float32. `report` lists the engines that were tried. Two threads must not
    call it at the same time, because some engines reuse their buffers. A batch of another size than
    the network was optimized for is padded to that size, or cut into pieces of it. Images of
    another height or width run on the model itself.
    """

    def __init__(
        self, model: nn.Module, runner: Runner, report: Report, restored: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self._restored = restored
        self._eager = inference(evaluation_view(model, always=True))
        self.report = report
        self._runner = for_any_batch(runner, report.shape[0])

    def map(self, batches: Iterable[Tensor]) -> Iterator[Any]:
        """Return the outputs of each batch, in order; if there are streams, all of them stay busy.

        Args:
            batches: images (N, C, H, W) of the height and width that the network was optimized for.
        """
        return map(self._restored, mapped(self._runner, batches))

    def train(self, mode: bool = True) -> "Optimized":  # noqa: FBT001, FBT002 - torch's signature
        """Change nothing: the result is for inference only, and the model keeps its mode."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Optimized":  # noqa: FBT001, FBT002 - torch's signature
        for tensor in self.model.parameters():
            new = fn(tensor)
            if (new.device, new.dtype) != (tensor.device, tensor.dtype):
                raise ConfigError(
                    "an optimized network stays on its device and in its precision; convert the "
                    "model, and optimize it again"
                )
        return self

    def forward(self, x: Tensor) -> Any:
        if tuple(x.shape[1:]) != tuple(self.report.shape[1:]):
            return self._eager(x)
        return self._restored(self._runner(x))


def optimize(
    model: nn.Module | str,
    example: Tensor | None = None,
    *,
    goal: Literal["latency", "throughput"] = "latency",
    precision: Precision | Literal["auto"] = "auto",
    engines: Sequence[str] | Literal["auto"] = "auto",
    images: Sequence[ImageSource] | Tensor | None = None,
    min_agreement: float = 0.99,
    seconds: float = 1.5,
    budget_seconds: float | None = None,
    exhaustive: bool = False,
    refresh: bool = False,
    progress: bool | None = None,
    on_step: OnStep | None = None,
) -> Optimized:
    """Return the fastest installed engine for a model whose outputs agree with eager float32.

    Engines that build quickly come first. An engine that cannot win is not built: a precision that
    lost on two engines, or a compiler if the convolutions alone take longer than the fastest engine
    so far. The report lists each engine with the reason why it was left out. The times of a race
    are saved on disk (`regnet.engines.choices`) for the same network, shape, device, threads and
    versions, so that the next call only builds and checks the winner.

    Args:
        model: a model, or the name of one with weights, as `create` takes it. Its mode does not
            matter. It is not changed, and must not change while the result is in use. Any module
            that takes images and returns a tensor, or a list, a tuple or a dictionary of tensors
            whose first axis is the batch, can be optimized.
        example: images (N, C, H, W) of the size to optimize for. None: one image for latency, 16
            for throughput, of the size that the model was made for. The values do not matter.
        goal: "latency" minimizes the time of a call. "throughput" maximizes images per second over
            many calls, for which several images may be computed at the same time, each by some of
            the threads (streams of ONNX Runtime and OpenVINO; see `Optimized.map`).
        precision: "auto" also tries half precision if this device has instructions for it; "fp32"
            tries nothing else.
        engines: names of the engines to try; "auto": all.
        images: images for int8, which is then tried on CPUs by OpenVINO: paths, Pillow images, or a
            preprocessed batch. Up to 300 images, at most three quarters, set the ranges of the
            feature maps. Up to 1,000 of the others measure how often int8 gives the same class.
        min_agreement: share of those images that must get the same class from int8 as from float32.
        seconds: approximate time for timing two engines in alternation, not counting the build.
        budget_seconds: nothing more is built after this time, and no compiler that would exceed it;
            None: no limit.
        exhaustive: build every engine that runs here, and time each on its own as well.
        refresh: race again even if the result of an earlier race is saved.
        progress: show a progress bar; None: on a terminal, unless `on_step` is given.
        on_step: called with the current step, the number of finished candidates, and their total.

    Raises:
        ConfigError: an engine, a precision, a goal or a number is not allowed.
        EngineError: none of the requested engines works; the message says why.
        ImageError: an image cannot be read.
        MissingExtraError: images are given, and the packages for int8 are not installed.
    """
    check_number("seconds", seconds, least=0)
    check_number("min_agreement", min_agreement, least=0, most=1)
    if budget_seconds is not None:
        check_number("budget_seconds", budget_seconds, least=0)
    if isinstance(model, str):
        model = create(model, pretrained=True).eval()
    model = unwrapped(model)
    check_float32(model)
    if isinstance(model, FileNetwork):
        raise ConfigError(
            f"{model.path} is an exported file, which always runs in {model.runtime}; optimize the "
            "model that it was exported from"
        )
    chosen = _chosen(engines)
    for kind, value, known in (
        ("precision", precision, ("auto", *PRECISIONS)),
        ("goal", goal, ("latency", "throughput")),
    ):
        if value not in known:
            raise ConfigError(unknown(kind, value, known))
    device = device_of(model)
    shape = tuple(example.shape) if example is not None else default_shape(model, goal)
    layouts = LAYOUTS if device.type == "cuda" else LAYOUTS[:1]
    ways = [
        Way(engine=engine, target=Target(device=device, precision=half, layout=layout))
        for engine in chosen
        for half in PRECISIONS
        if precision in ("auto", half) or half == "fp32"
        for layout in layouts
    ]
    threads = min(torch.get_num_threads(), shape[0])
    if goal == "throughput" and device.type == "cpu" and shape[0] > 1:
        ways += [
            replace(way, target=replace(way.target, streams=threads))
            for way in ways
            if way.engine.name in STREAMS
        ]
    conditions: dict[str, Any] = {
        "goal": goal,
        "seconds": seconds,
        "budget": budget_seconds,
        "exhaustive": exhaustive,
    }
    bar = _bar(progress=progress, on_step=on_step)
    with settings_of_a_race(device), shared_programs(), bar as step:
        view = evaluation_view(model)
        form = form_of(view, torch.zeros(shape, device=device))
        if images is not None:
            if len(form.names) > 1:
                raise ConfigError(
                    "int8 is checked by comparing classes, but this network has several "
                    "outputs; leave images out"
                )
            ways.append(_int8(view, images, shape, min_agreement, precision, chosen, device))
            conditions["images"] = _marks(ways[-1], model)
        race = Race(
            form.flat,
            shape,
            device,
            seconds=seconds,
            budget_seconds=budget_seconds,
            exhaustive=exhaustive,
            on_step=step,
        )
        key = key_of(model, {"shape": shape, **conditions, **what_decides_speed(device)})
        before = [] if refresh else _races(key)
        candidates = next(filter(None, (_recalled(ways, race) for race in reversed(before))), None)
        winner = fastest(candidates) if candidates else None
        remembered, runner = winner is not None, None
        if winner:
            _, runner = race.build(next(way for way in ways if way.key == winner.key))
        if runner is None:
            candidates, runner = race.run(ways)
            remembered, winner = False, fastest(candidates)
            now = {row.key: row for row in candidates}
            before = [*(race for race in before if race.keys() != now.keys()), now]
            remember(key, [
                {"race": number, **asdict(row)}
                for number, race in enumerate(before) for row in race.values()
            ])  # fmt: skip
    assert candidates is not None
    if winner is None or runner is None:
        reasons = "; ".join(f"{row}: {row.reason}" for row in candidates)
        raise EngineError(f"none of these engines works here: {reasons}")
    report = Report(candidates=tuple(candidates), winner=winner, shape=shape, remembered=remembered)
    return Optimized(model, runner, report, form.restored)


@contextmanager
def _bar(*, progress: bool | None, on_step: OnStep | None) -> Iterator[OnStep]:
    """Yield a function that reports a step to `on_step` and to a bar on the terminal."""
    from huggingface_hub.utils import tqdm

    hidden = on_step is not None if progress is None else not progress
    # With disable=None, tqdm hides the bar if there is no terminal.
    with tqdm(unit="engine", leave=False, disable=True if hidden else None) as bar:

        def step(what: str, done: int, total: int) -> None:
            if on_step:
                on_step(what, done, total)
            bar.set_description(what, refresh=False)
            bar.total, bar.n = total, done
            bar.refresh()

        yield step


def _int8(
    model: nn.Module,
    images: Sequence[ImageSource] | Tensor,
    shape: tuple[int, ...],
    min_agreement: float,
    precision: str,
    engines: Sequence[Engine],
    device: torch.device,
) -> Way:
    """Return the candidate in int8, with its images.

    Raises:
        ConfigError: int8 contradicts another argument, or the images do not fit.
        MissingExtraError: a package for int8 is not installed.
    """
    if precision != "auto":
        raise ConfigError(
            f"images are for int8, which precision={precision!r} excludes; use precision='auto'"
        )
    engine = next((engine for engine in engines if engine.name == "openvino"), None)
    if engine is None:
        raise ConfigError("images are for int8, which runs on openvino; add it to engines")
    check_installed(device)
    seen = read_images(model, images, shape, min_agreement=min_agreement)
    return Way(engine=engine, target=Target(device=device), images=seen)


def _marks(way: Way, model: nn.Module) -> str:
    """Return a digest of what decides about int8: the images, `min_agreement` and the weights."""
    assert way.images
    tensors = [*way.images.calibration, *way.images.judges, *model.state_dict().values()]
    found = [digest.of_bytes(t.detach().cpu().contiguous().numpy().tobytes()) for t in tensors]
    return digest.of_json([way.images.min_agreement, *found])


def _chosen(engines: Sequence[str] | str) -> tuple[Engine, ...]:
    if engines == "auto":
        return ENGINES
    return tuple(map(find_engine, [engines] if isinstance(engines, str) else engines))


def _recalled(ways: Sequence[Way], race: Mapping[Key, Candidate]) -> list[Candidate] | None:
    """Return the results of all candidates in an earlier race; None if one has to be tried now.

    Each candidate must have a time, a lasting reason or an obstacle. Times of several races are not
    compared. What was not tried may have been left out because of the other candidates, so that
    this only holds for the same ones.
    """
    same = race.keys() == {way.key for way in ways}
    lasting = (*LASTING, NOT_TRIED) if same else LASTING
    rows = []
    for way in ways:
        row = race.get(way.key)
        # Obstacles are looked up again, because a package may have been installed since.
        if obstacle := way.engine.obstacle(way.target):
            row = candidate(way, reason=obstacle)
        elif row is None or not (row.latency_ms or (row.reason or "").startswith(lasting)):
            return None
        rows.append(row)
    return rows


def _races(key: str) -> list[dict[Key, Candidate]]:
    """Return the candidates of each earlier race that was saved under a key, the oldest first."""
    found: dict[int, dict[Key, Candidate]] = {}
    try:
        for values in recall(key) or ():
            row = build(Candidate, {name: v for name, v in values.items() if name != "race"})
            found.setdefault(values["race"], {})[row.key] = row
    except (ConfigError, KeyError, TypeError):  # saved by another version
        return []
    return list(found.values())


def find_engine(name: str) -> Engine:
    """Return the engine with this name.

    Raises:
        ConfigError: there is no such engine.
    """
    known = {engine.name: engine for engine in ENGINES}
    if name not in known:
        raise ConfigError(unknown("engine", name, known))
    return known[name]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters; the CPU if it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def default_shape(model: nn.Module, goal: str) -> tuple[int, ...]:
    """Return the shape of images for a model: one image for "latency", 16 for "throughput".

    Raises:
        ConfigError: the model is not a network of this library, so its image size is not known.
    """
    if not isinstance(model, Described):
        raise ConfigError(
            f"the image size of {type(model).__name__}, which is not a network of this library, is "
            "not known; pass example, images (N, C, H, W) of that size"
        )
    size = model.card.preprocess.size if model.card else (224, 224)
    return (1 if goal == "latency" else 16, model.config.in_chans, *size)
