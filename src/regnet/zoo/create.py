"""Build a model by name, with or without weights; list and describe what there is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, overload

import torch
from torch import nn

from regnet.data.preprocess import Preprocess
from regnet.design.complexity import Complexity, complexity
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS, Variant
from regnet.errors import ConfigError, WeightsError
from regnet.nn.features import FeatureNet
from regnet.nn.model import AnyNet, GlobalPool
from regnet.weights.catalog import Checkpoint, checkpoints, data_dir, find_checkpoint
from regnet.weights.files import load_weights, verify
from regnet.zoo.names import find_variant


@overload
def create(
    name: str,
    *,
    pretrained: bool = ...,
    num_classes: int | None = ...,
    in_chans: int = ...,
    features_only: Literal[False] = ...,
    output_stride: int | None = ...,
    drop_rate: float = ...,
    drop_path_rate: float = ...,
    global_pool: GlobalPool = ...,
    zero_init_last: bool = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> AnyNet: ...
@overload
def create(
    name: str,
    *,
    pretrained: bool = ...,
    in_chans: int = ...,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    output_stride: int | None = ...,
    drop_path_rate: float = ...,
    zero_init_last: bool = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> FeatureNet: ...
def create(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: GlobalPool = "avg",
    zero_init_last: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> AnyNet | FeatureNet:
    """Build a model by the name of its variant.

    Args:
        name: a variant (`regnety_016`), an alias (`regnet_y_1_6gf`, `RegNetY-1.6GF`), or a
            checkpoint (`regnety_cifar.cifar10`).
        pretrained: load weights: those of the tag, or the variant's default.
        num_classes: outputs of the classifier; None keeps the variant's, or the checkpoint's; 0
            gives pooled features. A classifier for other classes than the checkpoint's starts
            afresh.
        in_chans: channels of the images.
        features_only: return a backbone that gives a list of feature maps instead of logits.
        out_indices: which feature maps, as indices into `feature_info`; None gives all.
        output_stride: limit of the reduction, 8 or 16; later stages dilate instead. None: no limit.
        drop_rate: dropout before the classifier while training.
        drop_path_rate: drop path of the last residual branch; earlier ones drop linearly less.
        global_pool: "avg", "max", or "" to keep feature maps (with num_classes=0).
        zero_init_last: start residual branches at zero.
        device: where to build the model; "meta" allocates nothing.
        dtype: floating-point type of the parameters.

    Returns:
        A model in training mode, as modules are when new; `.eval()` before inference.

    Raises:
        ConfigError: the name or an option is not known, or options contradict each other.
        WeightsError: there are no such weights, or they do not fit.
    """
    variant, tag = find_variant(name)
    checkpoint = find_checkpoint(variant.name, tag) if pretrained or tag else None
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices chooses feature maps; it needs features_only=True")
    published = checkpoint.num_classes if checkpoint else variant.config.num_classes
    config = replace(
        variant.config,
        num_classes=published if num_classes is None else num_classes,
        in_chans=in_chans,
        output_stride=output_stride,
    )
    with torch.device(device or torch.get_default_device()):
        model = AnyNet(
            config,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            global_pool=global_pool,
            zero_init_last=zero_init_last,
        )
    if dtype is not None:
        model = model.to(dtype)
    model.pretrained_cfg = _pretrained_cfg(variant, checkpoint)
    if pretrained and checkpoint:
        _load(model, checkpoint)
    return FeatureNet(model, out_indices) if features_only else model


def _load(model: AnyNet, checkpoint: Checkpoint) -> None:
    if model.config.in_chans != 3:
        raise WeightsError(
            f"{checkpoint.id} is for images of 3 channels, not {model.config.in_chans}; "
            "use in_chans=3 or pretrained=False"
        )
    path = data_dir() / checkpoint.file
    verify(path, checkpoint.sha256)
    same_classes = model.config.num_classes == checkpoint.num_classes
    load_weights(model, path, leave=() if same_classes else ("head.fc.weight", "head.fc.bias"))


def _pretrained_cfg(variant: Variant, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Facts for preprocessing and labels, with timm's keys."""
    transform = checkpoint.preprocess if checkpoint else Preprocess(size=(variant.input_size,) * 2)
    cfg = {
        "architecture": variant.name,
        "input_size": (3, *transform.size),
        "crop_pct": transform.crop_pct,
        "crop_mode": "squash" if transform.resize == "squash" else "center",
        "interpolation": transform.interpolation,
        "mean": transform.mean,
        "std": transform.std,
        "num_classes": variant.config.num_classes,
    }
    if checkpoint:
        cfg |= {
            "tag": checkpoint.tag,
            "num_classes": checkpoint.num_classes,
            "label_names": checkpoint.labels,
            "license": checkpoint.license,
        }
    return cfg


def preprocess(model: nn.Module) -> Preprocess:
    """The evaluation transform of a model that `create` built.

    Raises:
        ConfigError: the model does not say what it takes.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not cfg:
        raise ConfigError(
            "this model does not say how its images look; build a regnet.data Preprocess"
        )
    return Preprocess(
        size=tuple(cfg["input_size"][1:]),
        crop_pct=cfg["crop_pct"],
        resize="squash" if cfg["crop_mode"] == "squash" else "short_side",
        interpolation=cfg["interpolation"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


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
    """
    variant, _ = find_variant(name)
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
    max_flops: float | None = None,
    max_params: float | None = None,
) -> list[str]:
    """Names of variants, in natural order.

    Args:
        filter: a pattern with * and ?.
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
        if not fnmatchcase(variant.name, filter.lower()) or family not in (None, variant.family):
            continue
        cost = complexity(variant.config, variant.input_size)
        if max_flops is not None and cost.flops > max_flops:
            continue
        if max_params is not None and cost.params > max_params:
            continue
        names.append(variant.name)
    return sorted(names, key=_natural)


def is_model(name: str) -> bool:
    """Whether `create` knows the name."""
    try:
        find_variant(name)
    except ConfigError:
        return False
    return True


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that takes runs of digits as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
