"""The residual and plain blocks of the AnyNet space.

A block takes its own widths rather than the config of the network. The names of child modules are
part of the checkpoint format on the Hub. `downsample` is None in a block without a residual
connection, and an `nn.Identity` in a block with an identity shortcut.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from regnet.design.blocks import NORMFREE_ALPHA, BlockConfig
from regnet.design.config import Activation, AnyNetConfig, Norm
from regnet.nn.layers import (
    AvgPool2x2,
    ConvNormAct,
    DropPath,
    HaloAttention,
    ScaledStdConv2d,
    SqueezeExcitation,
    activation_layer,
    conv2d,
    norm_activation,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStyle:
    """The settings that all blocks of a network share."""

    norm: Norm
    activation: Activation
    se_activation: Activation
    average_shortcut: bool
    """Whether a projection shortcut averages 2x2 pixels instead of skipping three of four."""


class Stage(nn.Sequential):
    """A sequence of blocks of one width, named b1, b2, ..."""


def build_block(config: AnyNetConfig, block: BlockConfig, *, drop_path: float = 0.0) -> nn.Module:
    """Build a block of the kind that the network's config names."""
    style = BlockStyle(
        norm=config.norm,
        activation=config.activation,
        se_activation=config.se_activation or config.activation,
        average_shortcut=config.shortcut == "avg_pool",
    )
    if config.block == "preact_bottleneck":
        return PreactBottleneck(block, style, drop_path=drop_path)
    if config.block == "normfree_bottleneck":
        return NormFreeBottleneck(block, style, drop_path=drop_path)
    if config.block in ("basic", "vanilla"):
        return Basic(block, style, drop_path=drop_path)
    linear = config.block == "linear_bottleneck"
    if block.attention:
        return AttentionBottleneck(block, style, linear=linear, drop_path=drop_path)
    return Bottleneck(block, style, linear=linear, drop_path=drop_path)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, squeeze-excitation if any, 1x1 and a shortcut: the X and Y block.

    With `linear`, no activation follows the sum: the Z block.
    """

    def __init__(
        self, block: BlockConfig, style: BlockStyle, *, linear: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        inner, norm, act = block.bottleneck_width, style.norm, style.activation
        self.conv1 = ConvNormAct(block.width_in, inner, norm=norm, activation=act)
        self.conv2 = ConvNormAct(
            inner,
            inner,
            3,
            norm=norm,
            activation=act,
            stride=block.stride,
            dilation=block.dilation,
            groups=block.groups,
        )
        self.se = _squeeze_excitation(block, style)
        self.conv3 = ConvNormAct(inner, block.width, norm=norm, activation=None)
        self.downsample = _shortcut(block, style)
        self.drop_path = DropPath(drop_path)
        self.act = activation_layer(None if linear else act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(self.se(self.conv2(self.conv1(x))))
        if self.downsample is not None:
            out = self.drop_path(out) + self.downsample(x)
        activated: Tensor = self.act(out)
        return activated


class PreactBottleneck(nn.Module):
    """Bottleneck with a norm and an activation before each convolution (timm's RegNetV).

    The shortcut starts after the first norm and activation, even in blocks that preserve the shape.
    """

    def __init__(self, block: BlockConfig, style: BlockStyle, *, drop_path: float = 0.0) -> None:
        super().__init__()
        inner, norm, act = block.bottleneck_width, style.norm, style.activation
        self.norm1, self.act1 = norm_activation(norm, block.width_in, act)
        self.conv1 = conv2d(block.width_in, inner, 1)
        self.norm2, self.act2 = norm_activation(norm, inner, act)
        self.conv2 = conv2d(
            inner, inner, 3, stride=block.stride, dilation=block.dilation, groups=block.groups
        )
        self.se = _squeeze_excitation(block, style)
        self.norm3, self.act3 = norm_activation(norm, inner, act)
        self.conv3 = conv2d(inner, block.width, 1)
        self.downsample = _shortcut(block, style, preact=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(x))
        out: Tensor = self.conv1(x)
        out = self.se(self.conv2(self.act2(self.norm2(out))))
        out = self.conv3(self.act3(self.norm3(out)))
        if self.downsample is not None:
            out = self.drop_path(out) + self.downsample(x)
        return out


class NormFreeBottleneck(nn.Module):
    """Bottleneck without norms, with standardized weights and scaled branches (timm's NF-RegNet).

    The block divides its input by the standard deviation expected there, and multiplies the branch
    by alpha, so that variances follow the expected ones (Brock et al. 2021).
    """

    def __init__(self, block: BlockConfig, style: BlockStyle, *, drop_path: float = 0.0) -> None:
        super().__init__()
        inner = block.bottleneck_width
        self.beta = block.variance**-0.5
        self.downsample: nn.Module | None = None
        if block.shortcut == "projection":
            convolution = ScaledStdConv2d(block.width_in, block.width, 1)
            parts = {"pool": _average_pool(block), "conv": convolution}
            self.downsample = nn.Sequential(OrderedDict(parts))
        self.act1 = activation_layer(style.activation, inplace=False)
        self.conv1 = ScaledStdConv2d(block.width_in, inner, 1)
        self.act2 = activation_layer(style.activation)
        self.conv2 = ScaledStdConv2d(
            inner, inner, 3, stride=block.stride, dilation=block.dilation, groups=block.groups
        )
        self.se = _squeeze_excitation(block, style)
        # Two, because a gate is 1/2 on average and would otherwise halve the branch.
        self.se_gain = 2.0 if block.se_width else 1.0
        self.alpha = NORMFREE_ALPHA
        self.act3 = activation_layer(style.activation)
        # A gain of zero makes the branch of a new block zero, so that it starts as its shortcut.
        self.conv3 = ScaledStdConv2d(inner, block.width, 1, gain=0.0)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.act1(x) * self.beta
        shortcut = x if self.downsample is None else self.downsample(scaled)
        out = self.conv2(self.act2(self.conv1(scaled)))
        out = self.conv3(self.act3(self.se(out) * self.se_gain))
        summed: Tensor = self.drop_path(out) * self.alpha + shortcut
        return summed


class AttentionBottleneck(nn.Module):
    """1x1, halo attention, 1x1 and a shortcut (timm's HaloRegNetZ)."""

    def __init__(
        self, block: BlockConfig, style: BlockStyle, *, linear: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        inner, norm, act = block.bottleneck_width, style.norm, style.activation
        self.conv1 = ConvNormAct(block.width_in, inner, norm=norm, activation=act)
        self.self_attn = HaloAttention(inner, stride=block.stride)
        self.post_attn, self.post_act = norm_activation(norm, inner, act)
        self.conv3 = ConvNormAct(inner, block.width, norm=norm, activation=None)
        self.downsample = _shortcut(block, style)
        self.drop_path = DropPath(drop_path)
        self.act = activation_layer(None if linear else act)

    def forward(self, x: Tensor) -> Tensor:
        out = self.post_act(self.post_attn(self.self_attn(self.conv1(x))))
        out = self.conv3(out)
        if self.downsample is not None:
            out = self.drop_path(out) + self.downsample(x)
        activated: Tensor = self.act(out)
        return activated


class Basic(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet-34) or without (the vanilla block of NDS)."""

    def __init__(self, block: BlockConfig, style: BlockStyle, *, drop_path: float = 0.0) -> None:
        super().__init__()
        norm, act = style.norm, style.activation
        self.conv1 = ConvNormAct(
            block.width_in,
            block.width,
            3,
            norm=norm,
            activation=act,
            stride=block.stride,
            dilation=block.dilation,
        )
        self.conv2 = ConvNormAct(
            block.width, block.width, 3, norm=norm, activation=None, dilation=block.dilation
        )
        self.downsample = _shortcut(block, style)
        self.drop_path = DropPath(drop_path)
        self.act = activation_layer(act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        if self.downsample is not None:
            out = self.drop_path(out) + self.downsample(x)
        activated: Tensor = self.act(out)
        return activated


def _squeeze_excitation(block: BlockConfig, style: BlockStyle) -> nn.Module:
    if not block.se_width:
        return nn.Identity()
    return SqueezeExcitation(block.bottleneck_width, block.se_width, style.se_activation)


def _shortcut(block: BlockConfig, style: BlockStyle, *, preact: bool = False) -> nn.Module | None:
    if block.shortcut == "none":
        return None
    if block.shortcut == "identity":
        return nn.Identity()
    stride = 1 if style.average_shortcut else block.stride
    projection: nn.Module
    if preact:
        projection = conv2d(block.width_in, block.width, 1, stride=stride)
    else:
        projection = ConvNormAct(
            block.width_in, block.width, norm=style.norm, activation=None, stride=stride
        )
    if not style.average_shortcut:
        return projection
    return nn.Sequential(_average_pool(block), projection)


def _average_pool(block: BlockConfig) -> nn.Module:
    """Build the 2x2 average before a projection; a dilated block has one as well, as in timm."""
    if block.stride == 1 and block.dilation == 1:
        return nn.Identity()
    return AvgPool2x2(block.stride)
