"""The layers that blocks consist of.

The names of child modules (`conv`, `bn`, `fc1`, `fc2`) are part of the checkpoint format on the Hub
and must not change.
"""

import contextlib
from typing import Final

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional

from regnet.design.blocks import (
    HALO_BLOCK,
    HALO_HEADS,
    HALO_SIZE,
    HALO_WINDOW,
    NORM_GROUP_WIDTH,
    halo_key_width,
)
from regnet.design.config import Activation, Norm
from regnet.errors import ConfigError


def conv2d(
    width_in: int,
    width: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """Build a convolution whose padding preserves height and width at stride 1."""
    padding = dilation * (kernel_size // 2)
    strided_depthwise = groups == width_in == width and stride > 1 == dilation
    kind = StridedDepthwiseConv2d if strided_depthwise else nn.Conv2d
    return kind(width_in, width, kernel_size, stride, padding, dilation, groups, bias=bias)


class StridedDepthwiseConv2d(nn.Conv2d):
    """A strided depthwise convolution that computes in float32 even under autocast on a CPU.

    On a CPU, torch has no fast bfloat16 gradient for this layer. At 384 channels, 8x8 pixels and
    batch 128, its backward pass took 164 ms on one core in bfloat16 and 5 ms in float32 (torch
    2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            found: Tensor = self._conv_forward(x, self.weight, self.bias)
        elif self.padding_mode != "zeros":  # TorchScript does not compile from here on
            found = self._conv_forward(x, self.weight, self.bias)
        else:
            found = _convolved(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        return found


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    slow = autocast and weight.dtype == torch.float32
    with torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext():
        return functional.conv2d(
            x.float() if slow else x, weight, bias, stride, padding, dilation, groups
        )


# torch.fx cannot trace a branch that depends on the input, so it records this call as it is.
torch.fx.wrap("_convolved")


def activation_layer(activation: Activation | None, *, inplace: bool = True) -> nn.Module:
    """Build an activation module; None gives the identity.

    `inplace` overwrites the input. It is safe only where nothing else reads that input.
    """
    if activation is None:
        return nn.Identity()
    return {"relu": nn.ReLU, "silu": nn.SiLU}[activation](inplace=inplace)


def norm_activation(
    norm: Norm, width: int, activation: Activation | None
) -> tuple[nn.Module, nn.Module]:
    """Build a norm and the activation after it; EvoNorm contains its activation."""
    if norm == "evonorm_s0a":
        return EvoNormS0a(width, activate=activation is not None), nn.Identity()
    if norm == "group":
        return nn.GroupNorm(width // NORM_GROUP_WIDTH, width), activation_layer(activation)
    return nn.BatchNorm2d(width), activation_layer(activation)


class ConvNormAct(nn.Module):
    """Convolution without bias, then norm and activation.

    The input is (N, width_in, H, W). The output is (N, width, H', W'), where H' and W' are H and W
    divided by the stride and rounded up.
    """

    conv_norm_pairs = (("conv", "bn"),)
    """Names of each convolution and of the norm that follows it, for folding."""

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel_size: int = 1,
        *,
        norm: Norm,
        activation: Activation | None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = conv2d(
            width_in, width, kernel_size, stride=stride, dilation=dilation, groups=groups
        )
        self.bn, self.act = norm_activation(norm, width, activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class ScaledStdConv2d(nn.Conv2d):
    """A convolution whose weights are standardized per output channel (Brock et al. 2021).

    The standardized weights have the standard deviation gain * GAMMA / sqrt(fan-in). After SiLU,
    such a convolution preserves the variance without a norm. It matches timm's `ScaledStdConv2d`.
    """

    GAMMA: Final[float] = 1.7881293296813965
    """Reciprocal of the standard deviation of SiLU(z) for a standard normal z."""
    EPS: Final[float] = 1e-5

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        gain: float = 1.0,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(width_in, width, kernel_size, stride, padding, dilation, groups)
        self.first_gain = gain
        self.gain = nn.Parameter(torch.empty(width, 1, 1, 1))
        self.reset_gain()

    def reset_gain(self) -> None:
        """Set the gain to its initial value."""
        nn.init.constant_(self.gain, self.first_gain)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = self.gain * (self.GAMMA / self.weight[0].numel() ** 0.5)
        weight = (self.weight - mean) * (variance + self.EPS).rsqrt() * scale
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class HaloAttention(nn.Module):
    """Self-attention from each block of 7x7 pixels to the 11x11 window around it.

    The layer follows Vaswani et al. 2021 and matches timm's `HaloAttn` with 8 heads. Queries and
    keys are a third as wide as values, and relative positions are learned per row and per column.
    At stride 2, an average over 2x2 pixels follows the attention. The input is (N, width, H, W),
    where H and W are multiples of 7.
    """

    def __init__(self, width: int, *, stride: int) -> None:
        super().__init__()
        self.key_width = halo_key_width(width)
        keys = HALO_HEADS * self.key_width
        self.q = conv2d(width, keys, 1)
        self.kv = conv2d(width, keys + width, 1)
        self.pos_embed = HaloPositions(self.key_width)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]  # indexed, because torch.fx cannot unpack a shape
        _check_blocks(height, width)
        rows, columns, block = height // HALO_BLOCK, width // HALO_BLOCK, HALO_BLOCK
        # (N * heads, blocks, pixels of a block, width)
        q = self.q(x).reshape(-1, self.key_width, rows, block, columns, block)
        q = q.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
        # (N * heads, blocks, pixels of a window, width)
        kv = nn.functional.pad(self.kv(x), (HALO_SIZE,) * 4)
        kv = kv.unfold(2, HALO_WINDOW, block).unfold(3, HALO_WINDOW, block)
        kv = kv.reshape(q.shape[0], -1, rows * columns, HALO_WINDOW**2).permute(0, 2, 3, 1)
        k, v = kv[..., : self.key_width], kv[..., self.key_width :]
        weights = (q @ k.transpose(-1, -2)) * self.key_width**-0.5 + self.pos_embed(q)
        out = weights.softmax(-1) @ v
        out = out.reshape(-1, rows, columns, block, block, out.shape[-1])
        out = out.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], -1, height, width)
        pooled: Tensor = self.pool(out)
        return pooled


def _check_blocks(height: int, width: int) -> None:
    if height % HALO_BLOCK or width % HALO_BLOCK:
        raise ConfigError(
            f"halo attention needs feature maps whose sides are multiples of {HALO_BLOCK}, got "
            f"{height} x {width}; use images of 224 x 224 pixels"
        )


torch.fx.wrap("_check_blocks")  # it branches on sizes, which torch.fx cannot trace


class HaloPositions(nn.Module):
    """The relative position terms of halo attention: a learned vector per row and column offset."""

    def __init__(self, key_width: int) -> None:
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * HALO_WINDOW - 1, key_width))
        self.width_rel = nn.Parameter(torch.empty(2 * HALO_WINDOW - 1, key_width))
        self.reset_positions()

    def reset_positions(self) -> None:
        """Initialize the vectors with a standard deviation equal to the scale of attention."""
        for positions in (self.height_rel, self.width_rel):
            nn.init.normal_(positions, std=positions.shape[1] ** -0.5)

    def forward(self, q: Tensor) -> Tensor:
        """Map queries (M, blocks, pixels, width) to logits (M, blocks, pixels, window pixels)."""
        places = torch.arange(HALO_WINDOW, device=q.device)
        away = places - places[:HALO_BLOCK, None] + HALO_WINDOW - 1  # (7, 11)
        pixels = q.unflatten(2, (HALO_BLOCK, HALO_BLOCK))
        down = torch.einsum("mbyxd,ykd->mbyxk", pixels, self.height_rel[away])
        across = torch.einsum("mbyxd,xkd->mbyxk", pixels, self.width_rel[away])
        both: Tensor = down[..., :, None] + across[..., None, :]
        return both.flatten(4, 5).flatten(2, 3)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


torch.fx.wrap("_widened")  # it branches on the dtype, which torch.fx cannot trace


class EvoNormS0a(nn.Module):
    """EvoNorm-S0 with an affine map: x * sigmoid(v * x) / std, scaled and shifted per channel.

    The standard deviation is computed over groups of 16 channels, with an epsilon of 1e-3 under the
    square root, as in timm's `EvoNorm2dS0a`. Without the activation, x is only divided by the
    standard deviation, scaled and shifted, and there is no v.
    """

    def __init__(self, width: int, *, activate: bool, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.groups = width // NORM_GROUP_WIDTH
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.v = nn.Parameter(torch.empty(width)) if activate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale and v to one, and the shift to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.ones_(self.v)

    def forward(self, x: Tensor) -> Tensor:
        # A sum over a complete feature map can exceed the range of half precision.
        grouped: Tensor = _widened(x).unflatten(1, (self.groups, -1))
        variance = grouped.var(dim=(2, 3, 4), correction=0, keepdim=True)
        std = (variance + self.eps).sqrt().expand_as(grouped).flatten(1, 2).to(x.dtype)
        if self.v is not None:
            x = x * (x * self.v[:, None, None]).sigmoid()
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return x / std * scale + shift


class SqueezeExcitation(nn.Module):
    """Squeeze-excitation: scale each channel by a gate computed from the means of all channels.

    The source is Hu et al. 2018.
    """

    def __init__(self, width: int, se_width: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = conv2d(width, se_width, 1, bias=True)
        self.act = activation_layer(activation)
        self.fc2 = conv2d(se_width, width, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        gate: Tensor = self.fc2(self.act(self.fc1(squeezed))).sigmoid()
        return x * gate


class AvgPool2x2(nn.Module):
    """Average over 2x2 pixels that drops no row or column.

    With stride 2, an odd last row or column is repeated, so that it is averaged with itself.
    `ceil_mode` would give the same values, but an exported program would then accept only even or
    only odd sizes. With stride 1, a row and a column of zeros preserve the size, as in timm where
    dilation replaces the stride.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        mode = "replicate" if self.stride == 2 else "constant"
        return nn.functional.avg_pool2d(
            nn.functional.pad(x, (0, 1, 0, 1), mode=mode), 2, self.stride
        )

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class DropPath(nn.Module):
    """Stochastic depth: drop the residual branch of random samples while training.

    The branches that remain are divided by the probability of keeping one, so that the expected
    value stays the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
