"""Networks made of kernels that fuse norms, activations and shortcuts with the convolutions."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from regnet.errors import EngineError
from regnet.kernels.grouped import Grouped, grouped
from regnet.kernels.launch import Launch, planned
from regnet.kernels.pointwise import Pointwise, pointwise
from regnet.kernels.squeeze import Squeeze, gate
from regnet.kernels.stem import Stem, stem
from regnet.nn.blocks import Bottleneck, Stage
from regnet.nn.layers import ConvNormAct, SqueezeExcitation
from regnet.nn.model import AnyNet

UNSUITABLE: Final = "the kernels are for RegNetX and RegNetY: bottlenecks with batch norm and ReLU"


@dataclass(frozen=True, slots=True)
class Fused:
    """A network made of kernels, from images (N, 3, H, W) to float32 logits (N, num_classes).

    Without Triton, or on another device, it computes with the references of the kernels.
    """

    stem: Stem
    trunk: Callable[[Tensor], Tensor]
    """The network after the stem, from (N, H / 2, W / 2, width) to logits."""

    def __call__(self, images: Tensor) -> Tensor:
        return self.trunk(stem(images, self.stem))


def fused(model: nn.Module, dtype: torch.dtype) -> Fused:
    """Build a network of kernels from a model.

    Args:
        model: a RegNetX or RegNetY in evaluation mode, with norms folded into the convolutions.
        dtype: float16 or bfloat16.

    Raises:
        EngineError: there are no kernels for this model.
    """
    if not isinstance(model, AnyNet) or model.head.global_pool != "avg":
        raise EngineError(UNSUITABLE)
    if not all(isinstance(part, nn.Identity) for part in (model.stem_pool, model.final_conv)):
        raise EngineError(UNSUITABLE)
    convolution = _folded(model.stem, nn.ReLU)
    if convolution.kernel_size != (3, 3):
        raise EngineError(UNSUITABLE)
    first = Stem.of(convolution, dtype)
    stages = [stage for stage in model.children() if isinstance(stage, Stage)]
    blocks = [_Block.of(block, dtype) for stage in stages for block in stage]
    head = Pointwise.of(model.head.fc, dtype) if isinstance(model.head.fc, nn.Linear) else None

    def trunk(x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        pooled = x.mean((1, 2), dtype=torch.float32)
        if head is None:
            return pooled
        return pointwise(pooled.to(dtype)[:, None, None], head, dtype=torch.float32)[:, 0, 0]

    return Fused(first, trunk)


def plan(model: nn.Module, dtype: torch.dtype, shape: Sequence[int]) -> list[tuple[Launch, ...]]:
    """Return, for every kernel of a network, the launches that it chooses among; no GPU is needed.

    Args:
        model: a model as `fused` takes it.
        dtype: float16 or bfloat16.
        shape: shape of the images, (N, 3, H, W).

    Raises:
        EngineError: there are no kernels for this model.
    """
    network = fused(deepcopy(model).to("meta"), dtype)
    with planned() as choices, torch.no_grad():
        network(torch.empty(tuple(shape), device="meta"))
    return choices


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """1x1, grouped 3x3, gate, 1x1 and shortcut: three kernels, and up to two for the gate."""

    first: Pointwise
    middle: Grouped
    se: Squeeze | None
    last: Pointwise
    projection: Pointwise | None
    residual: bool

    @classmethod
    def of(cls, block: nn.Module, dtype: torch.dtype) -> "_Block":
        if not isinstance(block, Bottleneck) or not isinstance(block.act, nn.ReLU):
            raise EngineError(UNSUITABLE)
        middle = _folded(block.conv2, nn.ReLU)
        usual = middle.dilation == (1, 1) and middle.stride[0] in (1, 2)
        if not usual or middle.in_channels % 8:
            raise EngineError(UNSUITABLE)
        last = Pointwise.of(_folded(block.conv3), dtype)
        projection = None
        if block.downsample is not None and not isinstance(block.downsample, nn.Identity):
            projection = Pointwise.of(_folded(block.downsample), dtype)
            # The kernel adds one bias only, so the projection's is added here.
            last = Pointwise(last.weight, last.bias + projection.bias)
        se = None
        if isinstance(block.se, SqueezeExcitation):
            if not isinstance(block.se.act, nn.ReLU):
                raise EngineError(UNSUITABLE)
            se = Squeeze.of(block.se, dtype)
        return cls(
            first=Pointwise.of(_folded(block.conv1, nn.ReLU), dtype),
            middle=Grouped.of(middle, dtype),
            se=se,
            last=last,
            projection=projection,
            residual=isinstance(block.downsample, nn.Identity),
        )

    def __call__(self, x: Tensor) -> Tensor:
        out = pointwise(x, self.first, activation="relu")
        out, sums = grouped(out, self.middle, squeeze=self.se is not None)
        factors = None
        if self.se and sums is not None:
            factors = gate(sums, out.shape[1] * out.shape[2], self.se)
        return pointwise(
            out,
            self.last,
            activation="relu",
            gate=factors,
            residual=x if self.residual else None,
            projected=x if self.projection else None,
            projection=self.projection,
            stride=self.middle.stride,
        )


def _folded(layer: nn.Module, after: type[nn.Module] = nn.Identity) -> nn.Conv2d:
    """Return the convolution of a layer whose norm is folded and whose activation is `after`."""
    if not isinstance(layer, ConvNormAct) or not isinstance(layer.bn, nn.Identity):
        raise EngineError(UNSUITABLE)
    if not isinstance(layer.act, after):
        raise EngineError(UNSUITABLE)
    return layer.conv
