"""Repositories of one model: a folder, or its copy on the Hub, in timm's layout.

`config.json` says which network it is and how images look, `model.safetensors` has the weights
under timm's names, `README.md` is the model card. timm, and transformers through timm, open what
is written here, if timm has the architecture; ours are read too when they are of other networks.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from regnet.atomic import write_bytes
from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig, config_from_dict
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, RegNetError, WeightsError
from regnet.nn.model import AnyNet, GlobalPool
from regnet.weights.catalog import Checkpoint, Metric, checkpoints
from regnet.weights.files import write_safetensors
from regnet.weights.formats import FORMATS, STEM_WEIGHTS, from_native
from regnet.weights.identify import signature_of_config
from regnet.weights.licenses import License, license_of

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
CARD_FILE: Final = "README.md"

_NOT_IN_TIMM: Final = frozenset(
    name
    for name, variant in VARIANTS.items()
    if variant.family in ("resnet", "resnext", "vanilla")
    or name in ("regnety_cifar", "regnety_10b", "regnety_2560_classy")
)
"""Variants whose name timm does not know, or has for a network with other names of tensors."""

Config = AnyNetConfig | RegNetConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a `config.json` says."""

    config: Config
    architecture: str
    """Name of the variant; "regnet" for any other network."""
    checkpoint: Checkpoint
    """Where the weights are and what is known about them."""
    global_pool: GlobalPool | None = None


# Reading


def read_description(
    path: Path, *, repo: str | None = None, revision: str | None = None
) -> Description:
    """Read a `config.json` of ours, of timm, or of transformers' RegNets.

    Args:
        path: the file; the weights are beside it, unless `repo` names a repository.
        repo: the repository of the Hub that it came from.
        revision: its revision.

    Raises:
        WeightsError: it is not readable, or of a network that cannot be built here.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError("not an object")
        return _description(values, path, repo, revision)
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError),
        *(ArithmeticError, RecursionError, RegNetError),
    ) as error:
        raise WeightsError(f"{path}: no network can be built from it ({error})") from error


def _description(
    values: Mapping[str, Any], path: Path, repo: str | None, revision: str | None
) -> Description:
    read = _read_transformers if values.get("model_type") == "regnet" else _read_timm
    architecture, config, cfg = read(values)
    labels = values.get("label_names") or cfg.get("label_names") or ()
    known = next(
        (r for r in checkpoints().values() if repo and (r.repo or "").lower() == repo.lower()), None
    )
    license = str(cfg.get("license") or "unknown")
    if known and (license == "unknown" or not known.license_terms.permissive):
        license = known.license  # no repository of a publisher's weights talks itself free
    transform = known.preprocess if known and "input_size" not in cfg else None
    pool = {**values, **(values.get("model_args") or {})}.get("global_pool")
    checkpoint = Checkpoint(
        variant=architecture,
        tag=str(cfg.get("tag") or "weights"),
        collection="repository",
        upstream=repo or str(path.parent),
        repo=repo,
        revision=revision,
        file=None if repo else str(path.parent.resolve()),
        format="timm",
        license=license,
        num_classes=config.num_classes,
        labels=tuple(map(str, labels)) if len(labels) == config.num_classes else None,
        preprocess=transform or Preprocess.from_timm(cfg),
        test=_larger(cfg),
        metrics=tuple(Metric(**metric) for metric in cfg.get("metrics", ()))
        or (known.metrics if known and revision is None else ()),
        origin=cfg.get("origin_url"),
    )
    return Description(
        config=config,
        architecture=architecture,
        checkpoint=checkpoint,
        global_pool=pool if pool in ("avg", "max", "") else None,
    )


def _larger(cfg: Mapping[str, Any]) -> Preprocess | None:
    """The larger setting to test at that timm's configs may have."""
    if "test_input_size" not in cfg:
        return None
    crop = {"crop_pct": cfg["test_crop_pct"]} if "test_crop_pct" in cfg else {}
    return Preprocess.from_timm({**cfg, "input_size": cfg["test_input_size"], **crop})


def _read_timm(values: Mapping[str, Any]) -> tuple[str, Config, dict[str, Any]]:
    architecture = str(values.get("regnet_architecture") or values["architecture"])
    cfg: dict[str, Any] = dict(values.get("pretrained_cfg") or {})
    if "regnet_config" in values:
        return architecture, config_from_dict(values["regnet_config"]), cfg
    if architecture not in VARIANTS:
        raise ConfigError(f"there is no variant {architecture!r}")
    changes: dict[str, Any] = {}
    for option, value in (values.get("model_args") or {}).items():
        if option not in _TIMM_OPTIONS:
            raise ConfigError(f"timm's option {option}={value!r} has no counterpart here")
        changes |= _TIMM_OPTIONS[option](value)
    for option in ("num_classes", "in_chans"):
        if values.get(option) is not None:
            changes[option] = values[option]
    return architecture, replace(VARIANTS[architecture].config, **changes), cfg


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
"""Options of timm's models that change the network, as fields of a config; the last three do not
change it."""


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
    return "regnet", config, named


def _alike(a: Config, b: Config) -> bool:
    """Whether two networks of the same widths are the same in what shapes do not show."""
    steps = [[(block.stride, block.shortcut) for block in config.blocks()] for config in (a, b)]
    return a.activation == b.activation and a.stem == b.stem and steps[0] == steps[1]


# Writing


def save_pretrained(
    model: AnyNet,
    folder: str | Path,
    *,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
    card: str | None = None,
) -> None:
    """Write a model as a repository: `config.json`, `model.safetensors`, `README.md`.

    Args:
        model: the model; its license, labels, metrics and source come from its weights.
        folder: made if need be; each file is written whole or not at all.
        license: of these weights, as on the Hub (`apache-2.0`); None: that of the weights that the
            model began with, or else "unknown". A restricted one cannot be replaced by another.
        metrics: accuracies to state, in percent by data set, instead of those of the weights that
            the model began with.
        card: text of the model card below its front matter, instead of ours.

    Raises:
        ConfigError: another license than the restricted one that the weights are under.
        OSError: a file cannot be written.
    """
    terms = _license(model, license)
    values = _describe(model, terms, metrics)
    tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    stored = from_native(tensors, FORMATS["timm"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(stored, folder / WEIGHTS_FILE)
    write_bytes(folder / CONFIG_FILE, (json.dumps(values, indent=2) + "\n").encode())
    write_bytes(folder / CARD_FILE, _card(values, terms, card).encode())


def push_to_hub(
    model: AnyNet,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Add model",
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
    card: str | None = None,
) -> str:
    """Upload a model as a repository of the Hub, as `save_pretrained` writes it.

    Args:
        model: the model.
        repo: `owner/name`; made if there is none.
        private: whether a new repository is private.
        token: of a user who may write there; None: the one who is logged in.
        revision: branch to write to; None: main.
        message: of the commit.
        license: see `save_pretrained`, as for the rest.
        metrics: accuracies to state.
        card: text of the model card.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: another license than the restricted one that the weights are under.
        WeightsError: the Hub refuses.
    """
    import tempfile

    from huggingface_hub import HfApi

    from regnet.weights.transfer import http_client

    api = HfApi(token=token, library_name="regnet")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, license=license, metrics=metrics, card=card)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=message
            )
        except (http_client().HTTPError, ValueError, OSError) as error:
            raise WeightsError(f"cannot write to {repo}: {' '.join(str(error).split())}") from error
    return str(done.commit_url)


def _license(model: AnyNet, asked: str | None) -> License:
    """The license of a model's weights; a restricted one stays."""
    own: str | None = model.pretrained_cfg.get("license")
    if own in (None, "unknown") or license_of(own).permissive or asked in (None, own):
        return license_of(asked or own or "unknown")
    cfg = model.pretrained_cfg
    source = f"{cfg.get('architecture', 'regnet')}.{cfg.get('tag', '')}"
    raise ConfigError(
        f"these weights come from {source.rstrip('.')}, which is under {license_of(own).name}; "
        f"they cannot be published under {asked!r}"
    )


def _describe(model: AnyNet, terms: License, metrics: Mapping[str, float] | None) -> dict[str, Any]:
    cfg = dict(model.pretrained_cfg)
    architecture = cfg.pop("architecture", "regnet")
    labels = cfg.pop("label_names", ())
    transform = Preprocess.from_timm(cfg) if cfg else Preprocess()
    first_conv = next(name for name in STEM_WEIGHTS if name in model.state_dict())
    options: dict[str, Any] = {}
    if model.config.in_chans != 3:
        options["in_chans"] = model.config.in_chans
    if model.head.global_pool != "avg":
        options["global_pool"] = model.head.global_pool
    if metrics is not None:
        cfg.pop("tag", None)  # these figures are of these weights
        cfg["metrics"] = [{"dataset": name, "top1": top1} for name, top1 in metrics.items()]
    same = architecture in VARIANTS and model.config == replace(
        VARIANTS[architecture].config,
        num_classes=model.config.num_classes,
        in_chans=model.config.in_chans,
    )
    return {
        "architecture": architecture if same and architecture not in _NOT_IN_TIMM else "regnet",
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.head.global_pool,
        **({"label_names": list(labels)} if labels else {}),
        "model_args": options,
        "pretrained_cfg": cfg
        | transform.to_timm()
        | {
            "input_size": (model.config.in_chans, *transform.size),
            "license": terms.id,
            "num_classes": model.num_classes,
            "classifier": "head.fc",
            "first_conv": first_conv.removesuffix(".weight"),
        },
        "regnet_architecture": architecture if same else "regnet",
        "regnet_config": model.config.to_dict(),
    }


def _card(values: Mapping[str, Any], terms: License, text: str | None) -> str:
    cfg = values["pretrained_cfg"]
    front: dict[str, Any] = {
        "library_name": "regnet",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "regnet", "timm"],
        "license": terms.hub_id,
    }
    if terms.hub_id == "other":
        front |= {"license_name": terms.id, "license_link": terms.link}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items())]
    metrics = cfg.get("metrics", [])
    # Figures of published weights are not claimed for what became of them.
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"type": metric["dataset"], "name": metric["dataset"]},
            "metrics": [{"type": "accuracy", "value": metric["top1"], "name": "top-1"}],
        }
        for metric in ([] if cfg.get("tag") else metrics)
    ]
    if results:  # JSON is YAML
        index = [{"name": values["architecture"], "results": results}]
        lines.append(f"model-index: {json.dumps(index)}")
    size = "x".join(map(str, cfg["input_size"][1:]))
    body = [
        f"# {values['architecture']}{'.' + cfg['tag'] if cfg.get('tag') else ''}",
        "",
        f"- License: {terms.name}{f' ({terms.link})' if terms.link else ''}",
        f"- Images: {size}, {cfg['interpolation']}, crop {cfg['crop_pct']}",
        f"- Classes: {values['num_classes']}",
    ]
    if cfg.get("origin_url"):
        body.append(f"- Source of the weights: {cfg['origin_url']}")
    whose = f" (the published weights {cfg['tag']}, with which it began)" if cfg.get("tag") else ""
    for metric in metrics:
        at = f" at {metric['image_size']} pixels" if metric.get("image_size") else ""
        body.append(f"- Top-1 on {metric['dataset']}{at}: {metric['top1']} %{whose}")
    body += [
        "",
        "```python",
        "import regnet",
        "",
        'model = regnet.AnyNet.from_pretrained("OWNER/NAME")',
        "```",
    ]
    return "\n".join([*lines, "---", *([text] if text else body)]) + "\n"
