"""Export networks for other runtimes; each file is compared with eager before it is accepted."""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from regnet import __version__
from regnet.data.images import ImageSource
from regnet.data.preprocess import Preprocess
from regnet.engines.base import AnyPrecision, Runner, Target, tolerance
from regnet.engines.check import INPUT_SETS, answers, worst_error, wrong
from regnet.engines.files import KEY, open_file
from regnet.engines.formats import FORMATS, Format, Work
from regnet.engines.int8 import (
    Images,
    floats,
    read_images,
)
from regnet.engines.optimize import default_shape, device_of
from regnet.engines.outputs import Form, form_of
from regnet.engines.program import (
    AXES,
    shared_programs,
    smallest_side,
)
from regnet.engines.served import Input, Served, pixels_of
from regnet.errors import (
    ConfigError,
    EngineError,
    MissingExtraError,
    RegNetError,
    check_number,
    in_one_line,
    unknown,
)
from regnet.nn.features import Described
from regnet.nn.layers import HaloAttention
from regnet.nn.model import evaluation_view
from regnet.zoo.create import preprocess

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written, and how it compares with the model."""

    path: Path
    format: str
    precision: AnyPrecision
    dynamic: tuple[str, ...]
    """Axes whose size is free: "batch", "height", "width"."""
    outputs: tuple[str, ...]
    """Names of the outputs, in their order."""
    input: Input
    """"float32": normalized images, NCHW; "uint8": pixels, NHWC, and probabilities come out."""
    shape: tuple[int, ...]
    """Of the images (N, C, H, W) that it was made with; axes that are not free have these sizes."""
    smallest_side: int | None
    """Least height and width, in pixels, where they are free."""
    error: float
    """norm(output - eager) / norm(eager) on random images, the worst."""
    agreement: float | None = None
    """Part of the images kept from calibration that got the same class as from eager fp32."""
    judged: int = 0
    """How many such images there were."""
    floats: tuple[str, ...] = ()
    """Layers of an int8 file that compute in float."""
    top1: float | None = None
    """What the file gets right of the images that bound it, in percent."""
    top1_before: float | None = None
    """What the network does."""
    size_bytes: int
    seconds: float

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        sides = f" from {self.smallest_side} pixels" if self.smallest_side else ""
        free = f"{shape}, any {' and '.join(self.dynamic)}{sides}" if self.dynamic else shape
        if len(self.dynamic) == len(AXES):
            free = f"any batch and size{sides}"
        text = (
            f"{self.path}: {self.format} {self.precision}, "
            f"{'pixels to probabilities, ' if self.input == 'uint8' else ''}"
            f"{free}, {self.size_bytes / 1e6:.1f} MB, "
            f"differs from eager by {self.error:.1e}"
        )
        if self.agreement is None:
            return text
        text += f", the same class for {self.agreement:.1%} of {self.judged} images"
        if self.top1 is not None:
            text += f", top-1 {self.top1:.2f} % (before: {self.top1_before:.2f} %)"
        if self.floats:
            gates = ["squeeze-excitation"] if any(".se." in name for name in self.floats) else []
            others = [name for name in self.floats if ".se." not in name]
            text += f"; in float: {', '.join(gates + others)}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """How a file compares with the network."""

    error: float
    agreement: float | None
    top1: float | None
    doubt: str | None
    """Why it may not be kept; None: it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """Compares files with the network that they were made from."""

    model: nn.Module
    look: Preprocess | None
    shape: tuple[int, ...]
    images: Images | None
    top1: Callable[[Any], float] | None
    before: float | None
    max_drop: float

    def __call__(self, form: Format, file: Path, work: Work) -> _Found:
        runner, look = form.load(file, work.target), self.look
        error = _error(runner, work, self.shape, look)
        if not self.images:
            doubt = (
                f"outputs differ from eager's by {error:.1e}, more than "
                f"{tolerance(work.target):.0e}"
            )
            wrongly = wrong(error, work.target)
            return _Found(error=error, agreement=None, top1=None, doubt=doubt if wrongly else None)
        taking = (lambda x: runner(pixels_of(x, look))) if look else runner
        agreement = self.images.agreement(taking, self.model, work.target.device)
        problem = self.images.problem(agreement if math.isfinite(error) else 0.0)
        top1 = None
        if self.top1 and self.before is not None and not problem:
            top1 = self.top1(open_file(file, trust=True))
            if not top1 >= self.before - self.max_drop:
                problem = (
                    f"int8 is right for {top1:.2f} % of images, {self.before - top1:.2f} points "
                    f"less than before; max_drop is {self.max_drop:g}"
                )
        return _Found(error=error, agreement=agreement, top1=top1, doubt=problem)


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str | None = None,
    precision: AnyPrecision = "fp32",
    example: Tensor | None = None,
    dynamic: bool | str | Collection[str] = True,
    input: Input = "float32",
    images: Sequence[ImageSource] | Tensor | None = None,
    min_agreement: float = 0.9,
    top1: Callable[[Any], float] | None = None,
    max_drop: float = 1.0,
) -> Exported:
    """Write a network for another runtime.

    The file takes normalized images (N, C, H, W), float32, and gives what the network gives; or
    pixels, with `input="uint8"`. Norms are folded. The file is loaded again and its outputs are
    compared with the model's; only one that agrees takes the place of `path`. It carries the
    config, the preprocessing and the class names as JSON under the key `regnet`.

    Args:
        model: in any mode; it is not changed. Any module will do that takes images and gives a
            tensor, or a list, a tuple or a dictionary of tensors: the file has outputs of their
            names (`logits`; `s1`, ... of feature maps; keys; else `output_0`, ...).
        path: the file; for OpenVINO the `.xml`, with the weights in a `.bin` beside it.
        format: a name in `FORMATS`; None: by the ending of the path.
        precision: inside the file. OpenVINO chooses bf16 when it runs; "fp16" there stores halves
            and computes as the device likes.
        example: images (N, C, H, W) of the shape to make it with; None: one image of the size that
            the model was made for. Its values do not matter.
        dynamic: axes whose size stays free, of "batch", "height" and "width"; True for all, False
            for none. A free batch of a fixed size is what TensorRT likes best.
        input: "uint8": the file takes the pixels (N, H, W, C) of images that are cropped, and gives
            `probabilities`, as ONNX and OpenVINO files may.
        images: for int8: paths, Pillow images, or a batch that is preprocessed. Up to 300, at most
            three of four, tell the ranges; up to 1,000 of the others tell the agreement.
        min_agreement: part of those that must get the same class as from float32. While int8 does
            not reach it, layers are left in float: those of squeeze-excitation, then those that
            change the outputs most.
        top1: for int8: the top-1 accuracy of a network in percent, on images of your own, such as
            `lambda network: regnet.evaluate(network, "val/").top1`. It bounds int8 too.
        max_drop: how much of it int8 may lose, in points.

    Raises:
        ConfigError: a format, precision or option cannot be used.
        EngineError: it cannot be exported, or its outputs differ; nothing is written.
        ImageError: an image cannot be read.
        MissingExtraError: a package is needed and not installed.
        OSError: the file cannot be written.
    """
    start, path = time.monotonic(), Path(path)
    check_number("min_agreement", min_agreement, least=0)
    check_number("max_drop", max_drop, least=0)
    form = _format(path, format, precision)
    if (precision == "int8") != (images is not None):
        raise ConfigError("precision 'int8' and images to calibrate with go together")
    if top1 is not None and not (precision == "int8" and isinstance(model, Described)):
        raise ConfigError("top1 is for int8 files of this library's networks")
    free = _free(dynamic)
    if {"height", "width"} & {*free} and any(
        isinstance(module, HaloAttention) for module in model.modules()
    ):
        raise ConfigError(
            "halo attention ties an exported network to one size: dynamic=False or 'batch'"
        )
    if example is None:
        example = torch.zeros(default_shape(model, "latency"))
    device = torch.device("cpu") if form.portable else device_of(model)
    if precision == "int8" and device.type != "cpu":
        raise ConfigError(f"int8 files of {form.name} are for CPUs; move the model there")
    if form.runtime and (obstacle := form.runtime.obstacle(Target(device=device))):
        raise MissingExtraError(f"{form.name}: {obstacle}")
    shape = tuple(example.shape)
    said = {
        "runtime": form.name,
        "precision": precision,
        "input": input,
        "version": __version__,
    }
    facts = _facts(model) | said
    if "input_size" in facts and not {"height", "width"} & {*free}:
        facts["input_size"] = shape[1:]  # others it does not take
    metadata = {KEY: json.dumps(facts, default=str)}
    view = evaluation_view(model)
    outputs = form_of(view, example.to(device_of(view)))
    look = _pixels_look(model, input, form, outputs)
    seen = None
    if images is not None:
        if len(outputs.names) > 1:
            raise ConfigError("int8 is judged by classes; this network has several outputs")
        fixed = bool({"height", "width"} - {*free})
        seen = read_images(view, images, shape, min_agreement=min_agreement, fixed=fixed)
    view = outputs.flat
    calibration = seen.calibration if seen else ()
    if look:
        example = pixels_of(example, look)
        calibration = [pixels_of(batch, look) for batch in calibration]
    work = Work(
        model=Served(view, look).eval().to(device_of(view)) if look else view,
        example=example.to(device),
        target=Target(device=device, precision="fp32" if precision == "int8" else precision),
        int8=precision == "int8",
        free=free,
        outputs=("probabilities",) if look else outputs.names,
        calibration=calibration,
        metadata=metadata,
    )
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    judge = _Judge(
        model=view, look=look, shape=shape, images=seen, top1=top1,
        before=top1(model) if top1 else None, max_drop=max_drop,
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
        shared_programs(),
    ):
        for number, names in enumerate(floats(work.model, calibration) if seen else [()]):
            work = replace(work, floats=names)
            # A folder each: a runtime may still read the file of the last one.
            draft = Path(folder, str(number), path.name)
            draft.parent.mkdir()
            try:
                form.write(work, draft)
                found = judge(form, draft, work)
            except (RegNetError, OSError):
                raise
            except Exception as problem:
                reason = in_one_line(problem, most=300)
                raise EngineError(f"{form.name} cannot take this network: {reason}") from problem
            if found.doubt is None:
                break
            _log.info("%s with %d layers in float", found.doubt, len(names))
        else:
            advice = "; more or better images may help, or a lower bound" if seen else ""
            raise EngineError(f"{path}: {found.doubt}; nothing was written{advice}")
        files = sorted(draft.parent.iterdir(), key=lambda file: file.name == path.name)
        size = sum(file.stat().st_size for file in files)
        for file in files:  # the one that is asked for last
            file.replace(path.parent / file.name)
    return Exported(
        path=path,
        format=form.name,
        precision=precision,
        dynamic=free,
        outputs=work.outputs,
        input=input,
        shape=shape,
        smallest_side=smallest_side(view) if {"height", "width"} & {*free} else None,
        error=found.error,
        agreement=found.agreement,
        judged=seen.judged if seen else 0,
        floats=tuple(name.removeprefix("model.") for name in work.floats),
        top1=found.top1,
        top1_before=judge.before,
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


def _pixels_look(model: nn.Module, input: Input, form: Format, outputs: Form) -> Preprocess | None:
    """How pixels become what the network takes, where the file shall take them."""
    if input not in get_args(Input):
        raise ConfigError(unknown("input", input, get_args(Input)))
    if input == "float32":
        return None
    if not form.pixels:
        able = " and ".join(row.name for row in FORMATS.values() if row.pixels)
        raise ConfigError(f"{form.name} files take float32; {able} files may take uint8")
    if outputs.names != ("logits",) or not getattr(model, "num_classes", 0):
        raise ConfigError("files that take uint8 give probabilities; this network has no classes")
    return preprocess(model)


def _free(dynamic: Any) -> tuple[str, ...]:
    """The axes that an option leaves free."""
    if isinstance(dynamic, bool):
        return tuple(AXES.values()) if dynamic else ()
    names = [dynamic] if isinstance(dynamic, str) else dynamic
    known = not isinstance(names, Mapping) and isinstance(names, Collection)
    if not known or not set(names) <= set(AXES.values()):
        raise ConfigError(
            f"dynamic is True, False, or names of axes of {', '.join(AXES.values())}; "
            f"got {dynamic!r}"
        )
    return tuple(name for name in AXES.values() if name in names)


def _facts(model: nn.Module) -> dict[str, Any]:
    """What a reader of the file needs to use it, as far as the network says."""
    if not isinstance(model, Described):
        return {}
    return {"config": model.config.to_dict(), **model.pretrained_cfg}


def _error(runner: Runner, work: Work, shape: tuple[int, ...], look: Preprocess | None) -> float:
    """The worst on random images, of another shape too if that is free."""
    rng = torch.Generator().manual_seed(0)
    shapes = [shape] * INPUT_SETS
    if work.free:
        n, c, h, w = shapes[0]
        least = smallest_side(work.model)
        tried = {
            "batch": (n, n + 2),
            "height": (max(h, least), least + h // 2),
            "width": (max(w, least), least + w // 3),
        }
        own = {"batch": n, "height": h, "width": w}
        sizes = {name: tried[name] if name in work.free else (own[name],) * 2 for name in own}
        shapes = [(n, c, h, w) for n, h, w in zip(*sizes.values(), strict=True)]
    inputs = [torch.randn(size, generator=rng) for size in shapes]
    inputs = [(pixels_of(x, look) if look else x).to(work.example.device) for x in inputs]
    home = device_of(work.model)
    reference = answers(work.model, [x.to(home) for x in inputs])
    return worst_error(runner, inputs, reference)
