"""What a model's name stands for: an architecture, and the weights that go with it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_json
from regnet.design.variants import VARIANTS, Variant
from regnet.errors import ConfigError, WeightsError
from regnet.weights.catalog import Checkpoint, find_checkpoint, find_upstream
from regnet.zoo.names import find_variant

if TYPE_CHECKING:
    from regnet.nn.model import GlobalPool
    from regnet.weights.download import Fetch
    from regnet.weights.repository import Description

HUB_PREFIXES = ("hf-hub:", "hf_hub:")
FOLDER_PREFIX = "local-dir:"
CONFIG_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An architecture, and the weights that its name chose."""

    config: AnyNetConfig | RegNetConfig
    architecture: str
    """Name of the variant; "regnet" for a config of one's own."""
    checkpoint: Checkpoint | None = None
    """The weights; None where the name chooses none."""
    global_pool: "GlobalPool | None" = None
    """How the repository's model pools, if it is one."""

    @property
    def preprocess(self) -> Preprocess:
        """How images look: as for the checkpoint, or as usual for the variant."""
        if self.checkpoint:
            return self.checkpoint.preprocess
        variant = VARIANTS.get(self.architecture)
        return Preprocess(size=(variant.input_size,) * 2) if variant else Preprocess()

    def pretrained_cfg(
        self, *, loaded: bool, same_classes: bool, unchanged: bool = True
    ) -> dict[str, Any]:
        """Facts about a model in the words of timm's `pretrained_cfg`, and a few of ours.

        Args:
            loaded: whether the model takes the checkpoint's weights.
            same_classes: whether it keeps the checkpoint's classifier.
            unchanged: whether it is the network that was measured otherwise.
        """
        row = self.checkpoint
        if row is None and self.architecture not in VARIANTS:
            return {}
        cfg: dict[str, Any] = {"architecture": self.architecture, **self.preprocess.to_timm()}
        if row is None or not loaded:
            return cfg
        if same_classes and row.label_names:
            cfg["label_names"] = row.label_names
        cfg |= {
            "tag": row.tag,
            "license": row.license,
            "origin_url": row.origin,
            "hf_hub_id": row.repo,
            "url": row.url,
        }
        if row.test:
            cfg |= {
                "test_input_size": (3, *row.test.size),
                "test_crop_pct": row.test.crop_pct,
            }
        if same_classes and unchanged:
            cfg["metrics"] = [
                {key: value for key, value in asdict(metric).items() if value is not None}
                for metric in row.metrics
            ]
        return {key: value for key, value in cfg.items() if value is not None}


def find_source(
    name: str | AnyNetConfig | RegNetConfig,
    *,
    pretrained: bool,
    revision: str | None = None,
    how: "Fetch | None" = None,
) -> Source:
    """What a name or a config stands for.

    Args:
        name: a variant, an alias, `variant.tag`, what a publisher calls a checkpoint
            (`facebook/regnet-y-016`), `hf-hub:owner/name`, `hf-hub:owner/name@revision`,
            `local-dir:folder`, a file of a config (.json), or a config.
        pretrained: whether weights are wanted: without a tag, the variant's default.
        revision: of the repository that the weights lie in; None: as in the name or the table.
        how: how to get a repository's description.

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
        return Source(config=name, architecture="regnet")
    if not isinstance(name, str):
        raise ConfigError(
            f"a model is named by text or given as a config, got {type(name).__name__}; "
            "of a path, use str(path)"
        )
    if is_config_file(name):
        return find_source(_read_config(name), pretrained=pretrained)
    for prefix in HUB_PREFIXES:
        if name.lower().startswith(prefix):
            return _repository(name[len(prefix) :], revision, how)
    if name.lower().startswith(FOLDER_PREFIX):
        if revision is not None:
            raise ConfigError("a folder has no revisions; leave revision out")
        return _folder(Path(name[len(FOLDER_PREFIX) :]).expanduser())
    variant, row = find_model(name)
    if row is None and pretrained:
        row = find_checkpoint(variant.name)
    if row and revision is not None:
        if row.repo is None:
            raise ConfigError(f"{row.id} lies in no repository of the Hub; leave revision out")
        # The table's SHA-256 is that of its own revision.
        row = replace(row, revision=revision, sha256=None, size=None)
    return Source(config=variant.config, architecture=variant.name, checkpoint=row)


def is_config_file(name: str) -> bool:
    """Whether a name stands for a file of a config."""
    prefixed = name.lower().startswith((*HUB_PREFIXES, FOLDER_PREFIX))
    return name.lower().endswith(CONFIG_SUFFIX) and not prefixed


def _read_config(name: str) -> AnyNetConfig | RegNetConfig:
    try:
        return config_from_json(Path(name).expanduser().read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def find_model(name: str) -> tuple[Variant, Checkpoint | None]:
    """The variant that a name of the zoo stands for, and the checkpoint that it names, if any.

    Raises:
        ConfigError: there is no such variant.
        WeightsError: there are no such weights.
    """
    if row := find_upstream(name):
        return VARIANTS[row.variant], row
    variant, tag = find_variant(name)
    return variant, find_checkpoint(variant.name, tag) if tag else None


def _repository(name: str, revision: str | None, how: "Fetch | None") -> Source:
    from regnet.weights.download import Fetch, fetch_file
    from regnet.weights.repository import CONFIG_FILE, read_description

    repo, _, named = name.partition("@")
    revision = revision or named or None
    if repo.count("/") != 1:
        raise WeightsError(f"a repository of the Hub is owner/name, got {repo!r}")
    path = fetch_file(repo, CONFIG_FILE, revision, how or Fetch())
    return _described(read_description(path, repo=repo, revision=revision))


def _folder(folder: Path) -> Source:
    from regnet.weights.repository import CONFIG_FILE, read_description

    if not folder.is_dir():
        raise WeightsError(f"there is no folder {folder}")
    return _described(read_description(folder / CONFIG_FILE))


def _described(found: "Description") -> Source:
    return Source(
        config=found.config,
        architecture=found.architecture,
        checkpoint=found.checkpoint,
        global_pool=found.global_pool,
    )
