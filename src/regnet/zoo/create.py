"""Build a model by name, with or without weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, overload

import torch
from torch import nn

from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import ConfigError, WeightsError
from regnet.nn.features import Described, FeatureNet
from regnet.nn.model import AnyNet, GlobalPool
from regnet.nn.views import unwrapped
from regnet.paths import expanded
from regnet.weights.card import Card
from regnet.weights.catalog import find_upstream
from regnet.weights.download import Fetch, fetch
from regnet.weights.formats import to_native
from regnet.weights.identify import signature_of_config
from regnet.weights.licenses import warn_if_restricted
from regnet.weights.unwrap import Kind, read_tensors
from regnet.zoo.loading import Adaptation, load_tensors
from regnet.zoo.resolver import FOLDER_PREFIX, HUB_PREFIXES, find_source
from regnet.zoo.source import Source


@overload
def create(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool = ...,
    checkpoint_path: str | Path | None = ...,
    checkpoint_key: str | None = ...,
    num_classes: int | None = ...,
    classes: Sequence[int] | None = ...,
    in_chans: int | None = ...,
    features_only: Literal[False] | None = ...,
    output_stride: int | None = ...,
    drop_rate: float | None = ...,
    drop_path_rate: float | None = ...,
    global_pool: GlobalPool | None = ...,
    zero_init_last: bool | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | str | None = ...,
    cache_dir: str | Path | None = ...,
    local_files_only: bool = ...,
    force_download: bool = ...,
    revision: str | None = ...,
    token: str | bool | None = ...,
    pretrained_cfg_overlay: Mapping[str, Any] | None = ...,
    **absent: None,
) -> AnyNet: ...
@overload
def create(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool = ...,
    checkpoint_path: str | Path | None = ...,
    checkpoint_key: str | None = ...,
    in_chans: int | None = ...,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = ...,
    output_stride: int | None = ...,
    drop_path_rate: float | None = ...,
    zero_init_last: bool | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | str | None = ...,
    cache_dir: str | Path | None = ...,
    local_files_only: bool = ...,
    force_download: bool = ...,
    revision: str | None = ...,
    token: str | bool | None = ...,
    pretrained_cfg_overlay: Mapping[str, Any] | None = ...,
    **absent: None,
) -> FeatureNet: ...
def create(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    checkpoint_key: str | None = None,
    num_classes: int | None = None,
    classes: Sequence[int] | None = None,
    in_chans: int | None = None,
    features_only: bool | None = False,
    out_indices: int | Sequence[int] | None = None,
    output_stride: int | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    global_pool: GlobalPool | None = None,
    zero_init_last: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **absent: None,
) -> AnyNet | FeatureNet:
    """Build a model by the name of its variant or of its checkpoint.

    Args:
        name: a variant (`regnety_016`), an alias (`regnet_y_1_6gf`, `RegNetY-1.6GF`), a checkpoint
            (`regnety_016.tv2_in1k`, or its publisher's name, `facebook/regnet-y-016`), a repository
            (`hf-hub:owner/name`, `hf-hub:owner/name@revision`), or a config. It may also be the
            path of a folder that `save_pretrained`, training or timm wrote (or `local-dir:path`),
            of a checkpoint, whose shapes identify the architecture, or of a config (`mine.json`).
        pretrained: load the weights that the name specifies. Without a tag these are the variant's
            default, which is its most accurate checkpoint under a permissive license
            (`regnet.weights.catalog.find_checkpoint`).
        checkpoint_path: load the weights in this file or folder instead, in any known format, as a
            training script wrote them.
        checkpoint_key: which of several networks in that file to load, such as "model_ema". None:
            one that fits the architecture, averaged weights first; a warning names the choice.
        num_classes: outputs of the classifier. None: as many as the variant or the checkpoint has;
            0: pooled features instead. A classifier with another number of outputs than the
            checkpoint's is initialized anew.
        classes: indices of the checkpoint's classes to load, in this order, instead of num_classes.
        in_chans: channels of the images; None: as many as the variant or the checkpoint has, which
            is 3 for published ones. The stem's weights are adapted to another number by timm's rule
            (`regnet.zoo.loading.adapt_stem`).
        features_only: return a backbone that gives a list of feature maps instead of logits. It has
            no head, so num_classes, drop_rate and global_pool have no effect.
        out_indices: which feature maps to return, as indices into `feature_info`. A number n
            returns the last n; None returns all.
        output_stride: largest reduction of the feature maps, such as 8; later stages dilate
            instead. None: no limit.
        drop_rate: probability of dropout before the classifier while training; None: 0.
        drop_path_rate: probability of dropping the last residual branch while training, which
            grows linearly from 0 at the first block; None: 0.
        global_pool: "avg", "max", or "" for feature maps instead of a vector (with num_classes=0).
            None: "avg", or what the config of a repository specifies.
        zero_init_last: set the scale of the last norm of each residual branch to zero.
        device: where to build the model; "meta" allocates nothing.
        dtype: floating-point type of the parameters, or its name; None: torch's default.
        cache_dir: folder of the Hub client's cache; None: as its environment variables specify.
        local_files_only: use only files in the cache, without access to the network.
        force_download: download the weights again even if they are in the cache.
        revision: commit, branch or tag of the Hub repository that contains the weights.
        token: token for private and gated repositories; None: that of the user who is logged in.
        pretrained_cfg_overlay: values that replace those of the model's card, with timm's keys,
            such as `{"crop_pct": 1.0}`.
        **absent: other options of timm, which scripts may pass as None.

    Returns:
        A model in training mode, like every new module; call `.eval()` before inference. Its
        weights are mapped from their file: they occupy memory only once they are read, and training
        does not change the file.

    Raises:
        ConfigError: the name or an option is unknown, or options contradict each other.
        WeightsError: there are no such weights, they cannot be fetched, or they do not fit.
        TypeError: there is no such option.
    """
    for option, value in absent.items():
        if value is not None:
            raise TypeError(
                f"create() got an unexpected option {option}={value!r}{_HINTS.get(option, '')}"
            )
    checkpoint_path = checkpoint_path or None  # scripts for timm pass "" for no checkpoint
    if checkpoint_key is not None and checkpoint_path is None:
        raise ConfigError(
            "checkpoint_key selects a network in a checkpoint; pass checkpoint_path as well"
        )
    loads = pretrained or checkpoint_path is not None
    if out_indices is not None and not features_only:
        raise ConfigError("out_indices selects feature maps; it needs features_only=True")
    if classes is not None and (num_classes is not None or not loads):
        raise ConfigError(
            "classes selects classes of a checkpoint; pass pretrained=True or checkpoint_path, and "
            "leave num_classes out"
        )
    target = torch.device(device or torch.get_default_device())
    if loads and target.type == "meta":
        raise ConfigError(
            "weights cannot be loaded on the device 'meta'; use pretrained=False there"
        )
    how = Fetch(
        cache_dir=expanded(cache_dir) if cache_dir else None,
        local_files_only=local_files_only,
        force_download=force_download,
        token=token,
    )
    source = find_source(
        name, pretrained=pretrained and checkpoint_path is None, revision=revision, how=how
    )
    known_classes = (source.checkpoint or source.config).num_classes
    options = {
        "num_classes": len(classes) if classes is not None else num_classes,
        "in_chans": in_chans,
        "output_stride": output_stride,
    }
    if options["num_classes"] is None:
        options["num_classes"] = known_classes
    changes: dict[str, Any] = {k: value for k, value in options.items() if value is not None}
    pool = source.global_pool if global_pool is None else global_pool
    if global_pool is None and changes.get("num_classes"):
        pool = pool or None  # a classifier needs a pool, even if the repository's model has none
    where = torch.device("meta") if loads else target
    with where:
        model = AnyNet(
            replace(source.config, **changes),
            drop_rate=drop_rate or 0.0,
            drop_path_rate=drop_path_rate or 0.0,
            global_pool="avg" if features_only or pool is None else pool,
            zero_init_last=bool(zero_init_last),
        )
    kind = None if dtype is None else _dtype(dtype)
    if loads:
        allow = Adaptation(
            classifier=num_classes is not None or bool(features_only),
            classes=classes,
            channels=in_chans is not None,
            unused=_unused(model, out_indices) if features_only else (),
        )
        _load(model, source, checkpoint_path, checkpoint_key, how, allow, target, kind)
    elif kind is not None:
        model = model.to(kind)
    # A file named by checkpoint_path has no card; the weights that a name stands for have one.
    card = source.card(
        loaded=pretrained and checkpoint_path is None,
        same_classes=model.num_classes == known_classes and classes is None,
        unchanged=in_chans in (None, source.config.in_chans) and output_stride is None,
    )
    row = source.checkpoint
    if card and row and checkpoint_path is not None and not row.license_terms.permissive:
        card = replace(card, license=row.license)
    if card and row and checkpoint_path is None and classes is not None and row.label_names:
        card = card.other_classes(tuple(row.label_names[index] for index in classes))
    if pretrained_cfg_overlay:
        card = (card or Card()).overlaid(pretrained_cfg_overlay, model.config)
    model.card = card
    return FeatureNet(model, out_indices) if features_only else model


def _unused(model: AnyNet, out_indices: int | Sequence[int] | None) -> set[str]:
    """Return the modules that a feature network of this model leaves out."""
    kept = FeatureNet(model, out_indices)
    return {name for name, _ in model.named_children()} - {
        name for name, _ in kept.named_children()
    }


def _load(
    model: AnyNet,
    source: Source,
    checkpoint_path: str | Path | None,
    checkpoint_key: str | None,
    how: Fetch,
    allow: Adaptation,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    row = source.checkpoint
    # Users' own folders need not state a license.
    if row and not (row.is_local and row.license == "unknown"):
        warn_if_restricted(row.id, row.license_terms, source=row.source)
    if checkpoint_path is not None:
        path, name = expanded(checkpoint_path), str(checkpoint_path)
    else:
        assert row is not None, "find_source raised for a name without weights"
        path, name = fetch(row, how), row.id
    try:
        # The table's entry describes the checkpoint's own file, not one given by checkpoint_path.
        bgr = row.bgr if row and checkpoint_path is None else None
        config = model.config
        wanted = Kind(signature_of_config(config), config.num_classes, config.in_chans)
        found = read_tensors(path, key=checkpoint_key, wanted=wanted)
        tensors, _ = to_native(found, bgr=bgr or None)
    except WeightsError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise type(error)(f"{name}: {reason}") from error
    load_tensors(
        model,
        tensors,
        source=name,
        allow=allow,
        device=device or torch.get_default_device(),
        dtype=dtype,
        # Users write to their own files, and training often ends where it began.
        detached=checkpoint_path is not None or (row is not None and row.is_local),
    )


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            f"dtype must be a floating-point type of torch or its name, such as 'float16'; "
            f"got {dtype!r}"
        )
    return found


_HINTS: Final = {
    "pretrained_cfg": "; select the weights by a name with a tag, and change values of the card "
    "with pretrained_cfg_overlay",
    "scriptable": "; leave it out, torch.jit.script accepts networks as they are, except those "
    "with halo attention",
    "exportable": "; leave it out, regnet.export accepts every network as it is",
    "feature_cls": "; leave it out, features_only=True builds the only kind of feature network",
    "bottle_ratio": "; pass a config with bottleneck_ratio, which is the inverse of bottle_ratio",
    "weights": "; the name has the weights, such as "
    "'regnety_016.IMAGENET1K_V2', and pretrained=True loads them",
    "num_labels": "; use num_classes",
    "device_map": "; use device",
    "act_layer": "; pass a config with activation",
}
"""What to use instead of some options of timm."""


def create_pretrained(name: str | Path, **options: Any) -> AnyNet:
    """Call `create` with weights; `owner/name` is a repository unless there is such a path."""
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")
    if isinstance(name, Path):
        name = str(name) if expanded(name).is_file() else f"{FOLDER_PREFIX}{name}"
    if find_upstream(name) is None and ":" not in name:
        path = expanded(name)
        if path.is_dir():
            name = f"{FOLDER_PREFIX}{name}"
        elif name.count("/") == 1 and name[0] not in "./~" and not path.exists():
            name = f"{HUB_PREFIXES[0]}{name}"
    model: AnyNet = create(name, pretrained=True, **options)
    return model


def preprocess(model: nn.Module | str) -> Preprocess:
    """Return the evaluation transform of a model that `create` built, or of a checkpoint's name.

    The weights of a named checkpoint are not downloaded, because its card contains the
    preprocessing.

    Raises:
        ConfigError: the preprocessing of the model is unknown, or its images have channels that
            image files cannot have.
        WeightsError: the name stands for no checkpoint.
    """
    card, channels = None, 3
    if isinstance(model, str):
        source = find_source(model, pretrained=True)
        card, channels = source.card(loaded=True), source.config.in_chans
    elif not isinstance(model, nn.Module):
        raise ConfigError(
            f"preprocess takes a model or the name of one, got {type(model).__name__} {model!r}"
        )
    elif isinstance(inner := unwrapped(model), Described):
        card, channels = inner.card, inner.config.in_chans
    if card is None:
        raise ConfigError(
            "this model has no card that specifies its preprocessing; build a regnet.Preprocess "
            "instead"
        )
    look = card.preprocess.for_channels(channels)
    look.check_files()
    return look
