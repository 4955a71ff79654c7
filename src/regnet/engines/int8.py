"""Quantize weights and feature maps to int8 with ranges of real images, by OpenVINO or torch."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partialmethod
from importlib import import_module, util
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from regnet import digest
from regnet.data.images import ImageSource
from regnet.engines.base import Runner, Target
from regnet.engines.openvino import OpenVINO, convert, run_openvino
from regnet.engines.outputs import listed
from regnet.engines.program import capture
from regnet.engines.transforms import folded
from regnet.errors import ConfigError, EngineError, MissingExtraError
from regnet.nn.layers import SqueezeExcitation
from regnet.quiet import imported, quiet
from regnet.zoo.create import preprocess

CALIBRATION_IMAGES: Final = 300
JUDGING_IMAGES: Final = 1000

SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Parts of the layers, those that lose most, that are left in float one after the other."""

RANKING_IMAGES: Final = 16


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


def floats(model: nn.Module, batches: Sequence[Tensor]) -> Iterator[tuple[str, ...]]:
    """Names of layers to leave in float, more each time, until int8 is accurate enough.

    None; then those of squeeze-excitation, which see one pixel and so take hardly any time; then
    parts of the others, first those that change the outputs most when they alone are in int8.

    Args:
        model: in evaluation mode; it is not changed.
        batches: what it takes.
    """
    yield ()
    layers = [name for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in layers}
    gates = tuple(name for name in layers if isinstance(owners[name], SqueezeExcitation))
    if gates:
        yield gates
    others = [name for name in layers if name not in gates]
    ranked = _costliest(folded(model), others, batches)
    for share in SHARES:
        yield gates + tuple(ranked[: max(1, round(share * len(others)))])


_LAYERS = nn.Conv2d | nn.Linear


def _costliest(model: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> list[str]:
    """Layers by how much the outputs change where that one alone is in int8, the most first."""
    images = torch.cat([*batches[: -(-RANKING_IMAGES // len(batches[0]))]])[:RANKING_IMAGES]
    costs = {}
    with torch.inference_mode():
        [exact] = listed(model(images))
        for name in names:
            layer: Any = model.get_submodule(name)
            weight = layer.weight
            layer.weight = nn.Parameter(_rounded_weight(weight), requires_grad=False)
            hook = layer.register_forward_pre_hook(lambda _layer, args: (_rounded(args[0]),))
            [found] = listed(model(images))
            hook.remove()
            layer.weight = weight
            costs[name] = float((found - exact).norm())
    return sorted(names, key=lambda name: -costs[name])


def _rounded(x: Tensor) -> Tensor:
    """A feature map as int8 gives it: one scale, from the least to the largest value."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = float((high - low) / 255) or 1.0
    zero = round(-float(low) / scale)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


def _rounded_weight(weight: Tensor) -> Tensor:
    """Weights as int8 gives them: a scale for each output channel."""
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=1e-12)
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def build_int8(
    model: nn.Module,
    example: Tensor,
    target: Target,
    batches: Sequence[Tensor],
    keep: Collection[str] = (),
) -> Runner:
    """A runner in int8, by OpenVINO; the layers of some names stay in float."""
    plain = Target(device=target.device, layout="contiguous")
    converted = convert(capture(model, example, plain), example)
    weights = weights_of(model, keep)
    return run_openvino(quantize_openvino(converted, batches, weights), target)


def build_untrained_int8(model: nn.Module, example: Tensor, target: Target) -> Runner:
    """A runner in int8 that tells times only: its ranges come from the example.

    Times depend on neither weights nor ranges, so a network can be timed before it is trained.
    """
    return build_int8(model, example, target, [example])


def weights_of(model: nn.Module, names: Collection[str]) -> list[Tensor]:
    """Weights of layers as they are in a captured program, norms folded."""
    network: Any = folded(model) if names else model
    return [network.get_submodule(name).weight for name in names]


def quantize_openvino(model: Any, batches: Sequence[Tensor], keep: Collection[Tensor] = ()) -> Any:
    """An int8 copy of an `openvino.Model`, by NNCF: mixed preset, fast bias correction.

    Args:
        model: in float32.
        batches: of images that tell the ranges.
        keep: weights of the layers that stay in float.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    try:
        nncf = imported("nncf")
    except ImportError as error:
        raise MissingExtraError(_MISSING.format("nncf")) from error
    with quiet("nncf"), _no_bars():
        return nncf.quantize(
            model,
            nncf.Dataset([batch.numpy() for batch in batches]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=_operations(model, keep)),
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Switch off NNCF's progress bars: they go to standard output, where a command writes JSON."""
    track = import_module("nncf.common.logging.track_progress").track
    with _bars:
        usual = track.__init__
        track.__init__ = partialmethod(usual, disable=True)
        try:
            yield
        finally:
            track.__init__ = usual


_bars = Lock()


def _operations(model: Any, weights: Collection[Tensor]) -> list[str]:
    """Names of the operations of an `openvino.Model` with these weights.

    Names of layers are lost on the way there, and weights may be transposed: values tell.
    """
    wanted, names = {_mark(weight.numpy()) for weight in weights}, []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            node = operation.input_value(1).get_node()
            while node.get_type_name() != "Constant" and node.get_input_size():
                node = node.input_value(0).get_node()
            if node.get_type_name() == "Constant" and _mark(node.data) in wanted:
                names.append(operation.get_friendly_name())
    if len(names) < len(wanted):
        raise EngineError(f"{len(wanted)} layers shall stay in float, and {len(names)} were found")
    return names


def _mark(values: Any) -> str:
    return digest.of_bytes(np.sort(values, axis=None).tobytes())


def quantize_program(
    program: ExportedProgram,
    batches: Sequence[Tensor],
    shapes: tuple[dict[int, Any]] | None,
    keep: Collection[str] = (),
) -> ExportedProgram:
    """An int8 program for x86 CPUs, by torchao's PT2E and its quantizer for Inductor.

    Args:
        program: in float32.
        batches: of images that tell the ranges.
        shapes: which sizes are free, as torch.export takes them.
        keep: names of modules of the program that stay in float.

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
    for name in keep:
        quantizer.set_module_name_qconfig(name, None)
    with torch.no_grad(), quiet("torchao"):
        prepared = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            prepared(batch)
        examples: Any = program.example_inputs
        return torch.export.export(convert_pt2e(prepared), examples[0], dynamic_shapes=shapes)


_MISSING = "int8 needs {0}, which is not installed; pip install 'regnet[int8]'"
