"""The table of architectures, with one row for each published variant.

Everything else that names a variant (factories, aliases, listings, tests, docs) is generated from
these rows. The parameters are those of the paper's model zoo (pycls), of torchvision for the `_tv`
variants, of timm for RegNetV and RegNetZ, of VISSL for the sizes of SEER, and of the original
papers for ResNet and ResNeXt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from regnet.design.config import AnyNetConfig, Block, RegNetConfig, StageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One published architecture."""

    name: str
    """The canonical name, which the Hub uses too."""
    family: str
    label: str
    """The name in the paper, to be shown to people."""
    config: AnyNetConfig | RegNetConfig
    factory: str
    """Name of the function that builds the variant."""
    image_size: int = 224
    """Side of the images for which its complexity was published, in pixels."""
    aliases: tuple[str, ...] = ()
    """Other names. Upper and lower case are the same, and so are `-` and `_`."""


def _regnet(
    family: str,
    size: str,
    label: str,
    *,
    suffix: str = "",
    title: str | None = None,
    image_size: int = 224,
    aliases: Sequence[str] = (),
    **config: Any,
) -> Variant:
    """Return a row of a RegNet family.

    `size` is the size in names on the Hub (hundreds of MFLOPs), `label` the size in the paper.
    """
    if family == "y":
        config = {"se_ratio": 0.25} | config
    short = label.removesuffix("GF").removesuffix(".0") + "GF" if "GF" in label else label
    spelled = (label.lower(), short.lower())
    sizes = {*spelled, *(size.replace(".", "_") for size in spelled)}
    tail = f"_{suffix}" if suffix else ""
    hub = () if suffix else (f"facebook/regnet-{family}-{size}",)
    return Variant(
        name=f"regnet{family}_{size}{tail}",
        family=f"regnet{family}",
        label=title or f"RegNet{family.upper()}-{label}{'-' * bool(suffix)}{suffix}",
        config=RegNetConfig(**config),
        factory=f"regnet_{family}_{short.lower().replace('.', '_')}{tail}",
        image_size=image_size,
        aliases=(
            *(f"regnet{x}_{s}{tail}" for x in (family, f"_{family}") for s in sorted(sizes)),
            *hub,
            *aliases,
        ),
    )


_V: dict[str, Any] = {
    "se_ratio": 0.25,
    "block": "preact_bottleneck",
    "activation": "silu",
}
_Z: dict[str, Any] = {
    "se_ratio": 0.25,
    "block": "linear_bottleneck",
    "shortcut": "none",
    "activation": "silu",
}
_Y_040: dict[str, Any] = {"depth": 22, "w0": 96, "wa": 31.41, "wm": 2.24, "group_width": 64}
_Y_064: dict[str, Any] = {"depth": 25, "w0": 112, "wa": 33.22, "wm": 2.27, "group_width": 72}
_Z_005: dict[str, Any] = {
    "depth": 21,
    "w0": 16,
    "wa": 10.7,
    "wm": 2.51,
    "group_width": 4,
    "bottleneck_ratio": 1 / 4,
}
_Z_040: dict[str, Any] = {
    "depth": 28,
    "w0": 48,
    "wa": 14.5,
    "wm": 2.226,
    "group_width": 8,
    "bottleneck_ratio": 1 / 4,
}


def _stages(
    depths: Sequence[int],
    widths: Sequence[int],
    group_widths: Sequence[int],
    bottleneck_ratio: float,
    strides: Sequence[int],
) -> tuple[StageConfig, ...]:
    return tuple(
        StageConfig(
            depth=depth,
            width=width,
            group_width=group_width,
            bottleneck_ratio=bottleneck_ratio,
            stride=stride,
        )
        for depth, width, group_width, stride in zip(
            depths, widths, group_widths, strides, strict=True
        )
    )


def _byobnet_z(
    size: str, stages: tuple[StageConfig, ...], *, image_size: int = 256, **config: Any
) -> Variant:
    """Return a row of timm's own RegNetZ sizes; bottleneck widths follow the block's input."""
    shared: dict[str, Any] = {
        **_Z,
        "se_activation": "relu",
        "se_from": "bottleneck",
        "bottleneck_from": "input",
        "head_feature": True,
    }
    return Variant(
        name=f"regnetz_{size}",
        family="regnetz",
        label=f"RegNetZ-{size.upper().replace('_EVOS', '-EvoNorm')}",
        config=AnyNetConfig(stages=stages, **(shared | config)),
        factory=f"regnet_z_{size}",
        image_size=image_size,
    )


_B16 = ((2, 6, 12, 2), (48, 96, 192, 288), (16,) * 4)
_D8 = ((3, 6, 12, 3), (64, 128, 256, 384))
_E8 = ((3, 8, 16, 3), (96, 192, 384, 512))


def _resnet(kind: str, layers: int, depths: Sequence[int]) -> Variant:
    """Return a ResNet with bottlenecks, or the ResNeXt (32x4d) of the same depth."""
    dense = kind == "resnet"
    group_widths, ratio = ((64, 128, 256, 512), 4) if dense else ((4, 8, 16, 32), 2)
    name = f"{kind}{layers}" + ("" if dense else "_32x4d")
    label = f"{'ResNet' if dense else 'ResNeXt'}-{layers}"
    return Variant(
        name=name,
        family=kind,
        label=label,
        config=AnyNetConfig(
            stages=_stages(depths, (256, 512, 1024, 2048), group_widths, ratio, (1, 2, 2, 2)),
            stem="resnet",
            stem_width=64,
        ),
        factory=name,
        aliases=(label, f"{'R' if dense else 'X'}-{layers}"),
    )


def _cifar(name: str, family: str, label: str, depth: int, block: Block) -> Variant:
    """Return a network of NDS for images of 32x32: three stages of blocks of two convolutions."""
    return Variant(
        name=name,
        family=family,
        label=label,
        config=AnyNetConfig(
            stages=_stages((depth,) * 3, (16, 32, 64), (1, 1, 1), 1, (1, 2, 2)),
            stem="cifar",
            stem_width=16,
            block=block,
            num_classes=10,
        ),
        factory=name,
        image_size=32,
    )


def _rows() -> Iterator[Variant]:
    yield _regnet("x", "002", "200MF", depth=13, w0=24, wa=36.44, wm=2.49, group_width=8)
    yield _regnet("x", "004", "400MF", depth=22, w0=24, wa=24.48, wm=2.54, group_width=16)
    yield _regnet(
        "x", "004", "400MF", suffix="tv", depth=22, w0=24, wa=24.48, wm=2.54, group_width=16,
        rounding="divisible",
    )  # fmt: skip
    yield _regnet("x", "006", "600MF", depth=16, w0=48, wa=36.97, wm=2.24, group_width=24)
    yield _regnet("x", "008", "800MF", depth=16, w0=56, wa=35.73, wm=2.28, group_width=16)
    yield _regnet("x", "016", "1.6GF", depth=18, w0=80, wa=34.01, wm=2.25, group_width=24)
    yield _regnet("x", "032", "3.2GF", depth=25, w0=88, wa=26.31, wm=2.25, group_width=48)
    yield _regnet("x", "040", "4.0GF", depth=23, w0=96, wa=38.65, wm=2.43, group_width=40)
    yield _regnet("x", "064", "6.4GF", depth=17, w0=184, wa=60.83, wm=2.07, group_width=56)
    yield _regnet("x", "080", "8.0GF", depth=23, w0=80, wa=49.56, wm=2.88, group_width=120)
    yield _regnet("x", "120", "12GF", depth=19, w0=168, wa=73.36, wm=2.37, group_width=112)
    yield _regnet("x", "160", "16GF", depth=22, w0=216, wa=55.59, wm=2.1, group_width=128)
    yield _regnet("x", "320", "32GF", depth=23, w0=320, wa=69.86, wm=2.0, group_width=168)

    yield _regnet("y", "002", "200MF", depth=13, w0=24, wa=36.44, wm=2.49, group_width=8)
    yield _regnet("y", "004", "400MF", depth=16, w0=48, wa=27.89, wm=2.09, group_width=8)
    yield _regnet("y", "006", "600MF", depth=15, w0=48, wa=32.54, wm=2.32, group_width=16)
    yield _regnet("y", "008", "800MF", depth=14, w0=56, wa=38.84, wm=2.4, group_width=16)
    yield _regnet(
        "y", "008", "800MF", suffix="tv", depth=14, w0=56, wa=38.84, wm=2.4, group_width=16,
        rounding="divisible",
    )  # fmt: skip
    yield _regnet("y", "016", "1.6GF", depth=27, w0=48, wa=20.71, wm=2.65, group_width=24)
    yield _regnet("y", "032", "3.2GF", depth=21, w0=80, wa=42.63, wm=2.66, group_width=24)
    yield _regnet("y", "040", "4.0GF", **_Y_040)
    yield _regnet(
        "y", "040", "4.0GF", suffix="sgn", title="RegNetY-4.0GF with GroupNorm", norm="group",
        activation="silu", aliases=("regnety_040s_gn",), **_Y_040,
    )  # fmt: skip
    yield _regnet("y", "064", "6.4GF", **_Y_064)
    yield _regnet("y", "080", "8.0GF", depth=17, w0=192, wa=76.82, wm=2.19, group_width=56)
    yield _regnet(
        "y", "080", "8.0GF", suffix="tv", depth=17, w0=192, wa=76.82, wm=2.19, group_width=56,
        rounding="divisible",
    )  # fmt: skip
    yield _regnet("y", "120", "12GF", depth=19, w0=168, wa=73.36, wm=2.37, group_width=112)
    yield _regnet("y", "160", "16GF", depth=18, w0=200, wa=106.23, wm=2.48, group_width=112)
    yield _regnet("y", "320", "32GF", depth=20, w0=232, wa=115.89, wm=2.53, group_width=232)
    yield _regnet(
        "y", "640", "64GF", depth=20, w0=352, wa=147.48, wm=2.4, group_width=328,
        aliases=("facebook/regnet-y-640-seer", "RG-64Gf"),
    )  # fmt: skip
    yield _regnet(
        "y", "1280", "128GF", depth=27, w0=456, wa=160.83, wm=2.52, group_width=264,
        aliases=("facebook/regnet-y-1280-seer", "RG-128Gf"),
    )  # fmt: skip
    # Two architectures are called 256GF. This is the one for which weights exist (SEER).
    yield _regnet(
        "y", "2560", "256GF", depth=27, w0=640, wa=230.83, wm=2.53, group_width=373,
        aliases=("RG-256Gf",),
    )  # fmt: skip
    # This is the other 256GF, a class of ClassyVision without published weights.
    yield _regnet(
        "y", "2560", "256GF", suffix="classy", depth=27, w0=640, wa=124.47, wm=2.04,
        group_width=848,
    )  # fmt: skip
    yield _regnet(
        "y", "10b", "10B", title="RegNetY-10B", depth=27, w0=1744, wa=620.83, wm=2.52,
        group_width=1010, aliases=("facebook/regnet-y-10b-seer", "RG-10B", "SEER RegNet 10B"),
    )  # fmt: skip

    yield _regnet("v", "040", "4.0GF", **_V, **_Y_040)
    yield _regnet("v", "064", "6.4GF", shortcut="avg_pool", **_V, **_Y_064)

    yield _regnet("z", "005", "500MF", head_width=1024, **_Z, **_Z_005)
    yield _regnet(
        "z", "040", "4.0GF", suffix="h", title="RegNetZ-4.0GF", image_size=256, head_width=1536,
        aliases=("regnetz_040h", "RegNetZ-4.0GF", "RegNetZ-4GF", "regnet_z_4gf"), **_Z, **_Z_040,
    )  # fmt: skip
    yield Variant(
        name="regnetz_040",
        family="regnetz",
        label="RegNetZ-4.0GF without head convolution",
        config=RegNetConfig(**_Z, **_Z_040),
        factory="regnet_z_4gf_no_head",
        image_size=256,
    )
    b16 = _stages(*_B16, 1 / 3, (2, 2, 2, 2))
    c16 = _stages(*_B16, 1 / 4, (2, 2, 2, 2))
    d8 = _stages(*_D8, (8,) * 4, 1 / 4, (1, 2, 2, 2))
    d32 = _stages(*_D8, (32,) * 4, 1 / 4, (1, 2, 2, 2))
    e8 = _stages(*_E8, (8,) * 4, 1 / 4, (1, 2, 2, 2))
    evonorm: dict[str, Any] = {"norm": "evonorm_s0a"}
    tiered: dict[str, Any] = {"stem": "tiered", "stem_width": 64}
    yield _byobnet_z("b16", b16, image_size=224, head_width=1536)
    yield _byobnet_z("b16_evos", b16, image_size=224, head_width=1536, **evonorm)
    yield _byobnet_z("c16", c16, head_width=1536)
    yield _byobnet_z("c16_evos", c16, head_width=1536, **evonorm)
    yield _byobnet_z("d8", d8, head_width=1792, **tiered)
    yield _byobnet_z("d8_evos", d8, head_width=1792, stem="deep", stem_width=64, **evonorm)
    yield _byobnet_z("d32", d32, head_width=1792, **tiered)
    yield _byobnet_z("e8", e8, head_width=2048, **tiered)

    # HaloRegNetZ-B has attention in every block of the last stage, and in every fourth block of the
    # stage before it.
    c, *rest = _stages(*_B16, 1 / 3, (2, 2, 2, 2))[::-1]
    halo = (replace(c, attention_every=1), replace(rest[0], attention_every=4), *rest[1:])[::-1]
    yield replace(
        _byobnet_z("halo", halo, image_size=224, head_width=1536),
        name="haloregnetz_b", family="haloregnetz", label="HaloRegNetZ-B",
        factory="halo_regnet_z_b",
    )  # fmt: skip
    for size, row in enumerate(_NORMFREE):
        yield _normfree(size, *row)

    for layers, depths in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))):
        yield _resnet("resnet", layers, depths)
        yield _resnet("resnext", layers, depths)
    yield _cifar("resnet56_cifar", "resnet", "ResNet-56 (CIFAR)", 9, "basic")
    yield _cifar("resnet110_cifar", "resnet", "ResNet-110 (CIFAR)", 18, "basic")
    yield _cifar("vanilla56_cifar", "vanilla", "Vanilla-56 (CIFAR)", 9, "vanilla")
    yield Variant(
        name="regnety_cifar",
        family="regnety",
        label="RegNetY-40MF (CIFAR)",
        config=RegNetConfig(
            depth=8, w0=64, wa=24.0, wm=2.25, group_width=16, se_ratio=0.25, stem="cifar",
            num_classes=10,
        ),
        factory="regnet_y_cifar",
        image_size=32,
    )  # fmt: skip


_NORMFREE = (
    ((1, 3, 6, 6), (40, 80, 160, 328), 40, 960, 192),
    ((2, 4, 7, 7), (40, 80, 160, 328), 40, 960, 256),
    ((2, 4, 8, 8), (40, 88, 176, 368), 40, 1064, 240),
    ((2, 5, 9, 9), (40, 96, 184, 400), 40, 1152, 288),
    ((2, 6, 11, 11), (48, 112, 216, 464), 48, 1344, 320),
    ((3, 7, 14, 14), (64, 128, 256, 528), 64, 1536, 384),
)
"""NF-RegNet B0 to B5: depths, widths, stem width, head width and image size of each."""


def _normfree(
    size: int,
    depths: Sequence[int],
    widths: Sequence[int],
    stem_width: int,
    head_width: int,
    image_size: int,
) -> Variant:
    """Return the row of one of timm's NF-RegNets."""
    return Variant(
        name=f"nf_regnet_b{size}",
        family="nf_regnet",
        label=f"NF-RegNet-B{size}",
        config=AnyNetConfig(
            stages=_stages(depths, widths, (8,) * 4, 1 / 2.25, (2, 2, 2, 2)),
            stem_width=stem_width,
            block="normfree_bottleneck",
            shortcut="avg_pool",
            activation="silu",
            se_ratio=0.5,
            se_from="bottleneck",
            se_activation="relu",
            bottleneck_from="input",
            head_width=head_width,
            head_feature=True,
        ),
        factory=f"nf_regnet_b{size}",
        image_size=image_size,
    )


VARIANTS: Final[Mapping[str, Variant]] = {variant.name: variant for variant in _rows()}
"""All variants by name."""

PLAIN: Final = tuple(
    name
    for name, variant in VARIANTS.items()
    if name.rpartition("_")[0] in ("regnetx", "regnety") and variant.image_size == 224
)
"""RegNetX and RegNetY as the paper defines them: the 24 of the paper, and larger ones."""
