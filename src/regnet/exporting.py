"""Networks as files for other runtimes, each compared with eager before it takes its place."""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from regnet.data.images import ImageSource
from regnet.engines.base import Engine, Precision, Runner, Target, inference, tolerance
from regnet.engines.check import INPUT_SETS, answers, worst_error, wrong
from regnet.engines.compiled import load_package, write_package
from regnet.engines.int8 import quantize_openvino, quantize_program
from regnet.engines.onnx_runtime import ONNXRuntime, load_onnx, write_onnx
from regnet.engines.openvino import OpenVINO, convert, run_openvino, write_openvino
from regnet.engines.optimize import default_shape
from regnet.engines.program import capture, dynamic_shapes, smallest_side
from regnet.errors import (
    ConfigError,
    EngineError,
    MissingExtraError,
    RegNetError,
    check_number,
    in_one_line,
    unknown,
)
from regnet.nn.layers import HaloAttention
from regnet.nn.model import AnyNet, evaluation_view
from regnet.zoo.create import preprocess

FilePrecision = Literal[Precision, "int8"]

CALIBRATION_IMAGES: Final = 300
JUDGING_IMAGES: Final = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written, and how it compares with the model."""

    path: Path
    format: str
    precision: FilePrecision
    dynamic: bool
    """Whether batch size, height and width are free."""
    shape: tuple[int, ...]
    """Of the images that it was made with: the only one that it takes if it is not dynamic."""
    smallest_side: int | None
    """Least height and width, in pixels, if it is dynamic."""
    error: float
    """norm(output - eager) / norm(eager) on random images, the worst."""
    agreement: float | None = None
    """Part of the images kept from calibration that got the same class as from eager fp32."""
    judged: int = 0
    """How many such images there were."""
    size_bytes: int
    seconds: float

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        free = f"any batch and size from {self.smallest_side} pixels" if self.dynamic else shape
        text = (
            f"{self.path}: {self.format} {self.precision}, {free}, {self.size_bytes / 1e6:.1f} MB, "
            f"differs from eager by {self.error:.1e}"
        )
        if self.agreement is None:
            return text
        return f"{text}, the same class for {self.agreement:.1%} of {self.judged} images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What there is to write."""

    model: AnyNet
    example: Tensor
    target: Target
    int8: bool
    dynamic: bool
    calibration: Sequence[Tensor]
    metadata: Mapping[str, str]

    def program(self, *, portable: bool = True) -> ExportedProgram:
        """The network captured; a portable one leaves layouts to whoever runs it."""
        target = self.target
        if portable or self.int8:
            target = Target(device=target.device, precision=target.precision, layout="contiguous")
        program = capture(self.model, self.example, target, dynamic=self.dynamic)
        if not self.int8:
            return program
        shapes = dynamic_shapes(self.model, dynamic=self.dynamic)
        return quantize_program(program, self.calibration, shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file."""

    name: str
    suffix: str
    precisions: tuple[FilePrecision, ...]
    write: Callable[[Work, Path], None]
    load: Callable[[Path, Target], Runner]
    runtime: Engine | None = None
    """What reads the file, if it must be installed."""
    portable: bool = True
    """Whether it runs on any device; else on the kind that the model was on."""


def _write_torch(work: Work, path: Path) -> None:
    extra: dict[str, Any] = dict(work.metadata)
    torch.export.save(work.program(), path, extra_files=extra)


def _load_torch(path: Path, target: Target) -> Runner:
    return inference(torch.export.load(path).module())


def _write_openvino(work: Work, path: Path) -> None:
    plain = Target(device=work.target.device, layout="contiguous")
    program = capture(work.model, work.example, plain, dynamic=work.dynamic)
    model = convert(program, None if work.dynamic else work.example)
    if work.int8:
        model = quantize_openvino(model, work.calibration)
    write_openvino(model, path, work.metadata, halves=work.target.precision == "fp16")


FORMATS: Final[Mapping[str, Format]] = {
    row.name: row
    for row in (
        Format(
            name="torch",
            suffix=".pt2",
            precisions=("fp32", "bf16", "fp16", "int8"),
            write=_write_torch,
            load=_load_torch,
        ),
        Format(
            name="onnx",
            suffix=".onnx",
            precisions=("fp32", "fp16"),
            write=lambda work, path: write_onnx(work.program(), path, work.metadata),
            load=load_onnx,
            runtime=ONNXRuntime(),
        ),
        Format(
            name="openvino",
            suffix=".xml",
            precisions=("fp32", "fp16", "int8"),
            write=_write_openvino,
            load=run_openvino,
            runtime=OpenVINO(),
        ),
        Format(
            name="aot_inductor",
            suffix=".pt2",
            precisions=("fp32", "bf16", "fp16", "int8"),
            write=lambda work, path: write_package(
                work.program(portable=False), path, work.target, work.metadata
            ),
            load=load_package,
            portable=False,
        ),
    )
}
"""Kinds of files that `export` writes; `.pt2` alone means the first."""


def export(
    model: AnyNet,
    path: str | Path,
    *,
    format: str | None = None,
    precision: FilePrecision = "fp32",
    example: Tensor | None = None,
    dynamic: bool = True,
    images: Sequence[ImageSource] | Tensor | None = None,
    min_agreement: float = 0.9,
) -> Exported:
    """Write a network for another runtime. It takes and gives float32, NCHW, normalized images.

    Norms are folded. The file is loaded again and its outputs are compared with the model's; only
    one that agrees takes the place of `path`. It carries the config, the preprocessing and the
    class names as JSON under the key `regnet`.

    Args:
        model: in any mode; it is not changed.
        path: the file; for OpenVINO the `.xml`, with the weights in a `.bin` beside it.
        format: a name in `FORMATS`; None: by the ending of the path.
        precision: inside the file. OpenVINO chooses bf16 when it runs; "fp16" there stores halves
            and computes as the device likes.
        example: images (N, C, H, W) of the shape to make it with; None: one image of the size that
            the model was made for. Its values do not matter.
        dynamic: whether batch size, height and width stay free.
        images: for int8: paths, Pillow images, or a batch that is preprocessed. Up to 300, at most
            three of four, tell the ranges; up to 1,000 of the others tell the agreement.
        min_agreement: part of those that must get the same class as from float32.

    Raises:
        ConfigError: a format, precision or option cannot be used.
        EngineError: it cannot be exported, or its outputs differ; nothing is written.
        ImageError: an image cannot be read.
        MissingExtraError: a package is needed and not installed.
        OSError: the file cannot be written.
    """
    start, path = time.monotonic(), Path(path)
    check_number("min_agreement", min_agreement, least=0)
    form = _format(path, format, precision)
    if (precision == "int8") != (images is not None):
        raise ConfigError("precision 'int8' and images to calibrate with go together")
    if dynamic and any(isinstance(module, HaloAttention) for module in model.modules()):
        raise ConfigError("halo attention ties an exported network to one size: dynamic=False")
    if example is None:
        example = torch.zeros(default_shape(model, "latency"))
    device = torch.device("cpu") if form.portable else next(model.parameters()).device
    if precision == "int8" and device.type != "cpu":
        raise ConfigError(f"int8 files of {form.name} are for CPUs; move the model there")
    if form.runtime and (obstacle := form.runtime.obstacle(Target(device=device))):
        raise MissingExtraError(f"{form.name}: {obstacle}")
    shape = tuple(example.shape)
    model = evaluation_view(model)
    calibration, judges = _split(model, images, shape, dynamic=dynamic)
    work = Work(
        model=model,
        example=example.to(device),
        target=Target(device=device, precision="fp32" if precision == "int8" else precision),
        int8=precision == "int8",
        dynamic=dynamic,
        calibration=calibration,
        metadata={"regnet": json.dumps(_facts(model), default=str)},
    )
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        try:
            form.write(work, draft)
            runner = form.load(draft, work.target)
            error = _error(runner, work)
            agreement = _agreement(runner, model, judges, device)
        except (RegNetError, OSError):
            raise
        except Exception as problem:
            reason = in_one_line(problem, most=300)
            raise EngineError(f"{form.name} cannot take this network: {reason}") from problem
        if work.int8:
            _judge_int8(error, agreement, min_agreement, path)
        elif wrong(error, work.target):
            raise EngineError(
                f"{path}: outputs differ from eager's by {error:.1e}, more than "
                f"{tolerance(work.target):.0e}; nothing was written"
            )
        files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
        size = sum(file.stat().st_size for file in files)
        for file in files:  # the one that is asked for last
            file.replace(path.parent / file.name)
    return Exported(
        path=path,
        format=form.name,
        precision=precision,
        dynamic=dynamic,
        shape=shape,
        smallest_side=smallest_side(model) if dynamic else None,
        error=error,
        agreement=agreement,
        judged=sum(map(len, judges)),
        size_bytes=size,
        seconds=time.monotonic() - start,
    )


def _format(path: Path, name: str | None, precision: str) -> Format:
    if name is not None and name not in FORMATS:
        raise ConfigError(unknown("format", name, FORMATS))
    fitting = [form for form in FORMATS.values() if form.suffix == path.suffix.lower()]
    chosen = FORMATS[name] if name else next(iter(fitting), None)
    if chosen is None or chosen not in fitting:
        endings = ", ".join(f"{form.suffix} ({form.name})" for form in FORMATS.values())
        raise ConfigError(f"{path}: the file must end as its format asks: {endings}")
    if precision not in chosen.precisions:
        known = ", ".join(chosen.precisions)
        raise ConfigError(f"{chosen.name} files have {known}; got {precision!r}")
    return chosen


def _facts(model: AnyNet) -> dict[str, Any]:
    """What a reader of the file needs to use it."""
    return {"config": model.config.to_dict(), **model.pretrained_cfg}


def _split(
    model: AnyNet,
    images: Sequence[ImageSource] | Tensor | None,
    shape: tuple[int, ...],
    *,
    dynamic: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Batches to calibrate with, and others to judge by."""
    if images is None:
        return [], []
    count = len(images)
    if count < 2 * shape[0]:
        raise ConfigError(f"int8 needs {2 * shape[0]} images or more, better 400; got {count}")
    # Folders are sorted by class: a sample must not be.
    order = np.random.default_rng(0).permutation(count).tolist()
    first = max(1, min(CALIBRATION_IMAGES, 3 * count // 4) // shape[0]) * shape[0]
    chosen = order[: first + JUDGING_IMAGES]
    if isinstance(images, Tensor):
        tensors = images[chosen].float().cpu()
    else:
        transform = replace(preprocess(model), size=(shape[-2], shape[-1]))
        tensors = torch.stack([transform(images[index]) for index in chosen])
    if not dynamic and tuple(tensors.shape[1:]) != shape[1:]:
        raise ConfigError(
            f"images of shape {tuple(tensors.shape[1:])} do not fit a file for {shape[1:]}"
        )
    pieces = tensors[:first].split(shape[0]), tensors[first:].split(shape[0])
    calibration, judges = ([x for x in part if len(x) == shape[0]] for part in pieces)
    return calibration, judges


def _error(runner: Runner, work: Work) -> float:
    """The worst on random images, of another shape too if that is free."""
    rng = torch.Generator().manual_seed(0)
    shapes = [tuple(work.example.shape)] * INPUT_SETS
    if work.dynamic:
        n, c, h, w = shapes[0]
        least = smallest_side(work.model)
        shapes = [(n, c, max(h, least), max(w, least)), (n + 2, c, least + h // 2, least + w // 3)]
    inputs = [torch.randn(shape, generator=rng).to(work.example.device) for shape in shapes]
    home = next(work.model.parameters()).device
    reference = answers(work.model, [x.to(home) for x in inputs])
    return worst_error(runner, inputs, reference)


def _agreement(
    runner: Runner, model: AnyNet, judges: Sequence[Tensor], device: torch.device
) -> float | None:
    if not judges:
        return None
    home = next(model.parameters()).device
    same = 0
    with torch.inference_mode():
        for x in judges:
            wanted = model(x.to(home)).argmax(1).cpu()
            same += int((runner(x.to(device)).argmax(1).cpu() == wanted).sum())
    return same / sum(map(len, judges))


def _judge_int8(error: float, agreement: float | None, min_agreement: float, path: Path) -> None:
    if not math.isfinite(error) or agreement is None or agreement < min_agreement:
        told = "no image could be judged" if agreement is None else f"{agreement:.1%} of images"
        raise EngineError(
            f"{path}: int8 gives {told} the class of float32, less than {min_agreement:.1%}; "
            "nothing was written; more or better images may help, or a lower min_agreement"
        )
