"""What there is: list variants, describe one."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf

from regnet.design.complexity import Complexity, complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, RegNetError
from regnet.weights.catalog import checkpoints, find_checkpoint
from regnet.zoo.names import find_variant


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known about a variant."""

    name: str
    label: str
    family: str
    aliases: tuple[str, ...]
    factory: str
    config: AnyNetConfig | RegNetConfig
    input_size: int
    """Side of the images that the complexity is for, in pixels."""
    complexity: Complexity[int]
    checkpoints: tuple[str, ...]
    """Ids of its weights."""


def info(name: str, *, input_size: int | None = None) -> ModelInfo:
    """Everything about one variant, without building it.

    Args:
        name: as for `create`.
        input_size: side of the images to count the complexity for; None: as published.

    Raises:
        ConfigError: there is no such variant.
        WeightsError: the name has a tag, and there are no such weights.
    """
    variant, tag = find_variant(name)
    if tag:
        find_checkpoint(variant.name, tag)
    size = variant.input_size if input_size is None else input_size
    return ModelInfo(
        name=variant.name,
        label=variant.label,
        family=variant.family,
        aliases=variant.aliases,
        factory=variant.factory,
        config=variant.config,
        input_size=size,
        complexity=complexity(variant.config, size),
        checkpoints=tuple(row.id for row in checkpoints().values() if row.variant == variant.name),
    )


def list_models(
    filter: str = "*",
    *,
    family: str | None = None,
    max_flops: float = inf,
    max_params: float = inf,
) -> list[str]:
    """Names of variants, in natural order.

    Args:
        filter: a pattern with * and ? for the name or an alias.
        family: regnetx, regnety, regnetv, regnetz, resnet, resnext or vanilla.
        max_flops: most multiply-adds at the variant's published image size.
        max_params: most parameters.

    Raises:
        ConfigError: there is no such family.
    """
    families = sorted({variant.family for variant in VARIANTS.values()})
    if family is not None and family not in families:
        raise ConfigError(f"there is no family {family!r}; there are {', '.join(families)}")
    names = []
    for variant in VARIANTS.values():
        names_of = (variant.name, variant.factory, variant.label, *variant.aliases)
        if not any(fnmatchcase(name.lower(), filter.lower()) for name in names_of):
            continue
        if family not in (None, variant.family):
            continue
        if max_flops < inf or max_params < inf:
            cost = complexity(variant.config, variant.input_size)
            if cost.flops > max_flops or cost.params > max_params:
                continue
        names.append(variant.name)
    return sorted(names, key=_natural)


def is_model(name: str) -> bool:
    """Whether `create` knows the name, its tag included if it has one."""
    try:
        variant, tag = find_variant(name)
        if tag:
            find_checkpoint(variant.name, tag)
    except RegNetError:
        return False
    return True


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that takes runs of digits as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
