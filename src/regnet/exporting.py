"""Export networks for other runtimes; each file is compared with eager before it is written."""

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
    """A file that was written, and how its outputs compare with the model's."""

    path: Path
    format: str
    precision: AnyPrecision
    dynamic: tuple[str, ...]
    """Names of the axes whose size is free: "batch", "height", "width"."""
    outputs: tuple[str, ...]
    """Names of the outputs, in their order."""
    input: Input
    """What the file takes: normalized images (N, C, H, W) if "float32"; if "uint8", it takes pixels
    (N, H, W, C) and returns probabilities."""
    shape: tuple[int, ...]
    """Shape of the images (N, C, H, W) that the file was made with. Axes that are not free have
    these sizes."""
    smallest_side: int | None
    """Least height and width, in pixels, if one of them is free."""
    error: float
    """norm(output - eager) / norm(eager), the largest on random images."""
    agreement: float | None = None
    """Of int8 only: share of the images not used for calibration that got the same class as from
    eager float32."""
    judged: int = 0
    """Number of those images."""
    floats: tuple[str, ...] = ()
    """Names of the layers of an int8 file that compute in float."""
    top1: float | None = None
    """Top-1 accuracy of an int8 file, in percent, by the argument `top1` of `export`."""
    top1_before: float | None = None
    """Top-1 accuracy of the network that was exported, by the same function."""
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
    """How a file compares with the network that was exported."""

    error: float
    agreement: float | None
    top1: float | None
    doubt: str | None
    """Why the file must not be written; None if it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """Compares files with the network that they were exported from."""

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
    """Write a network to a file for another runtime, and check the file.

    The file takes normalized images (N, C, H, W) in float32 and returns what the network returns.
    With `input="uint8"` it takes pixels instead. Batch norms are folded. The file is loaded again,
    and it replaces `path` only if its outputs agree with the model's. It contains the config, the
    preprocessing and the class names as JSON under the key `regnet`.

    Args:
        model: a model in any mode, which is not changed. Any module that takes images and returns a
            tensor, or a list, a tuple or a dictionary of tensors, can be exported. The outputs of
            the file are named: `logits`; `s1` and so on for feature maps; the keys of a dictionary;
            otherwise `output`, or `output_0` and so on.
        path: the file to write. For OpenVINO it is the `.xml` file, and the weights are written to
            a `.bin` file beside it.
        format: a name in `FORMATS`; None: the format that fits the suffix of the path.
        precision: precision inside the file. OpenVINO decides about bf16 when it runs a file; its
            "fp16" stores the weights in half precision and leaves the computation to the device.
        example: images (N, C, H, W) of the shape to make the file with; None: one image of the size
            that the model was made for. The values do not matter.
        dynamic: names of the axes whose size stays free, among "batch", "height" and "width"; True:
            all of them; False: none. "batch" suits TensorRT best.
        input: "uint8": the file takes the pixels (N, H, W, C) of cropped images and returns
            `probabilities`. ONNX and OpenVINO files can do this.
        images: images for int8: paths, Pillow images, or a preprocessed batch. Up to 300 images, at
            most three quarters, set the ranges of the feature maps. Up to 1,000 of the others
            measure how often int8 gives the same class.
        min_agreement: share of those images that must get the same class from int8 as from float32.
            As long as int8 misses this share, more layers are left in float: first those of
            squeeze-excitation, then those that change the outputs most.
        top1: a second limit for int8: a function that returns the top-1 accuracy of a network, in
            percent, on your own images, such as
            `lambda network: regnet.evaluate(network, "val/").top1`.
        max_drop: percentage points of that accuracy that int8 may lose.

    Returns:
        What was written, and how it compares with the model.

    Raises:
        ConfigError: a format, a precision or another argument cannot be used.
        EngineError: the network cannot be exported, or the outputs differ; nothing is written.
        ImageError: an image cannot be read.
        MissingExtraError: a package that the format needs is not installed.
        OSError: the file cannot be written.
    """
    start, path = time.monotonic(), Path(path)
    check_number("min_agreement", min_agreement, least=0)
    check_number("max_drop", max_drop, least=0)
    form = _format(path, format, precision)
    if (precision == "int8") != (images is not None):
        raise ConfigError(
            "precision 'int8' and images to calibrate with go together; pass both or neither"
        )
    if top1 is not None and not (precision == "int8" and isinstance(model, Described)):
        raise ConfigError("top1 is for int8 files of this library's networks; leave it out here")
    free = _free(dynamic)
    if {"height", "width"} & {*free} and any(
        isinstance(module, HaloAttention) for module in model.modules()
    ):
        raise ConfigError(
            "halo attention ties an exported network to one size; pass dynamic=False or 'batch'"
        )
    if example is None:
        example = torch.zeros(default_shape(model, "latency"))
    device = torch.device("cpu") if form.portable else device_of(model)
    if precision == "int8" and device.type != "cpu":
        raise ConfigError(f"int8 files of {form.name} are for CPUs; move the model to the CPU")
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
        facts["input_size"] = shape[1:]  # the file takes no other size
    metadata = {KEY: json.dumps(facts, default=str)}
    view = evaluation_view(model)
    outputs = form_of(view, example.to(device_of(view)))
    look = _pixels_look(model, input, form, outputs)
    seen = None
    if images is not None:
        if len(outputs.names) > 1:
            raise ConfigError(
                "int8 is judged by the classes that it gives, and this network has several "
                "outputs; choose another precision"
            )
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
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")
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
            # Each draft has its own folder, because a runtime may still read the last draft's file.
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
            advice = "; more or better images, or a lower limit, may help" if seen else ""
            raise EngineError(f"{path}: {found.doubt}; nothing was written{advice}")
        files = sorted(draft.parent.iterdir(), key=lambda file: file.name == path.name)
        size = sum(file.stat().st_size for file in files)
        for file in files:  # `path` itself last, when its weights are in place
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
        raise ConfigError(f"{path}: the file must have the suffix of its format: {endings}")
    if precision not in chosen.precisions:
        known = ", ".join(chosen.precisions)
        raise ConfigError(f"{chosen.name} files can have {known}; got {precision!r}")
    return chosen


def _pixels_look(model: nn.Module, input: Input, form: Format, outputs: Form) -> Preprocess | None:
    """Return the preprocessing of pixels inside the file; None if the file takes float32."""
    if input not in get_args(Input):
        raise ConfigError(unknown("input", input, get_args(Input)))
    if input == "float32":
        return None
    if not form.pixels:
        able = " and ".join(row.name for row in FORMATS.values() if row.pixels)
        raise ConfigError(f"{form.name} files take float32; {able} files may take uint8")
    if outputs.names != ("logits",) or not getattr(model, "num_classes", 0):
        raise ConfigError(
            "files that take uint8 return probabilities, and this network has no classes; use "
            "input='float32'"
        )
    return preprocess(model)


def _free(dynamic: Any) -> tuple[str, ...]:
    """Return the names of the axes that `dynamic` leaves free."""
    if isinstance(dynamic, bool):
        return tuple(AXES.values()) if dynamic else ()
    names = [dynamic] if isinstance(dynamic, str) else dynamic
    known = not isinstance(names, Mapping) and isinstance(names, Collection)
    if not known or not set(names) <= set(AXES.values()):
        raise ConfigError(
            f"dynamic must be True, False, or names of axes among {', '.join(AXES.values())}; "
            f"got {dynamic!r}"
        )
    return tuple(name for name in AXES.values() if name in names)


def _facts(model: nn.Module) -> dict[str, Any]:
    """Return the description of a network that its file contains; empty for a foreign module."""
    if not isinstance(model, Described):
        return {}
    return {"config": model.config.to_dict(), **model.pretrained_cfg}


def _error(runner: Runner, work: Work, shape: tuple[int, ...], look: Preprocess | None) -> float:
    """Return the largest error on random images, of a second shape as well if axes are free."""
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
