"""The layers that blocks are made of.

Child names (`conv`, `bn`, `fc1`, `fc2`) are the checkpoint format of the Hub and stay.
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
    """A convolution padded so that stride 1 keeps height and width."""
    padding = dilation * (kernel_size // 2)
    strided_depthwise = groups == width_in == width and stride > 1 == dilation
    kind = StridedDepthwiseConv2d if strided_depthwise else nn.Conv2d
    return kind(width_in, width, kernel_size, stride, padding, dilation, groups, bias=bias)


class StridedDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with a stride; in float32 also under autocast on a CPU.

    torch has no fast bfloat16 gradient for it there: at 384 channels, 8x8 pixels and batch 128
    its backward pass took 164 ms on a core, in float32 5 (torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        return _convolved(x, self.weight, self.bias, self.stride, self.padding, self.groups)


def _convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    groups: int,
) -> Tensor:
    autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    slow = autocast and weight.dtype == torch.float32
    with torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext():
        return functional.conv2d(
            x.float() if slow else x, weight, bias, stride, padding, groups=groups
        )


torch.fx.wrap("_convolved")  # torch.fx cannot trace what depends on its input


def activation_layer(activation: Activation | None, *, inplace: bool = True) -> nn.Module:
    """The activation; None gives the identity. In place only where no one else reads the input."""
    if activation is None:
        return nn.Identity()
    return {"relu": nn.ReLU, "silu": nn.SiLU}[activation](inplace=inplace)


def norm_activation(
    norm: Norm, width: int, activation: Activation | None
) -> tuple[nn.Module, nn.Module]:
    """The norm and the activation after it; EvoNorm has the activation inside."""
    if norm == "evonorm_s0a":
        return EvoNormS0a(width, activate=activation is not None), nn.Identity()
    if norm == "group":
        return nn.GroupNorm(width // NORM_GROUP_WIDTH, width), activation_layer(activation)
    return nn.BatchNorm2d(width), activation_layer(activation)


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, activation: (N, width_in, H, W) to (N, width, H', W')."""

    conv_norm_pairs = (("conv", "bn"),)
    """Which norm stands behind which convolution."""

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

    Their standard deviation is gain * GAMMA / sqrt(fan-in), so that with SiLU before it, a
    convolution keeps the variance of its input without a norm (timm's `ScaledStdConv2d`).
    """

    GAMMA: Final[float] = 1.7881293296813965
    """1 / the standard deviation of SiLU of a standard normal variable."""
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
        """The gain that a new layer has."""
        nn.init.constant_(self.gain, self.first_gain)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = self.gain * (self.GAMMA / self.weight[0].numel() ** 0.5)
        weight = (self.weight - mean) * (variance + self.EPS).rsqrt() * scale
        out: Tensor = self._conv_forward(x, weight, self.bias)
        return out


class HaloAttention(nn.Module):
    """Self-attention of blocks of 7x7 pixels to the windows of 11x11 around them.

    Vaswani et al. 2021, as in timm's `HaloAttn` with 8 heads: queries and keys a third as wide as
    values, positions relative per row and column; stride 2 averages 2x2 pixels behind it. Takes
    (N, width, H, W); 7 must divide H and W.
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
        height, width = x.shape[2], x.shape[3]  # by number, for torch.fx
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
            f"{height} x {width}; images of 224 x 224 pixels give such"
        )


torch.fx.wrap("_check_blocks")


class HaloPositions(nn.Module):
    """What halo attention adds for the distance of a key from its query, per row and column."""

    def __init__(self, key_width: int) -> None:
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * HALO_WINDOW - 1, key_width))
        self.width_rel = nn.Parameter(torch.empty(2 * HALO_WINDOW - 1, key_width))
        self.reset_positions()

    def reset_positions(self) -> None:
        """Normal, as small as the scale of the products."""
        for positions in (self.height_rel, self.width_rel):
            nn.init.normal_(positions, std=positions.shape[1] ** -0.5)

    def forward(self, q: Tensor) -> Tensor:
        """Of queries (M, blocks, pixels, width): (M, blocks, pixels, pixels of a window)."""
        places = torch.arange(HALO_WINDOW, device=q.device)
        away = places - places[:HALO_BLOCK, None] + HALO_WINDOW - 1  # (7, 11)
        pixels = q.unflatten(2, (HALO_BLOCK, HALO_BLOCK))
        down = torch.einsum("mbyxd,ykd->mbyxk", pixels, self.height_rel[away])
        across = torch.einsum("mbyxd,xkd->mbyxk", pixels, self.width_rel[away])
        both: Tensor = down[..., :, None] + across[..., None, :]
        return both.flatten(4, 5).flatten(2, 3)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


torch.fx.wrap("_widened")


class EvoNormS0a(nn.Module):
    """EvoNorm-S0, affine: x * sigmoid(v * x) / std, scaled and shifted per channel.

    The standard deviation is that of groups of 16 channels, with epsilon 1e-3 under the root, as in
    timm's `EvoNorm2dS0a`. Without activation only the division remains, and there is no v.
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
        """Scale and v of one, shift of zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.ones_(self.v)

    def forward(self, x: Tensor) -> Tensor:
        # Sums over whole feature maps leave the range of half precision.
        grouped: Tensor = _widened(x).unflatten(1, (self.groups, -1))
        variance = grouped.var(dim=(2, 3, 4), correction=0, keepdim=True)
        std = (variance + self.eps).sqrt().expand_as(grouped).flatten(1, 2).to(x.dtype)
        if self.v is not None:
            x = x * (x * self.v[:, None, None]).sigmoid()
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return x / std * scale + shift


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the means of all channels (Hu et al. 2018)."""

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
    """Average of 2x2 pixels that loses no row or column.

    With stride 2, an odd last row or column is averaged alone, which repeating it gives;
    `ceil_mode` would do the same, but ties an exported program to even or odd sizes. With stride 1,
    a row and a column of zeros keep the size, as timm has it where the stride became dilation.
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
    """Drops whole residual branches per sample while training; the rest is scaled up to match."""

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
