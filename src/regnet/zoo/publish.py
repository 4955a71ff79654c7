"""Write a model as a repository, in a folder or on the Hub, in timm's layout.

`config.json` describes the network and its preprocessing, `model.safetensors` contains the weights
under timm's names, and `README.md` is the model card. If timm has the architecture, then timm, and
transformers by way of timm, can open the repository.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from regnet import digest, documents
from regnet.atomic import write_bytes
from regnet.data.preprocess import Preprocess
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, WeightsError
from regnet.nn.layers import DropPath
from regnet.nn.model import AnyNet
from regnet.nn.views import is_plain
from regnet.paths import expanded
from regnet.weights.card import OWN, Card, Metric
from regnet.weights.files import write_safetensors
from regnet.weights.formats import FORMATS, from_native, plain_classifier
from regnet.weights.licenses import License, license_of
from regnet.zoo.loading import is_finite
from regnet.zoo.repository import CONFIG_FILE, WEIGHTS_DIGEST, WEIGHTS_FILE

README: Final = "README.md"

_NOT_IN_TIMM: Final = frozenset(
    name
    for name, variant in VARIANTS.items()
    if variant.family in ("resnet", "resnext", "vanilla")
    or name in ("regnety_cifar", "regnety_10b", "regnety_2560_classy")
)
"""Variants that timm does not have, or has with other tensor names."""


def save_pretrained(
    model: AnyNet,
    save_directory: str | Path,
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
    readme: str | None = None,
    **push_options: Any,
) -> None:
    """Write a model as a repository: `config.json`, `model.safetensors` and `README.md`.

    Args:
        model: the model. Its license, labels, metrics and source are those of the weights that it
            was created with.
        save_directory: the folder, which is created if necessary. Each file is written completely
            or not at all.
        push_to_hub: upload the model afterwards.
        repo_id: repository to upload to, `owner/name`; None: the name of the folder, in your own
            account.
        license: license of these weights, as on the Hub (`apache-2.0`). None: that of the weights
            that the model was created with, or "unknown" if there were none. A restrictive license
            cannot be replaced by another.
        metrics: accuracies to state, in percent by data set, instead of those of the weights that
            the model was created with.
        readme: text of the model card (`README.md`) below its front matter, instead of a generated
            one.
        **push_options: the other options of `push_to_hub`.

    Raises:
        ConfigError: the license of the weights is restrictive and would be replaced, a module of
            the network was changed in a way that no config describes, a weight is not finite, or a
            metric is not a number. Existing files are then left as they are.
        WeightsError: the Hub refuses the upload.
        OSError: a file cannot be written.
    """
    if not push_to_hub and (repo_id or push_options):
        given = ", ".join([*(("repo_id",) if repo_id else ()), *push_options])
        raise ConfigError(f"{given}: only for uploads; add push_to_hub=True, or leave it out")
    tensors = _described_tensors(model)
    terms = _license(model, license)
    card = _published_card(model, terms, metrics)
    stored = from_native(tensors, FORMATS["timm"])
    # All that can fail because of the model comes before the first file is replaced.
    described = _describe(model, card)
    json.dumps(described)
    text = _readme(model, card, terms, readme)
    folder = expanded(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(stored, folder / WEIGHTS_FILE)
    # The digest ties the two files together, so that `regnet.zoo.repository` notices a mix-up.
    described[WEIGHTS_DIGEST] = digest.of_file(folder / WEIGHTS_FILE)
    config = json.dumps(documents.sealed(described), indent=2)
    write_bytes(folder / CONFIG_FILE, f"{config}\n".encode())
    write_bytes(folder / README, text.encode())
    if push_to_hub:
        name = repo_id or folder.resolve().name
        _push(model, name, license=license, metrics=metrics, readme=readme, **push_options)


def push_to_hub(
    model: AnyNet,
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
    create_pr: bool = False,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
    readme: str | None = None,
) -> str:
    """Upload a model as a repository of the Hub, as `save_pretrained` writes it.

    Args:
        model: the model.
        repo_id: `owner/name`, or a name in your own account; created if it does not exist.
        private: whether a new repository is private.
        token: token of a user who may write there; None: that of the user who is logged in.
        revision: branch to write to; None: main.
        commit_message: message of the commit.
        create_pr: open a pull request instead of writing to the branch.
        license: see `save_pretrained`.
        metrics: see `save_pretrained`.
        readme: see `save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: as in `save_pretrained`.
        WeightsError: the Hub refuses the upload.
    """
    import tempfile

    from huggingface_hub import HfApi

    from regnet.hub.transfer import http_client

    api = HfApi(token=token, library_name="regnet")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, license=license, metrics=metrics, readme=readme)
        try:
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )
        except (http_client().HTTPError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"cannot write to {repo_id}: {reason}") from error
    return str(done.commit_url)


_push = push_to_hub  # in `save_pretrained`, an option hides the name push_to_hub


def _described_tensors(model: AnyNet) -> dict[str, Tensor]:
    """Return the tensors of a model whose modules are those of its config.

    Raises:
        ConfigError: a module differs, so that a folder would load as another network, or a tensor
            is not finite, so that it would not load.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not is_plain(value):
            raise ConfigError(
                f"{name} is no ordinary tensor, because the model is quantized, sharded or on the "
                "device 'meta'; save the model before that, or with torch.save"
            )
    tensors = {name: value.detach().cpu() for name, value in state.items()}
    for name, value in tensors.items():
        if not is_finite(value):
            raise ConfigError(
                f"{name} has values that are not finite, so that the folder could not be opened; "
                "keep such weights with torch.save(model.state_dict(), ...)"
            )
    config = model.config
    with torch.device("meta"):
        twin = AnyNet(config, global_pool=getattr(model.head, "global_pool", "avg"))
    found = _shapes(plain_classifier(tensors)) | _layers(model)
    meant = _shapes(twin.state_dict()) | _layers(twin)
    for name in meant | found:
        if found.get(name) != meant.get(name):
            raise ConfigError(
                f"{name} was changed in a way that no config describes; save such a network with "
                "torch.save(model.state_dict(), ...), together with the code that builds it"
            )
    return plain_classifier(tensors)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(tuple(value.shape)) for name, value in tensors.items()}


def _layers(model: AnyNet) -> dict[str, str]:
    """Return what each layer computes, as text, without layers that act only in training."""
    inert = (nn.Dropout, nn.Identity, DropPath)
    found = {"head": type(model.head).__name__}
    for name, layer in model.named_modules():
        if hasattr(layer, "downsample"):  # a block without a shortcut has None
            found[f"{name}.downsample"] = "none" if layer.downsample is None else "shortcut"
        if any(layer.children()) or isinstance(layer, inert):
            continue
        inside = name.startswith("head.fc.") and isinstance(layer, nn.Linear)
        text = repr(layer)
        if isinstance(layer, BatchNorm):  # neither synchronization nor momentum matters
            text = f"{layer.num_features} {layer.eps} {layer.affine} {layer.track_running_stats}"
        found["head.fc" if inside else name] = text
    return found


def _license(model: AnyNet, asked: str | None) -> License:
    """Return the license to publish a model's weights under; a restrictive one is not replaced."""
    own = model.card.license if model.card else None
    if own in (None, "unknown") or license_of(own).permissive or asked in (None, own):
        return license_of(asked or own or "unknown")
    assert model.card is not None, "it has a license"
    raise ConfigError(
        f"these weights come from {model.card.name}, which is under {license_of(own).name}; "
        f"they cannot be published under {asked!r}"
    )


def _published_card(model: AnyNet, terms: License, metrics: Mapping[str, float] | None) -> Card:
    card = replace(model.card or Card(), license=terms.id)
    if metrics is None:
        return card
    own = tuple(
        Metric(dataset=str(name), top1=_percent(name, top1)) for name, top1 in metrics.items()
    )
    # Without a tag, the card no longer attributes its metrics to the published weights.
    return replace(card, metrics=own, tag=None)


def _percent(name: str, given: Any) -> float:
    """Return an accuracy as a float; evaluation loops also give NumPy numbers and tensors."""
    try:
        found = math.nan if isinstance(given, str) else float(given)
    except (TypeError, ValueError, RuntimeError):
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"metrics must be numbers in percent, got {given!r} for {name}")
    return found


def _describe(model: AnyNet, card: Card) -> dict[str, Any]:
    """Return the content of `config.json`."""
    cfg = card.to_timm(model.config)
    labels = cfg.pop("label_names", ())
    architecture = cfg.pop("architecture")
    options: dict[str, Any] = {}
    if model.config.in_chans != 3:
        options["in_chans"] = model.config.in_chans
    if model.head.global_pool != "avg":
        options["global_pool"] = model.head.global_pool
    same = architecture in VARIANTS and model.config == replace(
        VARIANTS[architecture].config,
        num_classes=model.config.num_classes,
        in_chans=model.config.in_chans,
    )
    return {
        "architecture": architecture if same and architecture not in _NOT_IN_TIMM else OWN,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.head.global_pool,
        **({"label_names": list(map(str, labels))} if labels else {}),
        "model_args": options,
        "pretrained_cfg": cfg,
        "regnet_architecture": architecture if same else OWN,
        "regnet_config": model.config.to_dict(),
    }


def _readme(model: AnyNet, card: Card, terms: License, text: str | None) -> str:
    """Return the model card for the Hub: its front matter and a text."""
    front: dict[str, Any] = {
        "library_name": "regnet",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "regnet", "timm"],
        "license": terms.hub_id,
    }
    if terms.hub_id == "other":
        front |= {"license_name": terms.id, "license_link": terms.link}
    # A card with a tag has the accuracies of published weights, which training may have changed.
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"type": metric.dataset, "name": metric.dataset},
            "metrics": [{"type": "accuracy", "value": metric.top1, "name": "top-1"}],
        }
        for metric in (() if card.tag else card.metrics)
    ]
    if results:
        front["model-index"] = [{"name": card.architecture, "results": results}]
    # The front matter is YAML, of which JSON is a subset.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"]
    return "\n".join([*lines, text or _text(model, card, terms)]) + "\n"


def _text(model: AnyNet, card: Card, terms: License) -> str:
    facts = [
        f"License: {terms.name}{f' ({terms.link})' if terms.link else ''}",
        images_line(card.preprocess),
        f"Classes: {model.num_classes}",
    ]
    if card.origin:
        facts.append(f"Source of the weights: {card.origin}")
    whose = f" (of the published weights {card.tag}, before any later training)" if card.tag else ""
    for metric in card.metrics:
        at = f" at {metric.image_size} pixels" if metric.image_size else ""
        facts.append(f"Top-1 on {metric.dataset}{at}: {metric.top1} %{whose}")
    return card_text(card.name, *facts)


def card_text(title: str, *facts: str) -> str:
    """Return the text of a model card: a title, a list of facts, and how to open the model."""
    return "\n".join(
        [
            f"# {title}",
            "",
            *(f"- {fact}" for fact in facts),
            "",
            "Replace OWNER/NAME by the repository of this model, or by a folder that contains it:",
            "",
            "```python",
            "import regnet",
            "",
            'model = regnet.AnyNet.from_pretrained("OWNER/NAME")',
            "```",
        ]
    )


def images_line(look: Preprocess) -> str:
    """Return the line of a model card that describes the preprocessing."""
    height, width = look.size
    return f"Images: {height}x{width} pixels, {look.interpolation}, crop {look.crop_pct}"
