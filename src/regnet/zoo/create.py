"""Build a model by name, with or without weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import nn

from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import Variant
from regnet.errors import ConfigError, WeightsError
from regnet.nn.features import FeatureNet
from regnet.nn.model import AnyNet, GlobalPool
from regnet.weights.catalog import Checkpoint, data_dir, find_checkpoint
from regnet.weights.files import load_weights, verify
from regnet.zoo.names import find_variant


@overload
def create(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool = ...,
    num_classes: int | None = ...,
    in_chans: int | None = ...,
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
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool = ...,
    in_chans: int | None = ...,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    output_stride: int | None = ...,
    drop_path_rate: float = ...,
    zero_init_last: bool = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> FeatureNet: ...
def create(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
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
        name: a variant (`regnety_016`), an alias (`regnet_y_1_6gf`, `RegNetY-1.6GF`), a checkpoint
            (`regnety_cifar.cifar10`), or a config of your own.
        pretrained: load weights: those of the tag, or the variant's default.
        num_classes: outputs of the classifier; None keeps the variant's, or the checkpoint's; 0
            gives pooled features. A classifier for other classes than the checkpoint's starts
            afresh.
        in_chans: channels of the images; None gives 3.
        features_only: return a backbone that gives a list of feature maps instead of logits; it has
            no head, so that num_classes, drop_rate and global_pool do not matter.
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
    config, variant, checkpoint = _find(name, pretrained=pretrained)
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices chooses feature maps; it needs features_only=True")
    if pretrained and torch.device(device or "cpu").type == "meta":
        raise ConfigError(
            "weights cannot be loaded on the device 'meta'; use pretrained=False there"
        )
    if num_classes is None and checkpoint:
        num_classes = checkpoint.num_classes
    options = {"num_classes": num_classes, "in_chans": in_chans, "output_stride": output_stride}
    changes: dict[str, Any] = {k: value for k, value in options.items() if value is not None}
    with torch.device(device or torch.get_default_device()):
        model = AnyNet(
            replace(config, **changes),
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            global_pool="avg" if features_only else global_pool,
            zero_init_last=zero_init_last,
        )
    if dtype is not None:
        model = model.to(dtype)
    if variant:
        model.pretrained_cfg = _pretrained_cfg(model, variant, checkpoint if pretrained else None)
    if pretrained and checkpoint:
        _load(model, checkpoint)
    return FeatureNet(model, out_indices) if features_only else model


def _find(
    name: str | AnyNetConfig | RegNetConfig, *, pretrained: bool
) -> tuple[AnyNetConfig | RegNetConfig, Variant | None, Checkpoint | None]:
    if isinstance(name, str):
        variant, tag = find_variant(name)
        wanted = pretrained or tag is not None
        return variant.config, variant, find_checkpoint(variant.name, tag) if wanted else None
    if pretrained:
        raise WeightsError("a config of your own has no published weights; use pretrained=False")
    return name, None, None


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


def _pretrained_cfg(
    model: AnyNet, variant: Variant, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    """Facts for preprocessing and labels, with timm's keys; labels only with their classifier."""
    transform = Preprocess(size=(variant.input_size,) * 2)
    cfg: dict[str, Any] = {"architecture": variant.name, "num_classes": model.num_classes}
    if checkpoint:
        transform = checkpoint.preprocess
        cfg |= {"tag": checkpoint.tag, "license": checkpoint.license}
        if model.num_classes == checkpoint.num_classes:
            cfg["label_names"] = checkpoint.labels
    return cfg | transform.to_timm() | {"input_size": (model.config.in_chans, *transform.size)}


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
    return Preprocess.from_timm(cfg)
