"""Export networks for other runtimes, and compare every file with the network it was made from."""

import json
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
from regnet.engines.check import INPUT_SETS, answers, check_float32, worst_error, wrong
from regnet.engines.files import KEY, FileNetwork, open_file
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
from regnet.nn.views import evaluation_view, unwrapped
from regnet.paths import expanded
from regnet.zoo.create import create, preprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that `export` wrote, and how it compares with the model."""

    path: Path
    format: str
    precision: AnyPrecision
    dynamic: tuple[str, ...]
    """Axes whose size may vary, of "batch", "height" and "width"."""
    outputs: tuple[str, ...]
    """Names of the outputs, in order."""
    input: Input
    """What the file takes: "float32" means normalized images (N, C, H, W); "uint8" means pixels
    (N, H, W, C), and that the output is probabilities."""
    shape: tuple[int, ...]
    """Shape (N, C, H, W) of the images that the file was made with. Axes that are not dynamic have
    these sizes."""
    smallest_side: int | None
    """Smallest height and width, in pixels, if these are dynamic; otherwise None."""
    error: float
    """The largest norm(output - eager) / norm(eager) on random images."""
    agreement: float | None = None
    """Share of the images held out of calibration that have the same class as in eager fp32."""
    judged: int = 0
    """Number of images held out of calibration."""
    floats: tuple[str, ...] = ()
    """Layers of an int8 file that compute in floating point."""
    top1: float | None = None
    """Top-1 accuracy of the int8 file in percent, if `export` was given a function `top1`."""
    top1_before: float | None = None
    """Top-1 accuracy of the network before export, in percent."""
    size_bytes: int
    """Size of all files together."""
    seconds: float
    """How long the export took."""

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
    """Why the file is rejected; None if it is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """The comparison of files with the network that they were made from."""

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
                    f"top-1 of int8 is {top1:.2f} %, {self.before - top1:.2f} points less than "
                    f"before; max_drop is {self.max_drop:g}"
                )
        return _Found(error=error, agreement=agreement, top1=top1, doubt=problem)


def export(
    model: nn.Module | str,
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
    on_attempt: Callable[[str], None] = lambda _why: None,
) -> Exported:
    """Write a network to a file for another runtime, after checking the outputs of the file.

    The file takes normalized float32 images (N, C, H, W), or pixels with `input="uint8"`, and
    returns what the network returns. Norms are folded into convolutions. The file is loaded again,
    and is moved to `path` only if its outputs agree with those of the model. It contains the
    config, the preprocessing and the class names as JSON under the key `regnet`.

    Args:
        model: a model, or the name of one with weights, as `create` takes it. Any module that takes
            images and returns a tensor, or a list, tuple or dictionary of tensors, can be exported,
            in any mode; it is not changed. Outputs are named after the results: `logits`, `s1`, ...
            for feature maps, the keys of a dictionary, or else `output_0`, ...
        path: the file to write; for OpenVINO the `.xml`, and the weights are written to a `.bin`
            beside it.
        format: a name in `FORMATS`; None: the format of the extension of the path.
        precision: the precision of the file. OpenVINO selects bf16 when it runs the file. "fp16" in
            an OpenVINO file stores weights in half precision, and the device decides how to
            compute.
        example: images (N, C, H, W) with the shape to export for; their values do not matter.
            None: one image of the size that the model was made for.
        dynamic: axes whose size may vary, of "batch", "height" and "width"; True: all of them;
            False: none. For TensorRT, "batch" alone, with a fixed image size, is best.
        input: "float32" for normalized images. With "uint8", an ONNX or OpenVINO file takes the
            pixels (N, H, W, C) of cropped images, and returns `probabilities`.
        images: images for int8: paths, Pillow images, or a preprocessed batch. Up to 300 of them,
            but at most three quarters, calibrate the ranges of activations. Up to 1,000 of the
            others measure the agreement with float32.
        min_agreement: share of the latter images that must have the same class as with float32. As
            long as int8 does not reach it, more layers are left in floating point: first those of
            squeeze-excitation, then those that change the outputs most.
        top1: for int8, a function that returns the top-1 accuracy of a network in percent on your
            own images, such as `lambda network: regnet.evaluate(network, "val/").top1`. Its loss is
            limited by `max_drop`.
        max_drop: the largest loss of top-1 accuracy by int8, in percentage points.
        on_attempt: called with the reason each time that int8 exceeds a limit, before the next
            attempt with more layers in floating point.

    Returns:
        The file, and how it compares with the model.

    Raises:
        ConfigError: a format, precision or option cannot be used.
        EngineError: the network cannot be exported, or the outputs of the file differ; nothing is
            written.
        ImageError: an image cannot be read.
        MissingExtraError: a required package is not installed.
        OSError: the file cannot be written.
    """
    start, path = time.monotonic(), expanded(path)
    if isinstance(model, str):
        model = create(model, pretrained=True)
    model = unwrapped(model)
    check_number("min_agreement", min_agreement, least=0, most=1)
    check_number("max_drop", max_drop, least=0)
    check_float32(model)
    if isinstance(model, FileNetwork):
        raise ConfigError(f"{model.path} is an exported file; export the model that it is of")
    form = _format(path, format, precision)
    if (precision == "int8") != (images is not None):
        raise ConfigError(
            "precision 'int8' needs images to calibrate with, and images need precision 'int8'; "
            "pass both or neither"
        )
    if top1 is not None and not (precision == "int8" and isinstance(model, Described)):
        raise ConfigError("top1 is only for int8 files of this library's networks; leave it out")
    free = _free(dynamic)
    if {"height", "width"} & {*free} and any(
        isinstance(module, HaloAttention) for module in model.modules()
    ):
        raise ConfigError(
            "halo attention fixes the image size of an exported network; use dynamic=False or "
            "dynamic='batch'"
        )
    given = example is not None
    if example is None:
        example = torch.zeros(default_shape(model, "latency"))
    device = torch.device("cpu") if form.portable else device_of(model)
    if precision == "int8" and device.type != "cpu":
        raise ConfigError(f"int8 files of {form.name} are for CPUs; move the model to the CPU")
    if form.runtime and (obstacle := form.runtime.obstacle(Target(device=device))):
        raise MissingExtraError(f"{form.name}: {obstacle}")
    shape = tuple(example.shape)
    said: dict[str, Any] = {
        "runtime": form.name,
        "precision": precision,
        "input": input,
        "version": __version__,
    }
    if form.name == "aot_inductor":
        # Its programs do not say what they take, and compute nonsense from anything else.
        said["shape"] = [None if AXES.get(n) in free else size for n, size in enumerate(shape)]
    facts = _facts(model) | said
    if "input_size" in facts and (given or not {"height", "width"} <= {*free}):
        facts["input_size"] = shape[1:]  # the size that was asked for, or the only one
    view = evaluation_view(model)
    outputs = form_of(view, example.to(device_of(view)))
    facts["outputs"] = outputs.names
    metadata = {KEY: json.dumps(facts, default=str)}
    look = _pixels_look(model, input, form, outputs)
    seen = None
    if images is not None:
        if len(outputs.names) > 1:
            raise ConfigError(
                "int8 is checked by comparing classes, but this network has several outputs; "
                "use another precision"
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
        raise ConfigError(f"{path}: there is no folder {path.parent}; create it first")
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
            # Each attempt has a folder of its own, because a runtime may still read the file of the
            # previous one.
            draft = Path(folder, str(number), path.name)
            draft.parent.mkdir()
            try:
                form.write(work, draft)
                found = judge(form, draft, work)
            except (RegNetError, OSError):
                raise
            except Exception as problem:
                reason = in_one_line(problem, most=300)
                raise EngineError(f"{form.name} cannot export this network: {reason}") from problem
            if found.doubt is None:
                break
            on_attempt(f"{found.doubt}, with {len(names)} layers in float")
        else:
            advice = "; try more or better images, or less strict limits" if seen else ""
            raise EngineError(f"{path}: {found.doubt}; nothing was written{advice}")
        files = sorted(draft.parent.iterdir(), key=lambda file: file.name == path.name)
        size = sum(file.stat().st_size for file in files)
        # The requested file is moved last, so that its weights are there when it appears.
        for file in files:
            place = path.parent / file.name
            file.replace(place.resolve() if place.is_symlink() else place)
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
        raise ConfigError(f"{path}: the extension must be that of the format: {endings}")
    if precision not in chosen.precisions:
        known = ", ".join(chosen.precisions)
        raise ConfigError(f"{chosen.name} files support {known}; got {precision!r}")
    return chosen


def _pixels_look(model: nn.Module, input: Input, form: Format, outputs: Form) -> Preprocess | None:
    """Return the preprocessing that the file must contain if it takes pixels, otherwise None."""
    if input not in get_args(Input):
        raise ConfigError(unknown("input", input, get_args(Input)))
    if input == "float32":
        return None
    if not form.pixels:
        able = " and ".join(row.name for row in FORMATS.values() if row.pixels)
        raise ConfigError(f"{form.name} files take float32; {able} files can take uint8")
    if len(outputs.names) > 1 or not getattr(model, "num_classes", 0):
        raise ConfigError(
            "files that take uint8 return probabilities of classes, but this network has no "
            "classes; use input 'float32'"
        )
    return preprocess(model)


def _free(dynamic: Any) -> tuple[str, ...]:
    """Return the names of the axes that the option `dynamic` selects."""
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
    """Return what the network says about itself that a user of the file needs."""
    if not isinstance(model, Described):
        return {}
    return {"config": model.config.to_dict(), **model.pretrained_cfg}


def _error(runner: Runner, work: Work, shape: tuple[int, ...], look: Preprocess | None) -> float:
    """Return the largest error on random images, which also vary in the dynamic axes."""
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
