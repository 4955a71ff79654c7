"""List variants and checkpoints, and describe one."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from typing import Any, Final, Literal

from regnet.design.complexity import Complexity, complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS, Variant
from regnet.errors import ConfigError, RegNetError, WeightsError, check_number, unknown
from regnet.weights.catalog import (
    Checkpoint,
    checkpoints_of,
    default_checkpoint,
    find_upstream,
)
from regnet.weights.licenses import find_license
from regnet.zoo.resolver import find_model, find_source

Sort = Literal["name", "top1", "flops", "params"]

_SORTS: Final = ("name", "top1", "flops", "params")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known about a variant, and about one of its checkpoints."""

    name: str
    label: str
    family: str
    aliases: tuple[str, ...]
    factory: str
    config: AnyNetConfig | RegNetConfig
    image_size: int
    """Side of the images that the complexity is counted for, in pixels."""
    complexity: Complexity[int]
    checkpoints: tuple[str, ...]
    """Ids of its checkpoints, the default first."""
    default: str | None
    """Id of the checkpoint that `pretrained=True` loads; None if all licenses restrict the use."""
    checkpoint: Checkpoint | None = None
    """The checkpoint that the name selects; None if it selects none."""


def info(name: str, *, image_size: int | None = None) -> ModelInfo:
    """Describe a variant, without building the network.

    Args:
        name: a variant, a checkpoint, which is then described as well, or any other name that
            `create` accepts: a repository, a folder, the path of a checkpoint, or the path of a
            config (.json).
        image_size: side of the images to count the complexity for, in pixels; None: as published.

    Raises:
        ConfigError: there is no such variant, or the file contains no config.
        WeightsError: the name has a tag, and there are no such weights.
    """
    try:
        variant, row = find_model(name)
    except (ConfigError, WeightsError):
        return _info_of_place(name, image_size)
    size = variant.image_size if image_size is None else image_size
    default = default_checkpoint(variant.name)
    return ModelInfo(
        name=variant.name,
        label=variant.label,
        family=variant.family,
        aliases=variant.aliases,
        factory=variant.factory,
        config=variant.config,
        image_size=size,
        complexity=complexity(variant.config, size),
        checkpoints=tuple(row.id for row in checkpoints_of(variant.name)),
        default=default.id if default else None,
        checkpoint=row,
    )


def _info_of_place(name: str, image_size: int | None) -> ModelInfo:
    """Describe the network of a folder, a repository, a checkpoint file, or a config file."""
    source = find_source(name, pretrained=False)
    row = source.checkpoint
    size = image_size or (row.preprocess.size[0] if row else 224)
    stem = Path(name.partition(":")[2] or name).stem
    return info_of_config(stem, source.config, image_size=size, checkpoint=row)


def info_of_config(
    name: str,
    config: AnyNetConfig | RegNetConfig,
    *,
    image_size: int,
    checkpoint: Checkpoint | None = None,
) -> ModelInfo:
    """Describe a network that is no published variant.

    Args:
        name: name to show.
        config: the architecture.
        image_size: side of the images to count the complexity for, in pixels.
        checkpoint: its weights, if there are any.
    """
    return ModelInfo(
        name=name,
        label=name,
        family=config.kind,
        aliases=(),
        factory="create",
        config=config,
        image_size=image_size,
        complexity=complexity(config, image_size),
        checkpoints=(),
        default=None,
        checkpoint=checkpoint,
    )


def list_models(
    filter: str | Sequence[str] = "*",
    *,
    exclude_filters: str | Sequence[str] = (),
    family: str | None = None,
    pretrained: bool = False,
    include_tags: bool | None = None,
    license: str | None = None,
    min_top1: float | None = None,
    max_flops: float = inf,
    max_params: float = inf,
    sort: Sort = "name",
) -> list[str]:
    """List the names of variants, or of checkpoints with `pretrained=True`.

    Args:
        filter: a pattern with * and ? that the name, an alias or the id of a checkpoint must match;
            or several patterns, of which one must match. "" matches all.
        exclude_filters: patterns of names to leave out.
        family: regnetx, regnety, regnetv, regnetz, haloregnetz, nf_regnet, resnet, resnext or
            vanilla.
        pretrained: list checkpoints, as `variant.tag`. `license`, `min_top1` and sort="top1" imply
            it.
        include_tags: True lists checkpoints and, without `pretrained`, also the variants that have
            none. False lists variants, and with `pretrained` only those that have a checkpoint.
            None lists checkpoints with `pretrained` and variants without it.
        license: license of the checkpoint, such as "apache-2.0"; "commercial" stands for every
            license that allows commercial use.
        min_top1: minimum of the published ImageNet-1k top-1 accuracy in percent, at the default
            image size.
        max_flops: maximum of multiply-adds at the variant's published image size.
        max_params: maximum of parameters.
        sort: "name" for natural order, "top1" for the most accurate first, "flops" or "params" for
            the smallest first.

    Raises:
        ConfigError: there is no such family, license or order, or a limit is not a number.
    """
    families = sorted({variant.family for variant in VARIANTS.values()})
    if family is not None and family not in families:
        raise ConfigError(unknown("family", family, families))
    if sort not in _SORTS:
        raise ConfigError(unknown("order to sort by", sort, _SORTS))
    if license not in (None, "commercial"):
        find_license(license)
    check_number("max_flops", max_flops, least=0, finite=False)
    check_number("max_params", max_params, least=0, finite=False)
    if min_top1 is not None:
        check_number("min_top1", min_top1, most=100)
    patterns, others = _patterns(filter) or ("*",), _patterns(exclude_filters)
    asked = pretrained or license is not None or min_top1 is not None or sort == "top1"
    of_weights = asked or bool(include_tags)
    names: list[tuple[Any, str]] = []
    for variant in VARIANTS.values():
        if family not in (None, variant.family):
            continue
        cost = complexity(variant.config, variant.image_size)
        if cost.flops > max_flops or cost.params > max_params:
            continue
        key = {"flops": cost.flops, "params": cost.params}.get(sort, 0)
        if not of_weights:
            if _fits(patterns, variant) and not _fits(others, variant):
                names.append((key, variant.name))
            continue
        rows = checkpoints_of(variant.name)
        if include_tags and not asked and not rows and _fits(patterns, variant):
            names += [] if _fits(others, variant) else [(key, variant.name)]
        for row in rows:
            if not _fits_row(patterns, row, variant) or _fits_row(others, row, variant):
                continue
            if license == "commercial" and not row.license_terms.permissive:
                continue
            if license not in (None, "commercial", row.license):
                continue
            if min_top1 is not None and (row.top1 is None or row.top1 < min_top1):
                continue
            names.append((-(row.top1 or 0) if sort == "top1" else key, row.id))
    listed = [name for _, name in sorted(names, key=lambda pair: (pair[0], _natural(pair[1])))]
    if include_tags is False:
        return list(dict.fromkeys(name.partition(".")[0] for name in listed))
    return listed


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(p for p in ((given,) if isinstance(given, str) else given) if p)


def list_pretrained(filter: str | Sequence[str] = "*", **options: Any) -> list[str]:
    """List the ids of checkpoints: `list_models(filter, pretrained=True, ...)`."""
    return list_models(filter, pretrained=True, **options)


def is_model(name: str) -> bool:
    """Return whether a name is in the zoo, including its tag if it has one; files do not count."""
    try:
        find_model(name)
    except RegNetError:
        return False
    return True


def get_pretrained_cfg(name: str) -> dict[str, Any]:
    """Return the `pretrained_cfg` of the model that `create(name, pretrained=True)` would build.

    Raises:
        ConfigError: there is no such variant.
        WeightsError: there are no such weights, or the variant has no default.
    """
    source = find_source(name, pretrained=True)
    card, row = source.card(loaded=True), source.checkpoint
    assert card is not None, "it has weights"
    assert row is not None, "it has weights"
    return card.to_timm(replace(source.config, num_classes=row.num_classes))


def _fits(patterns: Iterable[str], variant: Variant) -> bool:
    names = (variant.name, variant.factory, variant.label, *variant.aliases)
    return _match(patterns, names)


def _fits_row(patterns: Iterable[str], row: Checkpoint, variant: Variant) -> bool:
    """Whether a pattern matches a checkpoint, by its id, its publisher's name, or its variant."""
    # The aliases of a variant include publishers' names, each of which stands for its own
    # checkpoint only.
    aliases = (alias for alias in variant.aliases if find_upstream(alias) is None)
    names = (row.id, row.upstream or "", variant.name, variant.factory, variant.label, *aliases)
    return _match(patterns, names)


def _match(patterns: Iterable[str], names: Iterable[str]) -> bool:
    lower = [name.lower() for name in names]
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in lower)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares runs of digits as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
