"""Resolve a name to its source: variants, tags, aliases, repositories, folders, config files."""

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from regnet import documents
from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_json
from regnet.design.variants import VARIANTS, Variant
from regnet.errors import ConfigError, NotFoundError, WeightsError
from regnet.paths import expanded
from regnet.weights.catalog import Checkpoint, checkpoints_of, find_checkpoint, find_upstream
from regnet.weights.identify import variants_with
from regnet.zoo.names import find_variant
from regnet.zoo.repository import CONFIG_FILE, PROCESSOR_FILE, TRANSFORMERS, read_repository
from regnet.zoo.source import Source

if TYPE_CHECKING:
    from regnet.weights.download import Fetch

HUB_PREFIXES: Final = ("hf-hub:", "hf_hub:")
FOLDER_PREFIX: Final = "local-dir:"
CONFIG_SUFFIX: Final = ".json"
WEIGHTS_SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".pyth", ".bin", ".torch", ".tar")
"""Endings that names of models do not have."""
EXPORTED_SUFFIXES: Final = (".onnx", ".xml", ".pt2")
"""Of the files that `regnet.export` writes, which `regnet.engines.files` opens."""

_log = logging.getLogger(__name__)


def find_source(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool,
    revision: str | None = None,
    how: "Fetch | None" = None,
) -> Source:
    """Return what a name or a config stands for.

    Args:
        name: a variant, an alias, `variant.tag`, what a publisher calls a checkpoint
            (`facebook/regnet-y-016`), `hf-hub:owner/name`, `hf-hub:owner/name@revision`,
            `local-dir:folder`, the path of a folder or of a file of weights, the file of a config
            (.json), or a config. Names of the zoo come before paths; `./name` is a path always.
        pretrained: whether weights are wanted: without a tag, the variant's default.
        revision: of the repository that holds the weights; None: as in the name or the table.
        how: how to get the description of a repository.

    Raises:
        ConfigError: the name is not known, or the file holds no config.
        WeightsError: there are no such weights, or they cannot be had.
        OSError: the file cannot be read.
    """
    if isinstance(name, AnyNetConfig | RegNetConfig):
        if pretrained:
            raise WeightsError(
                "a config of your own has no published weights; use pretrained=False, or "
                "checkpoint_path= with a file"
            )
        return Source(config=name)
    if not isinstance(name, str):
        raise ConfigError(
            f"a model is named by text or given as a config, got {type(name).__name__}; "
            "for a path, use str(path)"
        )
    if is_config_file(name):
        return find_source(_read_config(name), pretrained=pretrained)
    for prefix in HUB_PREFIXES:
        if name.lower().startswith(prefix):
            return _repository(name[len(prefix) :], revision, how)
    if name.lower().startswith(FOLDER_PREFIX):
        if revision is not None:
            raise ConfigError("a folder has no revisions; leave revision out")
        return _folder(expanded(name[len(FOLDER_PREFIX) :]))
    try:
        variant, row = find_model(name)
    except (ConfigError, WeightsError):
        path = expanded(name)
        if not name or not path.exists():
            if len(path.parts) > 1 or path.suffix.lower() in WEIGHTS_SUFFIXES:
                hub = f"; on the Hub it is hf-hub:{name}" if name.count("/") == 1 else ""
                raise NotFoundError(f"there is no folder or file {path}{hub}") from None
            raise
        if revision is not None:
            raise ConfigError(f"{path} has no revisions; leave revision out") from None
        if is_exported(name):
            raise ConfigError(
                f"{path} is an exported file, which has no modules to train or to change; predict, "
                "evaluate, bench and info open it, anything else wants what it was made from"
            ) from None
        return _folder(path) if path.is_dir() else _weights_file(path)
    if row is None and pretrained:
        row = find_checkpoint(variant.name)
    if row and revision is not None:
        if row.repo is None:
            raise ConfigError(f"{row.id} lies in no repository of the Hub; leave revision out")
        # The SHA-256 in the table is that of the table's own revision.
        row = replace(row, revision=revision, sha256=None, size=None)
    return Source(config=variant.config, architecture=variant.name, checkpoint=row)


def find_model(name: str) -> tuple[Variant, Checkpoint | None]:
    """Return the variant that a name of the zoo stands for, and the checkpoint that it names.

    Raises:
        ConfigError: there is no such variant.
        WeightsError: there are no such weights.
    """
    if row := find_upstream(name):
        return VARIANTS[row.variant], row
    variant, tag = find_variant(name)
    return variant, find_checkpoint(variant.name, tag) if tag else None


def is_config_file(name: str) -> bool:
    """Return whether a name stands for the file of a config."""
    return name.lower().endswith(CONFIG_SUFFIX) and not is_prefixed(name)


def is_exported(name: str) -> bool:
    """Return whether a name stands for a file that `regnet.export` writes."""
    return name.lower().endswith(EXPORTED_SUFFIXES) and not is_prefixed(name)


def is_prefixed(name: str) -> bool:
    """Return whether a name says by its beginning that it is a repository's or a folder's."""
    return name.lower().startswith((*HUB_PREFIXES, FOLDER_PREFIX))


def _read_config(name: str) -> AnyNetConfig | RegNetConfig:
    text = documents.text_of(expanded(name), "a config")
    try:
        return config_from_json(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _repository(name: str, revision: str | None, how: "Fetch | None") -> Source:
    from regnet.weights.download import Fetch, fetch_file  # they bring torch, which listing avoids

    repo, _, named = name.partition("@")
    revision = revision or named or None
    if repo.count("/") != 1:
        raise WeightsError(f"a repository of the Hub is owner/name, got {repo!r}")
    path = fetch_file(repo, CONFIG_FILE, revision, how or Fetch())
    with suppress(ConfigError, WeightsError):  # what is wrong is said by who reads it
        values = documents.load(path, "the config of a model")
        if isinstance(values, dict) and values.get("model_type") == TRANSFORMERS:
            fetch_file(repo, PROCESSOR_FILE, path.parent.name, how or Fetch())
    return read_repository(path, repo=repo, revision=revision)


def _weights_file(path: Path) -> Source:
    """A file of weights, whose architecture its shapes tell."""
    from regnet.weights.files import read_object  # they bring torch, which listing avoids
    from regnet.weights.unwrap import networks

    found = networks(read_object(path))
    if not found:
        raise WeightsError(
            f"{path}: no network of a known format is in it; `regnet weights inspect {path}` says "
            "what is"
        )
    kind = found[0].kind
    fitting = variants_with(kind.signature)
    if len(fitting) != 1:
        names = " and ".join(variant.name for variant in fitting) or "no published network"
        raise WeightsError(
            f"{path} fits {names}; say which network it is, with its name or its config (.json), "
            "and pass the file as checkpoint_path="
        )
    [variant] = fitting
    config = replace(variant.config, num_classes=kind.num_classes, in_chans=kind.in_chans)
    return Source(
        config=config,
        architecture=variant.name,
        checkpoint=Checkpoint(
            variant=variant.name,
            tag="file",
            collection="repository",
            upstream=str(path),
            file=str(path.resolve()),
            format="timm",  # whichever it is, is found when it is read
            license="unknown",
            num_classes=kind.num_classes,
            preprocess=_usual_preprocess(variant, path),
        ),
    )


def _usual_preprocess(variant: Variant, path: Path) -> Preprocess:
    """That of the variant's published weights: a file of weights does not say its own."""
    for row in checkpoints_of(variant.name):
        _log.warning("%s does not say how its images look; taken as for %s", path, row.id)
        return row.preprocess
    return Preprocess(size=(variant.image_size, variant.image_size))


def _folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}")
    return read_repository(folder / CONFIG_FILE)
