"""Architectures as plain data: an AnyNet stage by stage, a RegNet by its few parameters.

A config is frozen, keyword-only and valid once built; change one with `dataclasses.replace`. What
follows from it (stages, blocks) is computed, never stored. Source of the design: Radosavovic et
al., Designing Network Design Spaces (2020), sections 3.2 and 3.3.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from math import prod
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

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
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.design.explain import Explanation
    from regnet.design.fit import RegNetFit

Stem = Literal["simple", "resnet", "cifar", "tiered", "deep"]
"""simple: 3x3, stride 2 (the paper). resnet: 7x7, stride 2, and a 3x3 max pool, stride 2. cifar:
3x3, stride 1. tiered, deep: three 3x3 with strides 2, 1, 2; tiered grows to 3/8, 1/2 and all of
the stem width, deep has the full width throughout (timm's RegNetZ)."""

Block = Literal[
    "bottleneck",
    "linear_bottleneck",
    "preact_bottleneck",
    "normfree_bottleneck",
    "basic",
    "vanilla",
]
"""bottleneck: 1x1, grouped 3x3, 1x1, shortcut (X, Y; R with one group). linear_bottleneck: the same
without the activation after the sum (Z). preact_bottleneck: norm and activation come before each
convolution (timm's RegNetV). normfree_bottleneck: activations before each convolution, weights that
are standardized instead of norms, biases (timm's NF-RegNet). basic: two 3x3 and a shortcut
(ResNet-34). vanilla: two 3x3, no shortcut (VGG style, NDS)."""

Shortcut = Literal["conv1x1", "avg_pool", "none"]
"""What carries the input past a block that changes width or stride: a strided 1x1 convolution, a
2x2 average pool and a 1x1 convolution, or nothing, so that only blocks that keep the shape are
residual."""

Norm = Literal["batch", "group", "evonorm_s0a"]
"""group: groups of 16 channels. evonorm_s0a: EvoNorm-S0 over groups of 16 channels, affine, with
the activation inside (timm)."""

Activation = Literal["relu", "silu"]

PREACTIVATED = ("preact_bottleneck", "normfree_bottleneck")
"""Blocks that begin with an activation, so that the stem ends without one."""

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
    """Channels per group of a bottleneck's 3x3 convolution (g); narrower ones have one group."""
    bottleneck_ratio: float = 1.0
    """Block width over bottleneck width (b): 4 in ResNet-50, 1/4 in an inverted bottleneck."""
    stride: int = 2
    attention_every: int | None = None
    """Of how many blocks the last has halo attention in place of its 3x3 convolution; 1 for all of
    them, None for none (timm's HaloRegNetZ)."""

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
    """What AnyNets and RegNets share: stem, kind of block, head."""

    kind: ClassVar[str]

    stem: Stem = "simple"
    stem_width: int = 32
    """Output channels of the stem."""
    block: Block = "bottleneck"
    shortcut: Shortcut = "conv1x1"
    se_ratio: float = 0.0
    """Width of squeeze-excitation over `se_from`; 0 for none. 0.25 in RegNetY."""
    se_from: Literal["input", "bottleneck"] = "input"
    """The width that `se_ratio` refers to: the block's input (pycls; rounded half to even), or its
    bottleneck width (timm's byobnet RegNetZ; to a multiple of 8, half up)."""
    bottleneck_from: Literal["output", "input"] = "output"
    """The width that `bottleneck_ratio` divides: the block's own (the paper), or that of its input
    (timm's byobnet RegNetZ)."""
    activation: Activation = "relu"
    se_activation: Activation | None = None
    """Activation inside squeeze-excitation, where it differs from `activation`."""
    norm: Norm = "batch"
    head_width: int = 0
    """Output channels of a 1x1 convolution before the pool; 0 for none."""
    head_feature: bool = False
    """Whether the last feature map is taken after the head convolution (timm's byobnet RegNetZ)."""
    output_stride: int | None = None
    """Largest reduction of the feature maps; later stages dilate instead. None: no limit."""
    num_classes: int = 1000
    """Outputs of the classifier; 0 for none, the model then returns pooled features."""
    in_chans: int = 3

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
                "a normfree_bottleneck has no norms, and averages in its shortcut; set "
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
                f"output_stride {self.output_stride} is less than the stem's own stride "
                f"{self.stem_stride}; only stages can dilate"
            )

    def anynet(self) -> "AnyNetConfig":
        """The same network, stage by stage."""
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
        """Channels that reach the classifier."""
        return self.head_width or self.widths[-1]

    def blocks(self) -> tuple[BlockConfig, ...]:
        """All blocks in order, every width, stride and dilation resolved."""
        return expand(self.anynet())

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Output channels of each convolution of the stem."""
        if self.stem == "tiered":
            return tuple(self.stem_width * part // whole for part, whole in _TIERED_STEM)
        return (self.stem_width,) * (3 if self.stem == "deep" else 1)

    @property
    def stem_stride(self) -> int:
        """Reduction of the image by the stem."""
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
        """Whether a bare activation stands before the pool: nothing before it ends in one."""
        if self.block == "normfree_bottleneck":
            return True
        return self.block in ("linear_bottleneck", "preact_bottleneck") and not self.head_width

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable form; `config_from_dict` reads it."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls: type[_Architecture], values: Mapping[str, Any]) -> _Architecture:
        """Read what `to_dict` wrote, if it is a config of this kind.

        Raises:
            ConfigError: it is not.
        """
        found = config_from_dict(values)
        if not isinstance(found, cls):
            raise ConfigError(f"a config of kind {cls.kind!r} is needed, got {found.kind!r}")
        return found

    def to_json(self, *, indent: int | None = 2) -> str:
        """The config as JSON text; `config_from_json` reads it."""
        return json.dumps(self.to_dict(), indent=indent)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyNetConfig(ArchitectureConfig):
    """A network stage by stage: the space that holds VGG, ResNet, ResNeXt and RegNet styles."""

    kind: ClassVar[str] = "anynet"

    stages: tuple[StageConfig, ...]

    def __post_init__(self) -> None:
        # slots=True replaces the class, so that a bare super() would look in the wrong place.
        ArchitectureConfig.__post_init__(self)
        stages = self.stages if isinstance(self.stages, Sequence) else ()
        if not stages or not all(isinstance(stage, StageConfig) for stage in stages):
            raise ConfigError(f"an AnyNet needs at least one StageConfig, got {self.stages!r}")
        object.__setattr__(self, "stages", tuple(stages))
        self.blocks()

    def anynet(self) -> "AnyNetConfig":
        """This config."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class RegNetConfig(ArchitectureConfig):
    """A RegNet as the paper parameterizes it (section 3.3): widths follow a quantized line."""

    kind: ClassVar[str] = "regnet"

    depth: int
    """Number of blocks (d)."""
    w0: int
    """Width of the first block, in channels (Eq. 2); a multiple of 8."""
    wa: float
    """Slope of the line: channels per block (Eq. 2)."""
    wm: float
    """Ratio between the widths of neighbouring levels (Eq. 3); greater than 1."""
    group_width: int = 1
    """Channels per group of the 3x3 convolution (g)."""
    bottleneck_ratio: float = 1.0
    """Block width over bottleneck width (b): 1/4 in RegNetZ, where pycls says BOT_MUL 4."""
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
        """Width of every block before group rounding, in channels (Eqs. 2-4)."""
        return tuple(block_widths(self.w0, self.wa, self.wm, self.depth).tolist())

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages: equal neighbours of `block_widths`, made compatible with the group width."""
        widths, depths = stage_runs(self.block_widths())
        rounded, groups = round_to_groups(
            widths, self.group_width, self.bottleneck_ratio, self.rounding
        )
        return tuple(
            StageConfig(depth=depth, width=w, group_width=g, bottleneck_ratio=self.bottleneck_ratio)
            for depth, w, g in zip(depths, rounded.tolist(), groups.tolist(), strict=True)
        )

    def anynet(self) -> AnyNetConfig:
        """The same network, stage by stage."""
        shared = {f.name: getattr(self, f.name) for f in fields(ArchitectureConfig)}
        return AnyNetConfig(stages=self.stages, **shared)

    def explain(self) -> "Explanation":
        """How the parameters become stages, step by step; print it."""
        from regnet.design.explain import explain

        return explain(self)

    @classmethod
    def fit(cls, widths: Sequence[int], depths: Sequence[int], **fixed: Any) -> "RegNetFit":
        """The RegNet that has, or comes closest to, these stage widths and depths.

        Args:
            widths: width of each stage, in channels.
            depths: number of blocks of each stage.
            fixed: any other field of the config, such as `group_width`; the fit needs the same
                group width, bottleneck ratio and rounding to reproduce widths that these have
                moved. An exact fit is looked for with wm of 1.1 or more.

        Raises:
            ConfigError: lengths differ, or a value is not positive.
        """
        from regnet.design.fit import fit

        return fit(cls, widths, depths, **fixed)


def config_from_dict(data: Mapping[str, Any]) -> "AnyNetConfig | RegNetConfig":
    """Read what `to_dict` wrote; missing fields take their defaults.

    Raises:
        ConfigError: the kind or a field is unknown, a required one is missing, or a value is
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
    """Read what `to_json` wrote.

    Raises:
        ConfigError: the text is not JSON, or not a config.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
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
    """Check fields, and turn NumPy's numbers, which have no JSON form, into Python's."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            raise ConfigError(
                f"{name} must be a whole number from {least} to {most}; got {value!r}"
            )
        object.__setattr__(config, name, int(value))


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
    """Bottlenecks divide, inverted bottlenecks multiply, both by a whole number."""
    _require_number(config, "bottleneck_ratio")
    b = config.bottleneck_ratio
    if not is_ratio(b) and not (0 < b < 1 and is_ratio(b / 4)):
        raise ConfigError(
            f"bottleneck_ratio must be a whole number or one over a whole number (of a "
            f"normfree_bottleneck, or four over one), got {b!r}; "
            "it divides: 4 is a narrow bottleneck, 1/4 an inverted one"
        )
