"""Identify the published architecture of a state dict by the shapes of its tensors."""

import re
from collections.abc import Mapping
from functools import cache

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS, Variant

_KINDS = ("running_mean", "gain", "v", "norm1", "downsample")
"""Parts of tensor names that distinguish kinds of networks with the same widths."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name, with the names of this library."""

Signature = tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[str, ...]]
"""Widths of stem and head; stage, width, 3x3 convolution and squeeze width of each block; kinds of
norm and shortcut."""


def identify(shapes: Shapes) -> tuple[Variant, ...]:
    """Return the variants with exactly these widths and depths; there may be none or several.

    Args:
        shapes: shapes of a complete state dict with the names of this library; the classifier does
            not matter.
    """
    return variants_with(signature_of_shapes(shapes))


def variants_with(signature: Signature) -> tuple[Variant, ...]:
    """Return the variants with this signature."""
    return tuple(v for v in VARIANTS.values() if signature_of_config(v.config) == signature)


def num_classes(shapes: Shapes) -> int:
    """Return the number of outputs of the classifier; 0 if there is none."""
    return _first(shapes.get("head.fc.weight"))


def _first(shape: tuple[int, ...] | None) -> int:
    """Return the first number of a shape; 0 if there is no shape."""
    return shape[0] if shape else 0


def signature_of_shapes(shapes: Shapes) -> Signature:
    """Return what distinguishes architectures, from the shapes of a state dict."""
    blocks: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"s(\d+)\.b(\d+)\.(\w+?)(?:\.conv)?\.weight", name):
            blocks.setdefault((int(match[1]), int(match[2])), {})[match[3]] = shape
        elif match := re.fullmatch(r"s(\d+)\.b(\d+)\.se\.fc1\.weight", name):
            blocks.setdefault((int(match[1]), int(match[2])), {})["se"] = shape
    stem = [_first(shape) for name, shape in shapes.items() if re.match(r"stem\..*weight", name)]
    convs = [width for width in dict.fromkeys(stem) if width]
    head = _first(shapes.get("final_conv.conv.weight", shapes.get("final_conv.weight")))
    parts = []
    for key in sorted(blocks):
        block = blocks[key]
        second = (*block.get("conv2", (0, 0)), 0, 0)[:2]
        width = _first(block.get("conv3", second))
        parts.append((key[0], width, *second, _first(block.get("se"))))
    return (*convs, head), tuple(parts), _norms(shapes)


@cache
def signature_of_config(config: AnyNetConfig | RegNetConfig) -> Signature:
    """Return what distinguishes architectures, from a config."""
    parts = tuple(
        (
            block.stage,
            block.width,
            *((0, 0) if block.attention else (block.bottleneck_width, block.group_width)),
            block.se_width,
        )
        for block in config.blocks()
    )
    normfree = config.block == "normfree_bottleneck"
    present = (
        config.norm == "batch" and not normfree,
        normfree,
        config.norm == "evonorm_s0a",
        config.block == "preact_bottleneck",
        any(block.shortcut == "projection" for block in config.blocks()),
    )
    kinds = tuple(kind for kind, has in zip(_KINDS, present, strict=True) if has)
    return (*dict.fromkeys(config.stem_widths), config.head_width), parts, kinds


def _norms(shapes: Shapes) -> tuple[str, ...]:
    parts = {part for name in shapes for part in name.split(".")}
    return tuple(kind for kind in _KINDS if kind in parts)
