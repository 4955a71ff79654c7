"""Resolve the name of a model: variants, tags, aliases, repositories, folders and files."""

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from regnet import documents
from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_json
from regnet.design.variants import VARIANTS, Variant
from regnet.errors import ConfigError, NotFoundError, WeightsError, shell
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
"""Suffixes of files with weights. A missing name that ends in one is reported as a missing file."""
EXPORTED_SUFFIXES: Final = (".onnx", ".xml", ".pt2")
"""Suffixes of the files that `regnet.export` writes and `regnet.engines.files` opens."""

_log = logging.getLogger(__name__)


def find_source(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool,
    revision: str | None = None,
    how: "Fetch | None" = None,
) -> Source:
    """Return the source that a name or a config stands for.

    Args:
        name: a variant, an alias, `variant.tag`, a publisher's name of a checkpoint
            (`facebook/regnet-y-016`), `hf-hub:owner/name`, `hf-hub:owner/name@revision`,
            `local-dir:folder`, the path of a folder or of a checkpoint, the path of a config
            (.json), or a config. Names of the zoo take precedence over paths; `./name` is always a
            path.
        pretrained: whether weights are needed. A name without a tag then selects the variant's
            default checkpoint.
        revision: revision of the repository that holds the weights; None: the one in the name or in
            the table of checkpoints.
        how: options for fetching the config of a repository.

    Raises:
        ConfigError: the name is unknown, or the file contains no config.
        WeightsError: there are no such weights, or they cannot be fetched.
        OSError: the file cannot be read.
    """
    if isinstance(name, AnyNetConfig | RegNetConfig):
        if pretrained:
            raise WeightsError(
                "a config has no weights; train it first (regnet train --model), use random "
                "weights (--random, pretrained=False), or pass a file as checkpoint_path="
            )
        if revision is not None:
            raise ConfigError("a config has no revisions; leave revision out")
        return Source(config=name)
    if not isinstance(name, str):
        raise ConfigError(
            f"the name of a model must be a string or a config, got {type(name).__name__}; "
            "for a path, use str(path)"
        )
    if is_config_file(name):
        return find_source(_read_config(name), pretrained=pretrained, revision=revision)
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
                "evaluate, bench and info open it, anything else needs the model it was exported "
                "from"
            ) from None
        return _folder(path) if path.is_dir() else _weights_file(path)
    if row is None and pretrained:
        row = find_checkpoint(variant.name)
    if revision is not None:
        if row is None:
            raise ConfigError(
                f"{name} stands for no weights here, so there is no revision; name a checkpoint, "
                "use pretrained=True, or leave revision out"
            )
        if row.repo is None:
            raise ConfigError(f"{row.id} is in no repository of the Hub; leave revision out")
        # The SHA-256 and the size in the table are those of the revision in the table.
        row = replace(row, revision=revision, sha256=None, size=None)
    return Source(config=variant.config, architecture=variant.name, checkpoint=row)


def find_model(name: str) -> tuple[Variant, Checkpoint | None]:
    """Return the variant that a name of the zoo stands for, and its checkpoint if it has a tag.

    Raises:
        ConfigError: there is no such variant.
        WeightsError: there are no such weights.
    """
    if not isinstance(name, str):
        raise ConfigError(f"the name of a model must be text, got {type(name).__name__} {name!r}")
    if row := find_upstream(name):
        return VARIANTS[row.variant], row
    variant, tag = find_variant(name)
    return variant, find_checkpoint(variant.name, tag) if tag else None


def is_config_file(name: str) -> bool:
    """Return whether a name is the path of a config."""
    return name.lower().endswith(CONFIG_SUFFIX) and not is_prefixed(name)


def is_exported(name: str) -> bool:
    """Return whether a name is the path of a file that `regnet.export` writes."""
    return name.lower().endswith(EXPORTED_SUFFIXES) and not is_prefixed(name)


def is_prefixed(name: str) -> bool:
    """Return whether a name begins with the prefix of a repository or of a folder."""
    return name.lower().startswith((*HUB_PREFIXES, FOLDER_PREFIX))


def _read_config(name: str) -> AnyNetConfig | RegNetConfig:
    text = documents.text_of(expanded(name), "a config")
    try:
        return config_from_json(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _repository(name: str, revision: str | None, how: "Fetch | None") -> Source:
    from regnet.weights.download import Fetch, fetch_file  # imports torch, which listing avoids

    repo, _, named = name.partition("@")
    revision = revision or named or None
    if repo.count("/") != 1:
        raise WeightsError(f"a repository of the Hub is named owner/name, got {repo!r}")
    how = how or Fetch()
    path = fetch_file(repo, CONFIG_FILE, revision, how)
    values: Any = None
    with suppress(ConfigError):  # `read_repository` reports what is wrong
        values = documents.load(path, "the config of a model")
    if isinstance(values, dict) and values.get("model_type") == TRANSFORMERS:
        try:
            fetch_file(repo, PROCESSOR_FILE, path.parent.name, how)
        except NotFoundError:
            pass  # a repository need not have one
        except WeightsError as error:
            if not how.offline:
                raise
            _log.warning("%s: %s; the usual preprocessing is used", repo, error)
    return read_repository(path, repo=repo, revision=revision)


def _weights_file(path: Path) -> Source:
    """Return the source of a checkpoint file, whose shapes identify the architecture."""
    from regnet.weights.files import read_object  # imports torch, which listing avoids
    from regnet.weights.unwrap import networks

    found = networks(read_object(path))
    if not found:
        raise WeightsError(
            f"{path}: it contains no network of a known format; "
            f"{shell('regnet', 'weights', 'inspect', path)} lists its contents"
        )
    kind = found[0].kind
    fitting = variants_with(kind.signature)
    if len(fitting) != 1:
        names = " and ".join(variant.name for variant in fitting) or "no published network"
        raise WeightsError(
            f"{path} fits {names}; create the network by its name or its config (.json), and pass "
            "the file as checkpoint_path="
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
            format="timm",  # a placeholder: the format is detected when the file is loaded
            license="unknown",
            num_classes=kind.num_classes,
            preprocess=_usual_preprocess(variant, path),
        ),
    )


def _usual_preprocess(variant: Variant, path: Path) -> Preprocess:
    """Return the preprocessing of the variant's published weights, and say what is assumed."""
    rows = checkpoints_of(variant.name)
    _log.warning(
        "%s contains no preprocessing, activations and strides; using those of %s (if yours "
        "differ, pass your config, and the file as checkpoint_path=)",
        path,
        rows[0].id if rows else variant.name,
    )
    if rows:
        return rows[0].preprocess
    return Preprocess(size=(variant.image_size, variant.image_size))


def _folder(folder: Path) -> Source:
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}")
    if not (folder / CONFIG_FILE).exists():
        inside = folder / "model"
        if (inside / CONFIG_FILE).is_file():
            raise NotFoundError(f"{folder} is a training run, whose model is {inside}; name that")
        raise NotFoundError(
            f"{folder} contains no {CONFIG_FILE}; name a folder that `save_pretrained` wrote"
        )
    return read_repository(folder / CONFIG_FILE)
