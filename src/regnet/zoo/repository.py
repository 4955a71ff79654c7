"""Repositories of one model, read: a folder, or its copy on the Hub.

`config.json` says which network it is and how its images look; `model.safetensors` has the weights.
Read are the layouts of this library, of timm, and of transformers' RegNets.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from regnet import documents
from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig, config_from_dict
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, RegNetError, WeightsError, unknown
from regnet.weights.card import OWN, Card
from regnet.weights.catalog import Checkpoint, checkpoints
from regnet.weights.identify import signature_of_config
from regnet.weights.integrity import as_sha256
from regnet.zoo.source import Source

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
PROCESSOR_FILE: Final = "preprocessor_config.json"
"""Where transformers says how images look."""
TRANSFORMERS: Final = "regnet"
"""What transformers calls its RegNets, in `model_type`."""
WEIGHTS_DIGEST: Final = "regnet_weights_sha256"
"""In a `config.json` of this library, the digest of the weights beside it."""

Config = AnyNetConfig | RegNetConfig


def read_repository(path: Path, *, repo: str | None = None, revision: str | None = None) -> Source:
    """Read a `config.json`.

    Args:
        path: the file; the weights are beside it, unless `repo` names a repository.
        repo: the repository of the Hub that the file came from.
        revision: its revision.

    Raises:
        WeightsError: the file cannot be read, or describes a network that cannot be built here.
    """
    try:
        values = documents.load(path, "the config of a model")
        if not isinstance(values, dict):
            raise TypeError("not an object")
        if any(key.startswith("regnet_") for key in values):  # of this library
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
        architecture, config, cfg = _read_transformers(values)
        cfg |= _read_processor(path.with_name(PROCESSOR_FILE))
    else:
        architecture, config, cfg = _read_timm(values)
    card = Card.from_timm(
        {**cfg, "label_names": values.get("label_names") or cfg.get("label_names")},
        architecture=architecture,
    )
    known = next(
        (r for r in checkpoints().values() if repo and (r.repo or "").lower() == repo.lower()), None
    )
    license = card.license or "unknown"
    if known and (license == "unknown" or not known.license_terms.permissive):
        license = known.license  # a repository cannot lift the restrictions of known weights
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


def _read_timm(values: Mapping[str, Any]) -> tuple[str, Config, dict[str, Any]]:
    architecture = str(values.get("regnet_architecture") or values["architecture"])
    cfg: dict[str, Any] = dict(values.get("pretrained_cfg") or {})
    if "regnet_config" in values:
        return architecture, config_from_dict(values["regnet_config"]), cfg
    if architecture not in VARIANTS:
        raise ConfigError(
            unknown("variant", architecture, VARIANTS, listing="`regnet list` lists all")
        )
    changes: dict[str, Any] = {}
    for option, value in (values.get("model_args") or {}).items():
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
"""timm's ways to pool, of which the fast ones give the same."""

_TIMM_OPTIONS: Final[Mapping[str, Callable[[Any], dict[str, Any]]]] = {
    "act_layer": lambda value: {"activation": value},
    "bottle_ratio": lambda value: {"bottleneck_ratio": 1 / value},
    "downsample": lambda value: {"shortcut": "avg_pool" if value == "avg" else value},
    "in_chans": lambda value: {"in_chans": value},
    "linear_out": lambda value: {"block": "linear_bottleneck"} if value else {},
    "num_classes": lambda value: {"num_classes": value},
    "num_features": lambda value: {"head_width": value},
    "output_stride": lambda value: {"output_stride": value},
    "se_ratio": lambda value: {"se_ratio": value},
    "stem_width": lambda value: {"stem_width": value},
    "drop_rate": lambda _: {},
    "drop_path_rate": lambda _: {},
    "global_pool": lambda _: {},
}
"""Options of timm's models as fields of a config; the last three do not change the network."""


def _read_transformers(values: Mapping[str, Any]) -> tuple[str, Config, dict[str, Any]]:
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
        # Inside squeeze-excitation it is ReLU, whatever the other layers have.
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
    """Whether two networks of the same widths also agree in what shapes do not show."""
    steps = [[(block.stride, block.shortcut) for block in config.blocks()] for config in (a, b)]
    acts = [(config.activation, config.se_activation or config.activation) for config in (a, b)]
    return acts[0] == acts[1] and a.stem == b.stem and steps[0] == steps[1]


def _read_processor(path: Path) -> dict[str, Any]:
    """What transformers' image processor does, in timm's words; nothing where there is none."""
    try:
        values = documents.load(path, "the config of an image processor")
    except FileNotFoundError:
        return {}
    if values.get("do_resize", True) is False:
        raise ConfigError(f"{path.name}: do_resize=false has no counterpart here")
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
    side, crop = size.get("shortest_edge"), values.get("crop_size")
    if side is None:  # both sides, whatever the shape of the image
        found |= {"input_size": [3, size["height"], size["width"]], "crop_pct": 1.0}
        found["crop_mode"] = "squash"
    elif crop is not None and values.get("do_center_crop", True):
        height, width = (
            (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
        )
        found |= {"input_size": [3, height, width], "crop_pct": min(height, width) / side}
    elif side < 384:
        found |= {"input_size": [3, side, side], "crop_pct": values.get("crop_pct", 224 / 256)}
    else:
        found |= {"input_size": [3, side, side], "crop_pct": 1.0, "crop_mode": "squash"}
    return {name: value for name, value in found.items() if value is not None}
