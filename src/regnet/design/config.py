"""Architectures as plain data: an AnyNet stage by stage, and a RegNet by its few parameters.

A config is immutable, takes only keyword arguments, and is valid once it exists; to change one, use
`dataclasses.replace`. Whatever follows from a config (stages, blocks) is computed, never stored.
Source: Radosavovic et al., Designing Network Design Spaces (2020), sections 3.2 and 3.3.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from math import prod
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from regnet import documents
from regnet.design.blocks import BlockConfig, expand
from regnet.design.widths import (
    MOST,
    MOST_BLOCKS,
    QUANTUM,
    Rounding,
    block_widths,
    is_ratio,
    round_to_groups,
    stage_runs,
)
from regnet.errors import ConfigError, check_whole

if TYPE_CHECKING:
    from regnet.design.explain import Explanation
    from regnet.design.fit import RegNetFit

Stem = Literal["simple", "resnet", "cifar", "tiered", "deep"]
"""How a network begins.

`simple` is a 3x3 convolution with stride 2 (the paper), and `cifar` the same with stride 1.
`resnet` is a 7x7 convolution with stride 2 and a 3x3 max pool with stride 2. `tiered` and `deep`
are three 3x3 convolutions with strides 2, 1 and 2 (timm's RegNetZ): those of a tiered stem have
3/8, 1/2 and all of the stem width, and those of a deep stem have all of it throughout."""

Block = Literal[
    "bottleneck",
    "linear_bottleneck",
    "preact_bottleneck",
    "normfree_bottleneck",
    "basic",
    "vanilla",
]
"""The kind of block.

`bottleneck` has a 1x1, a grouped 3x3 and a 1x1 convolution, and a shortcut (the paper's X and Y
blocks, and its R block with one group). `linear_bottleneck` is the same without the activation
after the sum (RegNetZ). `preact_bottleneck` has a norm and an activation before each convolution
(timm's RegNetV). `normfree_bottleneck` has an activation before each convolution, biases, and
standardized weights instead of norms (timm's NF-RegNet). `basic` has two 3x3 convolutions and a
shortcut (ResNet-34). `vanilla` has two 3x3 convolutions without a shortcut (VGG style, NDS)."""

Shortcut = Literal["conv1x1", "avg_pool", "none"]
"""The shortcut of a block that changes the width or the resolution.

`conv1x1` is a strided 1x1 convolution, and `avg_pool` a 2x2 average pool followed by a 1x1
convolution. With `none` such a block has no shortcut; only blocks that preserve the shape of their
input are residual."""

Norm = Literal["batch", "group", "evonorm_s0a"]
"""The normalization.

`batch` is batch normalization. `group` is group normalization with groups of 16 channels.
`evonorm_s0a` is an affine EvoNorm-S0 over groups of 16 channels, which contains the activation
(timm)."""

Activation = Literal["relu", "silu"]

PREACTIVATED = ("preact_bottleneck", "normfree_bottleneck")
"""Blocks that begin with an activation; the stem of their networks therefore ends without one."""

_Architecture = TypeVar("_Architecture", bound="ArchitectureConfig")

_TIERED_STEM = ((3, 8), (1, 2), (1, 1))  # widths as fractions of the stem width


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """A run of identical blocks; the first one has the stride."""

    depth: int
    """Number of blocks (d)."""
    width: int
    """Width of every block's output, in channels (w)."""
    group_width: int = 1
    """Channels per group of a bottleneck's 3x3 convolution (g). A bottleneck that is narrower than
    this has one group."""
    bottleneck_ratio: float = 1.0
    """Block width divided by bottleneck width (b): 4 in ResNet-50, 1/4 in an inverted bottleneck
    that is four times as wide as its block."""
    stride: int = 2
    """Stride of the first block: 1 or 2."""
    attention_every: int | None = None
    """With a number n, the blocks n, 2n, 3n, ... of the stage have halo attention instead of a 3x3
    convolution: 1 means every block, None no block (timm's HaloRegNetZ)."""

    def __post_init__(self) -> None:
        _require_whole(self, "width", "group_width", least=1)
        if self.attention_every is not None:
            _require_whole(self, "attention_every", least=1)
        _require_whole(self, "depth", least=1, most=MOST_BLOCKS)
        _require_whole(self, "stride", least=1)
        if self.stride not in (1, 2):
            raise ConfigError(f"stride of a stage must be 1 or 2, got {self.stride!r}")
        _require_ratio(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureConfig:
    """The fields that AnyNets and RegNets share: stem, kind of block, head, and classes."""

    kind: ClassVar[str]

    stem: Stem = "simple"
    stem_width: int = 32
    """Output channels of the stem."""
    block: Block = "bottleneck"
    shortcut: Shortcut = "conv1x1"
    se_ratio: float = 0.0
    """Width of squeeze-excitation divided by the width that `se_from` names: 0.25 in RegNetY, 0 for
    no squeeze-excitation."""
    se_from: Literal["input", "bottleneck"] = "input"
    """The width that `se_ratio` multiplies: that of the block's input (pycls; the result is rounded
    half to even), or the bottleneck width (timm's byobnet RegNetZ; the result is rounded half up to
    a multiple of 8)."""
    bottleneck_from: Literal["output", "input"] = "output"
    """The width that `bottleneck_ratio` divides: the width of the block's output (the paper), or
    that of its input (timm's byobnet RegNetZ)."""
    activation: Activation = "relu"
    se_activation: Activation | None = None
    """Activation inside squeeze-excitation; None: the same as `activation`."""
    norm: Norm = "batch"
    head_width: int = 0
    """Output channels of a 1x1 convolution before the global pool; 0 for no such convolution."""
    head_feature: bool = False
    """Whether the last feature map is taken after the head convolution (timm's byobnet RegNetZ)."""
    output_stride: int | None = None
    """Largest reduction of the feature maps, such as 8; stages that would exceed it dilate instead.
    None: no limit."""
    num_classes: int = 1000
    """Outputs of the classifier; with 0 there is none, and the model returns pooled features."""
    in_chans: int = 3
    """Channels of the images."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require_whole(self, "stem_width", "in_chans", least=1)
        _require_whole(self, "head_width", "num_classes", least=0)
        _require_number(self, "se_ratio")
        if not 0 <= self.se_ratio <= 1:
            raise ConfigError(f"se_ratio must lie between 0 (none) and 1, got {self.se_ratio!r}")
        if self.se_ratio and self.block in ("basic", "vanilla"):
            raise ConfigError(f"a {self.block} block has no squeeze-excitation; set se_ratio to 0")
        if self.block == "normfree_bottleneck" and (
            self.shortcut != "avg_pool" or self.norm != "batch"
        ):
            raise ConfigError(
                "a normfree_bottleneck has no norms, and an average pool in its shortcut; set "
                f"shortcut='avg_pool' and norm='batch', got {self.shortcut!r} and {self.norm!r}"
            )
        if self.block in PREACTIVATED and self.stem in ("tiered", "deep"):
            raise ConfigError(
                f"a {self.block} needs a stem of one convolution, got {self.stem!r}; use 'simple'"
            )
        if min(self.stem_widths) < 1:
            raise ConfigError(
                f"a {self.stem} stem needs a stem_width of 8 or more, got {self.stem_width}"
            )
        if self.output_stride is not None:
            if self.output_stride not in (1, 2, 4, 8, 16, 32, 64):
                raise ConfigError(
                    "output_stride must be a power of two up to 64, or None; "
                    f"got {self.output_stride!r}"
                )
            _require_whole(self, "output_stride", least=1)
        if not isinstance(self.head_feature, bool):
            raise ConfigError(f"head_feature must be true or false, got {self.head_feature!r}")
        if self.output_stride is not None and self.output_stride < self.stem_stride:
            raise ConfigError(
                f"output_stride {self.output_stride} is less than the stride of the stem, which "
                f"cannot dilate; use {self.stem_stride} or more"
            )

    def anynet(self) -> "AnyNetConfig":
        """Return the same network as an AnyNet, stage by stage."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each stage, in channels."""
        return tuple(stage.width for stage in self.anynet().stages)

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        return tuple(stage.depth for stage in self.anynet().stages)

    @property
    def num_features(self) -> int:
        """Number of features that the classifier receives."""
        return self.head_width or self.widths[-1]

    def blocks(self) -> tuple[BlockConfig, ...]:
        """Return all blocks in order, with every width, stride and dilation resolved."""
        return expand(self.anynet())

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Output channels of each convolution of the stem."""
        if self.stem == "tiered":
            return tuple(self.stem_width * part // whole for part, whole in _TIERED_STEM)
        return (self.stem_width,) * (3 if self.stem == "deep" else 1)

    @property
    def stem_stride(self) -> int:
        """Factor by which the stem reduces the sides of the image."""
        return prod(self.stem_conv_strides) * (2 if self.stem == "resnet" else 1)

    @property
    def stem_conv_strides(self) -> tuple[int, ...]:
        """Stride of each convolution of the stem."""
        return {"cifar": (1,), "simple": (2,), "resnet": (2,)}.get(self.stem, (2, 1, 2))

    @property
    def stem_kernel_size(self) -> int:
        """Kernel size of the stem's convolutions."""
        return 7 if self.stem == "resnet" else 3

    @property
    def head_activation(self) -> bool:
        """Whether a separate activation precedes the pool, because no earlier layer ends in one."""
        if self.block == "normfree_bottleneck":
            return True
        return self.block in ("linear_bottleneck", "preact_bottleneck") and not self.head_width

    def to_dict(self) -> dict[str, Any]:
        """Return the config as data for JSON; `config_from_dict` reads it."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls: type[_Architecture], values: Mapping[str, Any]) -> _Architecture:
        """Build a config of this class from what `to_dict` returned.

        Raises:
            ConfigError: the values are invalid, or those of the other kind of config.
        """
        found = config_from_dict(values)
        if not isinstance(found, cls):
            raise ConfigError(
                f"a config of kind {cls.kind!r} is needed, got {found.kind!r}; "
                "config_from_dict reads both kinds"
            )
        return found

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the config as JSON text; `config_from_json` reads it."""
        return json.dumps(self.to_dict(), indent=indent)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyNetConfig(ArchitectureConfig):
    """A network described stage by stage, which covers the styles of VGG, ResNet and RegNet."""

    kind: ClassVar[str] = "anynet"

    stages: tuple[StageConfig, ...]

    def __post_init__(self) -> None:
        # slots=True makes a new class, and super() without arguments would still mean the old one.
        ArchitectureConfig.__post_init__(self)
        stages = self.stages if isinstance(self.stages, Sequence) else ()
        if not stages or not all(isinstance(stage, StageConfig) for stage in stages):
            raise ConfigError(f"an AnyNet needs at least one StageConfig, got {self.stages!r}")
        object.__setattr__(self, "stages", tuple(stages))
        self.blocks()

    def anynet(self) -> "AnyNetConfig":
        """Return this config."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class RegNetConfig(ArchitectureConfig):
    """A RegNet as the paper parameterizes it (section 3.3): its widths follow a quantized line."""

    kind: ClassVar[str] = "regnet"

    depth: int
    """Number of blocks (d)."""
    w0: int
    """Width of the first block, in channels (Eq. 2); a multiple of 8."""
    wa: float
    """Slope of the line: channels per block (Eq. 2)."""
    wm: float
    """Ratio between the widths of neighbouring quantization levels (Eq. 3); greater than 1."""
    group_width: int = 1
    """Channels per group of the 3x3 convolution (g)."""
    bottleneck_ratio: float = 1.0
    """Block width divided by bottleneck width (b): 1/4 in RegNetZ, which pycls calls BOT_MUL 4."""
    rounding: Rounding = "half_even"
    """How bottleneck widths become multiples of the group width."""

    def __post_init__(self) -> None:
        ArchitectureConfig.__post_init__(self)
        _require_whole(self, "w0", "group_width", least=1)
        _require_whole(self, "depth", least=1, most=MOST_BLOCKS)
        _require_number(self, "wa", "wm")
        if self.w0 % QUANTUM:
            raise ConfigError(
                f"w0 must be a multiple of {QUANTUM} channels, got {self.w0}; "
                f"use {max(QUANTUM, round(self.w0 / QUANTUM) * QUANTUM)}"
            )
        if self.wa < 0:
            raise ConfigError(
                f"wa must be 0 or more, got {self.wa}: widths never shrink along a RegNet"
            )
        if self.wm <= 1:
            raise ConfigError(
                f"wm must be greater than 1 so that stages differ in width, got {self.wm}; "
                "published RegNets use 2.0 to 3.0"
            )
        _require_ratio(self)
        if self.bottleneck_from == "input":
            raise ConfigError(
                "a RegNet's bottleneck ratio divides the block's own width; write the network "
                "as an AnyNetConfig to use bottleneck_from='input'"
            )
        self.anynet()

    def block_widths(self) -> tuple[int, ...]:
        """Return the width of every block before group rounding, in channels (Eqs. 2-4)."""
        return tuple(block_widths(self.w0, self.wa, self.wm, self.depth).tolist())

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages: runs of equal `block_widths`, rounded to suit the group width."""
        widths, depths = stage_runs(self.block_widths())
        rounded, groups = round_to_groups(
            widths, self.group_width, self.bottleneck_ratio, self.rounding
        )
        return tuple(
            StageConfig(depth=depth, width=w, group_width=g, bottleneck_ratio=self.bottleneck_ratio)
            for depth, w, g in zip(depths, rounded.tolist(), groups.tolist(), strict=True)
        )

    def anynet(self) -> AnyNetConfig:
        """Return the same network as an AnyNet, stage by stage."""
        shared = {f.name: getattr(self, f.name) for f in fields(ArchitectureConfig)}
        return AnyNetConfig(stages=self.stages, **shared)

    def explain(self) -> "Explanation":
        """Explain step by step how the parameters become stages; printing it shows a table."""
        from regnet.design.explain import explain

        return explain(self)

    @classmethod
    def fit(cls, widths: Sequence[int], depths: Sequence[int], **fixed: Any) -> "RegNetFit":
        """Find the RegNet that has these stage widths and depths, or comes closest to them.

        An exact solution is searched for among values of wm from 1.1 on.

        Args:
            widths: width of each stage, in channels.
            depths: number of blocks of each stage.
            fixed: other fields of the config, such as `group_width`. Where group rounding has
                changed the widths, an exact fit needs the group width, bottleneck ratio and
                rounding that changed them.

        Returns:
            The config, whether it is exact, and the paper's fitting error.

        Raises:
            ConfigError: the lengths differ, a value is not positive, or no RegNet has as many
                stages in as many blocks.
        """
        from regnet.design.fit import fit

        return fit(cls, widths, depths, **fixed)


def config_from_dict(data: Mapping[str, Any]) -> "AnyNetConfig | RegNetConfig":
    """Build a config from what `to_dict` returned; missing fields take their defaults.

    Args:
        data: the fields of the config, and its "kind": "regnet" or "anynet".

    Raises:
        ConfigError: the kind or a field is unknown, a required field is missing, or a value is
            invalid.
    """
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in ("anynet", "regnet"):
        raise ConfigError(f"a config needs a kind, 'regnet' or 'anynet'; got {kind!r}")
    if kind == "regnet":
        return _build(RegNetConfig, values)
    stages = values.pop("stages", None)
    if not isinstance(stages, Sequence) or isinstance(stages, str):
        raise ConfigError(f"an anynet needs a list of stages, got {stages!r}")
    return _build(AnyNetConfig, values | {"stages": tuple(_build(StageConfig, s) for s in stages)})


def config_from_json(text: str) -> "AnyNetConfig | RegNetConfig":
    """Build a config from the text that `to_json` returned.

    Raises:
        ConfigError: the text is not JSON, or does not describe a valid config.
    """
    try:
        data = documents.parsed(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"a config must be JSON text: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"a config must be a JSON object, got {type(data).__name__}")
    return config_from_dict(data)


_Config = TypeVar("_Config", StageConfig, AnyNetConfig, RegNetConfig)

_CHOICES: dict[str, tuple[str, ...]] = {
    "stem": get_args(Stem),
    "block": get_args(Block),
    "shortcut": get_args(Shortcut),
    "se_from": ("input", "bottleneck"),
    "bottleneck_from": ("output", "input"),
    "activation": get_args(Activation),
    "se_activation": get_args(Activation),
    "norm": get_args(Norm),
    "rounding": get_args(Rounding),
}


def _build(cls: type[_Config], values: Any) -> _Config:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} needs a mapping of fields, got {values!r}")
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(known)}")
    required = {name for name, f in known.items() if f.default is MISSING}
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}")
    return cls(**values)


def _require_choices(config: ArchitectureConfig) -> None:
    for name, options in _CHOICES.items():
        value = getattr(config, name, options[0])
        if value not in options and not (name == "se_activation" and value is None):
            raise ConfigError(f"{name} must be one of {', '.join(options)}; got {value!r}")


def _require_whole(config: Any, *names: str, least: int, most: int = MOST) -> None:
    """Check fields, and replace NumPy's numbers, which JSON cannot express, by Python's."""
    for name in names:
        value = check_whole(name, getattr(config, name), least=least, most=most)
        object.__setattr__(config, name, value)


def _require_number(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number:
            raise ConfigError(f"{name} must be a number, got {value!r}")
        if not -MOST <= value <= MOST:
            raise ConfigError(f"{name} must be a number up to {MOST}, got {value!r}")
        object.__setattr__(config, name, float(value))


def _require_ratio(config: Any) -> None:
    """Check `bottleneck_ratio`; which block takes four over a whole number is checked later."""
    _require_number(config, "bottleneck_ratio")
    b = config.bottleneck_ratio
    if not is_ratio(b) and not (0 < b < 1 and is_ratio(b / 4)):
        raise ConfigError(
            f"bottleneck_ratio must be a whole number or one over a whole number (a "
            f"normfree_bottleneck also takes four over a whole number), got {b!r}; "
            "it divides the block width: 4 makes a narrow bottleneck, 1/4 an inverted one"
        )
