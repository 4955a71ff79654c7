"""Quantize weights and feature maps to int8, with ranges from real images, by OpenVINO or torch."""

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
"""Most images that set the ranges of feature maps."""

JUDGING_IMAGES: Final = 1000
"""Most images that compare the classes of int8 with those of float32."""

SHARES: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the layers that `floats` leaves in float, one share after the other; the layers that
int8 harms most come first."""

RANKING_IMAGES: Final = 16
"""Images by which `floats` sorts the layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Batches of images that set the ranges of feature maps, and others that judge the result."""

    calibration: Sequence[Tensor]
    judges: Sequence[Tensor]
    min_agreement: float
    """Share of the judging images that must get the same class as from float32."""

    @property
    def judged(self) -> int:
        """Number of judging images."""
        return sum(map(len, self.judges))

    def agreement(self, runner: Runner, model: nn.Module, device: torch.device) -> float | None:
        """Return the share of judging images with the same class; None if there are no such images.

        Args:
            runner: the network in int8.
            model: the same network in float32 and evaluation mode.
            device: device on which the runner takes images.
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
        """Return what is wrong with an agreement that is not high enough; None if it is."""
        if agreement is not None and agreement >= self.min_agreement:
            return None
        told = "too few images to judge it" if agreement is None else f"it does for {agreement:.1%}"
        return (
            f"int8 must give at least {self.min_agreement:.1%} of images the class of float32; "
            f"{told}"
        )


def read_images(
    model: nn.Module,
    images: Sequence[ImageSource] | Tensor,
    shape: tuple[int, ...],
    *,
    min_agreement: float,
    fixed: bool = True,
) -> Images:
    """Read images, and divide them into those that calibrate int8 and those that judge it.

    Args:
        model: the network whose preprocessing the images get.
        images: paths, Pillow images, or a preprocessed batch. Up to 300 images, at most three
            quarters, set the ranges of the feature maps. Up to 1,000 of the others judge int8.
        shape: shape of a batch (N, C, H, W).
        min_agreement: share of the judging images that must get the same class as from float32.
        fixed: whether images must have that height and width.

    Raises:
        ConfigError: there are too few images, or they do not fit.
        ImageError: an image cannot be read.
    """
    count = len(images)
    if count < 2 * shape[0]:
        raise ConfigError(f"int8 needs {2 * shape[0]} images or more, better 400; got {count}")
    # In random order, because folders are sorted by class and a part of them lacks classes.
    order = np.random.default_rng(0).permutation(count).tolist()
    # Only full batches count: at least one calibrates, and at least one judges.
    batches = min(min(CALIBRATION_IMAGES, 3 * count // 4) // shape[0], count // shape[0] - 1)
    first = max(1, batches) * shape[0]
    chosen = order[: first + JUDGING_IMAGES]
    if isinstance(images, Tensor):
        tensors = images[chosen].float().cpu()
    else:
        transform = replace(preprocess(model), size=(shape[-2], shape[-1]))
        tensors = torch.stack([transform(images[index]) for index in chosen])
    if fixed and tuple(tensors.shape[1:]) != shape[1:]:
        raise ConfigError(
            f"images of shape {tuple(tensors.shape[1:])} do not fit a network for {shape[1:]}; "
            "resize them, or pass an example of their shape"
        )
    pieces = tensors[:first].split(shape[0]), tensors[first:].split(shape[0])
    calibration, judges = ([x for x in part if len(x) == shape[0]] for part in pieces)
    return Images(calibration=calibration, judges=judges, min_agreement=min_agreement)


def check_installed(device: torch.device) -> None:
    """Raise an error if int8 cannot run here.

    Raises:
        ConfigError: the device is not a CPU.
        MissingExtraError: OpenVINO or NNCF is not installed.
    """
    if device.type != "cpu":
        raise ConfigError(f"int8 is for CPUs; the model is on {device}; move it to the CPU")
    if obstacle := OpenVINO().obstacle(Target(device=device)):
        raise MissingExtraError(f"int8 runs on openvino: {obstacle}")
    if util.find_spec("nncf") is None:
        raise MissingExtraError(_MISSING.format("nncf"))


def floats(model: nn.Module, batches: Sequence[Tensor]) -> Iterator[tuple[str, ...]]:
    """Yield names of layers to leave in float, more each time; stop once int8 is accurate enough.

    The first time there are none. Then come the layers of squeeze-excitation, which see one pixel
    and therefore take hardly any time. Then come shares of the other layers (`SHARES`), beginning
    with those that change the outputs most when only they are in int8.

    Args:
        model: the network in evaluation mode; it is not changed.
        batches: inputs of the network.
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
    """Sort layers by how much the outputs change if only that layer is in int8, the most first."""
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
    """Round a feature map as int8 does, with one scale from its least to its largest value."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = float((high - low) / 255) or 1.0
    zero = round(-float(low) / scale)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


def _rounded_weight(weight: Tensor) -> Tensor:
    """Round weights as int8 does, with a scale for each output channel."""
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
    """Return a runner in int8, by OpenVINO; the layers named in `keep` stay in float."""
    plain = Target(device=target.device, layout="contiguous")
    converted = convert(capture(model, example, plain), example)
    weights = weights_of(model, keep)
    return run_openvino(quantize_openvino(converted, batches, weights), target)


def build_untrained_int8(model: nn.Module, example: Tensor, target: Target) -> Runner:
    """Return a runner in int8 that is good for timing only, because its ranges are the example's.

    Times depend neither on weights nor on ranges, so a network can be timed before it is trained.
    """
    return build_int8(model, example, target, [example])


def weights_of(model: nn.Module, names: Collection[str]) -> list[Tensor]:
    """Return the weights of layers as a captured program has them, with batch norms folded."""
    network: Any = folded(model) if names else model
    return [network.get_submodule(name).weight for name in names]


def quantize_openvino(model: Any, batches: Sequence[Tensor], keep: Collection[Tensor] = ()) -> Any:
    """Return an int8 copy of an `openvino.Model`, by NNCF: mixed preset, fast bias correction.

    Args:
        model: the model in float32.
        batches: images that set the ranges.
        keep: weights of the layers that stay in float.

    Raises:
        EngineError: a layer that should stay in float is not in the model.
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
    """Switch off NNCF's progress bars, which go to standard output, where commands write JSON."""
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
    """Return the names of the operations of an `openvino.Model` that have these weights.

    The conversion loses the names of layers and may transpose weights, so operations are found by
    the sorted values of their weights.
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
        raise EngineError(f"{len(wanted)} layers must stay in float, but {len(names)} were found")
    return names


def _mark(values: Any) -> str:
    return digest.of_bytes(np.sort(values, axis=None).tobytes())


def quantize_program(
    program: ExportedProgram,
    batches: Sequence[Tensor],
    shapes: tuple[dict[int, Any]] | None,
    keep: Collection[str] = (),
) -> ExportedProgram:
    """Return an int8 program for x86 CPUs, by torchao's PT2E and its quantizer for Inductor.

    Args:
        program: the program in float32.
        batches: images that set the ranges.
        shapes: which sizes are free, as torch.export takes them in `dynamic_shapes`.
        keep: names of the program's modules that stay in float.

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
