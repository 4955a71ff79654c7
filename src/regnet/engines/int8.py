"""Weights and feature maps as int8, with ranges seen on real images: OpenVINO's way and torch's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import util
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from regnet.data.images import ImageSource
from regnet.engines.base import Runner, Target
from regnet.engines.openvino import OpenVINO, convert, run_openvino
from regnet.engines.outputs import listed
from regnet.engines.program import capture
from regnet.errors import ConfigError, MissingExtraError
from regnet.quiet import quiet
from regnet.zoo.create import preprocess

CALIBRATION_IMAGES: Final = 300
JUDGING_IMAGES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Batches that tell the ranges of feature maps, and others that judge what came out."""

    calibration: Sequence[Tensor]
    judges: Sequence[Tensor]
    min_agreement: float
    """Part of the judges that must get the same class as from float32."""

    @property
    def judged(self) -> int:
        """How many judge."""
        return sum(map(len, self.judges))

    def agreement(self, runner: Runner, model: nn.Module, device: torch.device) -> float | None:
        """Part of the judges that get the same class; None where there is none.

        Args:
            runner: what is judged.
            model: in float32 and evaluation mode.
            device: where the runner takes images.
        """
        if not self.judges:
            return None
        home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        same = 0
        with torch.inference_mode():
            for x in self.judges:
                [wanted], [found] = listed(model(x.to(home))), listed(runner(x.to(device)))
                same += int((found.argmax(1).cpu() == wanted.argmax(1).cpu()).sum())
        return same / self.judged

    def problem(self, agreement: float | None) -> str | None:
        """What to say of an agreement that is not enough; None of one that is."""
        if agreement is not None and agreement >= self.min_agreement:
            return None
        told = "no image could be judged" if agreement is None else f"{agreement:.1%} of images"
        return f"int8 gives {told} the class of float32, less than {self.min_agreement:.1%}"


def read_images(
    model: nn.Module,
    images: Sequence[ImageSource] | Tensor,
    shape: tuple[int, ...],
    *,
    min_agreement: float,
    fixed: bool = True,
) -> Images:
    """Images to calibrate with, and others to judge by.

    Args:
        model: whose preprocessing they get.
        images: paths, Pillow images, or a batch that is preprocessed. Up to 300, at most three of
            four, tell the ranges; up to 1,000 of the others judge.
        shape: of a batch (N, C, H, W).
        min_agreement: part of the judges that must get the same class as from float32.
        fixed: whether a batch must have that height and width.

    Raises:
        ConfigError: there are too few, or they do not fit.
        ImageError: one cannot be read.
    """
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
    if fixed and tuple(tensors.shape[1:]) != shape[1:]:
        raise ConfigError(
            f"images of shape {tuple(tensors.shape[1:])} do not fit a file for {shape[1:]}"
        )
    pieces = tensors[:first].split(shape[0]), tensors[first:].split(shape[0])
    calibration, judges = ([x for x in part if len(x) == shape[0]] for part in pieces)
    return Images(calibration=calibration, judges=judges, min_agreement=min_agreement)


def check_installed(device: torch.device) -> None:
    """Refuse int8 where it cannot run.

    Raises:
        ConfigError: the device is not a CPU.
        MissingExtraError: OpenVINO or NNCF is not installed.
    """
    if device.type != "cpu":
        raise ConfigError(f"int8 is for CPUs; the model is on {device}")
    if obstacle := OpenVINO().obstacle(Target(device=device)):
        raise MissingExtraError(f"int8 runs on openvino: {obstacle}")
    if util.find_spec("nncf") is None:
        raise MissingExtraError(_MISSING.format("nncf"))


def build_int8(
    model: nn.Module, example: Tensor, target: Target, batches: Sequence[Tensor]
) -> Runner:
    """A runner in int8, by OpenVINO."""
    plain = Target(device=target.device, layout="contiguous")
    converted = convert(capture(model, example, plain), example)
    return run_openvino(quantize_openvino(converted, batches), target)


def quantize_openvino(model: Any, batches: Sequence[Tensor]) -> Any:
    """An int8 copy of an `openvino.Model`, by NNCF: mixed preset, fast bias correction.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError(_MISSING.format("nncf")) from error
    with quiet("nncf"):
        return nncf.quantize(
            model,
            nncf.Dataset([batch.numpy() for batch in batches]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
        )


def quantize_program(
    program: ExportedProgram, batches: Sequence[Tensor], shapes: tuple[dict[int, Any]] | None
) -> ExportedProgram:
    """An int8 program for x86 CPUs, by torchao's PT2E and its quantizer for Inductor.

    Raises:
        MissingExtraError: torchao is not installed.
    """
    try:
        with quiet("torchao"):
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError as error:
        raise MissingExtraError(_MISSING.format("torchao")) from error
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad(), quiet("torchao"):
        prepared = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            prepared(batch)
        examples: Any = program.example_inputs
        return torch.export.export(convert_pt2e(prepared), examples[0], dynamic_shapes=shapes)


_MISSING = "int8 needs {0}, which is not installed; pip install 'regnet[int8]'"
