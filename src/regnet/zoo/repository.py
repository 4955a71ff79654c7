"""Read the repository of a model: a folder, or its copy on the Hub.

`config.json` describes the network and its preprocessing, and `model.safetensors` contains the
weights. The supported layouts are those of this library, of timm, and of transformers' RegNets.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from regnet import documents
from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig, config_from_dict
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, RegNetError, WeightsError, printable, unknown
from regnet.weights.card import OWN, Card
from regnet.weights.catalog import Checkpoint, checkpoints
from regnet.weights.identify import signature_of_config
from regnet.weights.integrity import as_sha256
from regnet.zoo.source import Source

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
PROCESSOR_FILE: Final = "preprocessor_config.json"
"""The file in which transformers describes the preprocessing."""
TRANSFORMERS: Final = "regnet"
"""The `model_type` of transformers' RegNets."""
WEIGHTS_DIGEST: Final = "regnet_weights_sha256"
"""The key, in a `config.json` of this library, of the digest of the weights beside it."""

Config = AnyNetConfig | RegNetConfig

_log = logging.getLogger(__name__)


def read_repository(path: Path, *, repo: str | None = None, revision: str | None = None) -> Source:
    """Read the `config.json` of a repository.

    Args:
        path: the file; the weights are beside it, unless `repo` names a repository.
        repo: the repository of the Hub that the file came from; None: a local folder.
        revision: revision of that repository.

    Raises:
        WeightsError: the file cannot be read, or describes a network that cannot be built here.
    """
    try:
        values = documents.load(path, "the config of a model")
        if not isinstance(values, dict):
            raise TypeError("not an object")
        if any(key.startswith("regnet_") for key in values):  # only this library has such keys
            values = documents.unsealed(values, path, "a model of this library")
        return _source(values, path, repo, revision)
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError),
        *(ArithmeticError, RecursionError, RegNetError),
    ) as error:
        raise WeightsError(f"{path}: no network can be built from it ({error})") from error


def _source(
    values: Mapping[str, Any], path: Path, repo: str | None, revision: str | None
) -> Source:
    if values.get("model_type") == TRANSFORMERS:
        architecture, config, cfg = _read_transformers(values, path)
        cfg |= _read_processor(path.with_name(PROCESSOR_FILE))
    else:
        architecture, config, cfg = _read_timm(values, path)
    card = Card.from_timm(
        {**cfg, "label_names": values.get("label_names") or cfg.get("label_names")},
        architecture=architecture,
    )
    known = next(
        (r for r in checkpoints().values() if repo and (r.repo or "").lower() == repo.lower()), None
    )
    license = card.license or "unknown"
    if known and (license == "unknown" or not known.license_terms.permissive):
        # A repository cannot lift the restrictions of weights that the table lists.
        license = known.license
    pool = {**values, **(values.get("model_args") or {})}.get("global_pool")
    if pool is not None and pool not in _POOLS:
        raise ConfigError(f"timm's global_pool={pool!r} has no counterpart here")
    sha256 = as_sha256(values.get(WEIGHTS_DIGEST))
    if WEIGHTS_DIGEST in values and sha256 is None:
        raise ConfigError(f"{WEIGHTS_DIGEST} is no SHA-256")
    checkpoint = Checkpoint(
        variant=architecture,
        tag=card.tag or "weights",
        collection="repository",
        upstream=repo or str(path.parent),
        repo=repo,
        revision=revision,
        file=None if repo else str(path.parent.resolve() / (WEIGHTS_FILE if sha256 else "")),
        sha256=sha256,
        format="timm",
        license=license,
        num_classes=config.num_classes,
        labels=card.labels if len(card.labels) == config.num_classes else None,
        preprocess=known.preprocess if known and "input_size" not in cfg else card.preprocess,
        test=card.larger,
        metrics=card.metrics or (known.metrics if known and revision is None else ()),
        origin=card.origin,
    )
    return Source(
        config=config,
        architecture=architecture,
        checkpoint=checkpoint,
        global_pool=None if pool is None else _POOLS[pool],
    )


def _read_timm(values: Mapping[str, Any], path: Path) -> tuple[str, Config, dict[str, Any]]:
    architecture = str(values.get("regnet_architecture") or values["architecture"])
    cfg: dict[str, Any] = dict(values.get("pretrained_cfg") or {})
    if not cfg and "regnet_config" not in values:  # early versions of timm had no such part
        cfg = {key: value for key, value in values.items() if key in _TIMM_CFG}
        if "labels" in values:
            cfg["label_names"] = values["labels"]
        values = {key: value for key, value in values.items() if key not in {*cfg, "labels"}
                  or key in _TIMM_FIELDS}  # fmt: skip
    if "regnet_config" in values:
        return architecture, config_from_dict(values["regnet_config"]), cfg
    if architecture not in VARIANTS:
        raise ConfigError(
            unknown("variant", architecture, VARIANTS, listing="`regnet list` lists all")
        )
    if cfg.get("crop_mode") not in (None, "center", "squash"):
        raise ConfigError(f"timm's crop_mode={cfg['crop_mode']!r} has no counterpart here")
    if cfg.get("fixed_input_size"):
        raise ConfigError("timm's fixed_input_size has no counterpart here")
    changes: dict[str, Any] = {}
    options = dict(values.get("model_args") or {})
    _account(path, values, _TIMM_FIELDS)
    _account(path, cfg, _TIMM_CFG)
    _account(path, options, dict.fromkeys(_TIMM_OPTIONS, USED) | _TIMM_TRAINING)
    for option, value in options.items():
        if option in _TIMM_TRAINING:
            continue
        if option not in _TIMM_OPTIONS:
            raise ConfigError(f"timm's option {option}={value!r} has no counterpart here")
        changes |= _TIMM_OPTIONS[option](value)
    for option in ("num_classes", "in_chans"):
        if values.get(option) is not None:
            changes[option] = values[option]
    return architecture, replace(VARIANTS[architecture].config, **changes), cfg


_POOLS: Final[Mapping[str, Literal["avg", "max", ""]]] = {
    "avg": "avg", "fast": "avg", "fastavg": "avg", "max": "max", "fastmax": "max", "": "",
}  # fmt: skip
"""timm's names of pools; the fast ones compute the same values."""

_TIMM_OPTIONS: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "act_layer": lambda value: {"activation": value},
    "bottle_ratio": lambda value: {"bottleneck_ratio": 1 / value},
    "depth": lambda value: {"depth": value},
    "downsample": lambda value: {"shortcut": "avg_pool" if value == "avg" else value},
    "global_pool": lambda _: {},  # an option of the head, which `_source` reads
    "group_size": lambda value: {"group_width": value},
    "in_chans": lambda value: {"in_chans": value},
    "linear_out": lambda value: {"block": "linear_bottleneck"} if value else {},
    "num_classes": lambda value: {"num_classes": value},
    "num_features": lambda value: {"head_width": value},
    "output_stride": lambda value: {"output_stride": value},
    "se_ratio": lambda value: {"se_ratio": value},
    "stem_width": lambda value: {"stem_width": value},
    "w0": lambda value: {"w0": value},
    "wa": lambda value: {"wa": value},
    "wm": lambda value: {"wm": value},
}
"""timm's model options, each with the fields of a config that it sets."""

USED: Final = ""
"""Marks a field that is used; any other text is the reason why a field is not."""
_ORIGIN: Final = "it describes the origin of the weights"
_DERIVED: Final = "it follows from the network"
_TRAINING: Final = "it matters only in training"

_TIMM_TRAINING: Final = dict.fromkeys(
    ("drop_rate", "drop_path_rate", "zero_init_last", "pretrained"), _TRAINING
)

_TIMM_FIELDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("architecture", "num_classes", "in_chans", "global_pool", "model_args", "label_names"),
        USED,
    ),
    "pretrained_cfg": USED,
    "num_features": _DERIVED,
    "label_descriptions": "it describes the classes at length",
    **dict.fromkeys(("library_name", "timm_version", "license", "tags"), _ORIGIN),
}
"""Each known field of a timm `config.json`: `USED`, or the reason why it has no effect."""

_TIMM_CFG: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            *("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std"),
            *("test_input_size", "test_crop_pct", "label_names", "license", "tag", "origin_url"),
            *("architecture", "hf_hub_id", "url", "metrics", "fixed_input_size"),
        ),
        USED,
    ),
    **dict.fromkeys(
        ("pool_size", "first_conv", "classifier", "min_input_size", "num_classes"), _DERIVED
    ),
    **dict.fromkeys(
        (
            *("paper_ids", "paper_name", "notes", "source", "file", "hf_hub_filename"),
            *("state_dict", "custom_load", "label_descriptions"),
        ),
        _ORIGIN,
    ),
}
"""The same for the fields of its `pretrained_cfg`."""

_TRANSFORMERS_FIELDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            *("model_type", "architectures", "depths", "hidden_sizes", "groups_width"),
            *("layer_type", "embedding_size", "hidden_act", "num_channels", "id2label"),
            *("downsample_in_first_stage", "problem_type", "quantization_config"),
        ),
        USED,
    ),
    "label2id": _DERIVED,
    "num_labels": _DERIVED,
    "initializer_range": _TRAINING,
    **dict.fromkeys(("torch_dtype", "dtype"), "`create` takes the type of the weights as dtype="),
    **dict.fromkeys(("transformers_version", "_name_or_path", "name_or_path"), _ORIGIN),
    **dict.fromkeys(
        ("return_dict", "use_return_dict", "output_hidden_states", "output_attentions"),
        "it changes the form of transformers' own outputs",
    ),
}
"""The same for the fields of a transformers `config.json`."""

_PROCESSOR_FIELDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            *("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_pad", "resample"),
            *("rescale_factor", "image_mean", "image_std", "size", "crop_size", "crop_pct"),
            *("do_flip_channel_order", "do_reduce_labels"),
        ),
        USED,
    ),
    "do_convert_rgb": "images are always read as RGB",
    **dict.fromkeys(
        ("image_processor_type", "feature_extractor_type", "processor_class", "return_tensors"),
        "it names a class of transformers",
    ),
    **dict.fromkeys(("data_format", "input_data_format", "device"), "the caller decides it"),
}
"""The same for the fields of a `preprocessor_config.json`."""


def _account(path: Path, values: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Log the fields of a config that are not used, with the reason; empty unknown ones are not."""
    for name, value in values.items():
        reason = known.get(name)
        if reason is None and value not in (None, False, "", [], {}) and name[:7] != "regnet_":
            _log.warning(
                "%s: %s=%s is unknown and has no effect", path, name, printable(str(value))
            )
        elif reason:
            _log.info("%s: %s is not used: %s", path, name, reason)


def _read_transformers(values: Mapping[str, Any], path: Path) -> tuple[str, Config, dict[str, Any]]:
    plain = {"problem_type": "single_label_classification", "quantization_config": None}
    for name, usual in plain.items():
        if values.get(name) not in (None, usual):
            raise ConfigError(f"transformers' {name}={values[name]!r} has no counterpart here")
    _account(path, values, _TRANSFORMERS_FIELDS)
    labels = dict(values.get("id2label") or {})
    heads = any("ImageClassification" in name for name in values.get("architectures") or ())
    stages = tuple(
        StageConfig(
            depth=depth,
            width=width,
            group_width=values["groups_width"],
            stride=1 if number == 0 and not values.get("downsample_in_first_stage", True) else 2,
        )
        for number, (depth, width) in enumerate(
            zip(values["depths"], values["hidden_sizes"], strict=True)
        )
    )
    if any(s.width > s.group_width and s.width % s.group_width for s in stages):
        raise ConfigError("its group width does not divide the widths of its stages")
    config: Config = AnyNetConfig(
        stages=stages,
        stem_width=values.get("embedding_size", 32),
        se_ratio=0.25 if values.get("layer_type", "y") == "y" else 0.0,
        activation=values.get("hidden_act", "relu"),
        # transformers uses ReLU inside squeeze-excitation, regardless of the other activations.
        se_activation=None if values.get("hidden_act", "relu") == "relu" else "relu",
        in_chans=values.get("num_channels", 3),
        num_classes=(len(labels) or 2) if heads else 0,  # 2 is transformers' own default
    )
    named = {"label_names": [labels[key] for key in sorted(labels, key=int)]}
    same = signature_of_config(config)
    for variant in VARIANTS.values():
        if signature_of_config(variant.config) == same and _alike(variant.config, config):
            sizes: dict[str, Any] = {
                "num_classes": config.num_classes,
                "in_chans": config.in_chans,
            }
            return variant.name, replace(variant.config, **sizes), named
    return OWN, config, named


def _alike(a: Config, b: Config) -> bool:
    """Whether two networks with the same tensor shapes also agree in strides and activations."""
    steps = [[(block.stride, block.shortcut) for block in config.blocks()] for config in (a, b)]
    acts = [(config.activation, config.se_activation or config.activation) for config in (a, b)]
    return acts[0] == acts[1] and a.stem == b.stem and steps[0] == steps[1]


_PLAIN: Final = {
    "do_resize": True,
    "do_rescale": True,
    "do_pad": False,
    "do_flip_channel_order": False,
    "do_reduce_labels": False,
}
"""Steps of an image processor, and whether this library always does them (True) or never."""


def _read_processor(path: Path) -> dict[str, Any]:
    """Return the preprocessing of a transformers image processor, under timm's keys.

    The result is empty if the file does not exist.
    """
    try:
        values = documents.load(path, "the config of an image processor")
    except FileNotFoundError:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path.name}: not the config of an image processor")
    for name, plain in _PLAIN.items():
        if values.get(name, plain) not in (plain, None):
            raise ConfigError(f"{path.name}: {name}={values[name]!r} has no counterpart here")
    _account(path, values, _PROCESSOR_FIELDS)
    if (factor := values.get("rescale_factor", 1 / 255)) != 1 / 255:
        raise ConfigError(f"{path.name}: rescale_factor={factor} has no counterpart here")
    plain = values.get("do_normalize", True) is False
    found: dict[str, Any] = {
        "mean": [0.0] * 3 if plain else values.get("image_mean"),
        "std": [1.0] * 3 if plain else values.get("image_std"),
        "interpolation": Image.Resampling(values.get("resample", 3)).name.lower(),
    }
    size = values.get("size", 224)
    size = size if isinstance(size, Mapping) else {"shortest_edge": size}
    if not ("shortest_edge" in size or {"height", "width"} <= size.keys()):
        raise ConfigError(f"{path.name}: size={values['size']!r} has no counterpart here")
    side = size.get("shortest_edge")
    crop = values.get("crop_size") if values.get("do_center_crop", True) else None
    if crop is not None:
        height, width = (
            (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
        )
    if side is None:  # both sides are given, so the image is squashed to them
        sides = size["height"], size["width"]
        height, width = sides if crop is None else (height, width)
        if height * sides[1] != width * sides[0]:
            raise ConfigError(
                f"{path.name}: crop_size={crop!r} of size={size!r} has no counterpart here, since "
                "it keeps another share of the height than of the width"
            )
        found |= {"input_size": [3, height, width], "crop_pct": height / sides[0]}
        found["crop_mode"] = "squash"
    elif crop is not None:
        found |= {"input_size": [3, height, width], "crop_pct": min(height, width) / side}
    # Without a center crop, the rule is ConvNextImageProcessor's: below 384 pixels the image is
    # resized by crop_pct and cropped, from 384 on it is squashed.
    elif side < 384:
        found |= {"input_size": [3, side, side], "crop_pct": values.get("crop_pct", 224 / 256)}
    else:
        found |= {"input_size": [3, side, side], "crop_pct": 1.0, "crop_mode": "squash"}
    return {name: value for name, value in found.items() if value is not None}
