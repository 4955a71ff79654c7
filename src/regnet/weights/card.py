"""Describe a model and its weights in one typed card, and convert it from and to timm's form."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any, Final

from regnet.data.preprocess import Preprocess
from regnet.design.config import ArchitectureConfig
from regnet.documents import build
from regnet.errors import ConfigError, unknown

OWN: Final = "regnet"
"""Architecture name of a network that is not a published variant."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A published accuracy, in percent."""

    dataset: str
    top1: float
    top5: float | None = None
    image_size: int | None = None
    """Image size in pixels; None: that of the checkpoint."""
    crop_pct: float | None = None
    """See `Preprocess.crop_pct`; None: that of the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known about a model and its weights.

    The card is made once, when a model is loaded or created. It does not contain the number of
    classes or of channels, which belong to the module.
    """

    architecture: str = OWN
    """Name of the variant, or "regnet" for any other network."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """The transform from an image to the model's input."""
    larger: Preprocess | None = None
    """A transform with larger images that the publisher found more accurate."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the outputs; empty if they are not known."""
    license: str | None = None
    """Id of the license of the weights; None if the weights were not published by someone else."""
    metrics: tuple[Metric, ...] = ()
    """Published accuracies of exactly this model."""
    tag: str | None = None
    """Tag of the published weights from which the model started."""
    origin: str | None = None
    """Address of the original weights."""
    repo: str | None = None
    """Repository of the Hub that contains the weights."""
    url: str | None = None
    """Address of the file of the weights, if it is not on the Hub."""

    @property
    def name(self) -> str:
        """The variant and the tag, such as `regnety_016.tv2_in1k`."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    def other_classes(self, labels: tuple[str, ...] = ()) -> "Card":
        """Return the card of the model with a new classifier, for which the metrics do not hold.

        Args:
            labels: names of the new classes.
        """
        return replace(self, labels=labels, metrics=())

    def to_timm(self, config: ArchitectureConfig) -> dict[str, Any]:
        """Return the card and the network as a `pretrained_cfg` of timm, without what is not known.

        Args:
            config: the network's config, the source of what the card does not contain: the numbers
                of classes and channels, and the names of the first and the last layer.
        """
        reduction = _reduction(config)
        look = self.preprocess.for_channels(config.in_chans)
        height, width = look.size
        cfg = {
            "architecture": self.architecture,
            "num_classes": config.num_classes,
            **look.to_timm(),
            "min_input_size": (config.in_chans, reduction, reduction),
            "pool_size": (-(-height // reduction), -(-width // reduction)),
            "first_conv": _first_conv(config),
            "classifier": "head.fc",
            "tag": self.tag,
            "license": self.license,
            "origin_url": self.origin,
            "hf_hub_id": self.repo,
            "url": self.url,
            "label_names": self.labels or None,
            "metrics": [_without_none(asdict(metric)) for metric in self.metrics] or None,
        }
        if self.larger:
            cfg["test_input_size"] = (config.in_chans, *self.larger.size)
            cfg["test_crop_pct"] = self.larger.crop_pct
        return _without_none(cfg)

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any], *, architecture: str | None = None) -> "Card":
        """Return the card that a `pretrained_cfg` of timm or of this library describes.

        Args:
            cfg: the configuration; entries that do not concern the use of the model are ignored.
            architecture: name of the variant; None: the name in `cfg`.

        Raises:
            ConfigError: a value cannot be used.
        """
        preprocess = Preprocess.from_timm(cfg)
        larger = None
        if "test_input_size" in cfg:
            crop = {"crop_pct": cfg["test_crop_pct"]} if "test_crop_pct" in cfg else {}
            larger = Preprocess.from_timm({**cfg, "input_size": cfg["test_input_size"], **crop})
        return cls(
            architecture=architecture or _text(cfg, "architecture") or OWN,
            preprocess=preprocess,
            larger=larger,
            labels=_labels(cfg.get("label_names") or ()),
            license=_text(cfg, "license"),
            metrics=tuple(
                build(Metric, metric, name="metrics") for metric in cfg.get("metrics") or ()
            ),
            tag=_text(cfg, "tag"),
            origin=_text(cfg, "origin_url"),
            repo=_text(cfg, "hf_hub_id"),
            url=_text(cfg, "url"),
        )

    def overlaid(self, overlay: Mapping[str, Any], config: ArchitectureConfig) -> "Card":
        """Return the card with some values replaced, given as in timm's `pretrained_cfg_overlay`.

        Args:
            overlay: the new values by entry.
            config: the network's config.

        Raises:
            ConfigError: a card does not contain an entry, or a value cannot be used.
        """
        for name in overlay:
            if name not in _OVERLAYS:
                raise ConfigError(unknown("entry of a pretrained_cfg_overlay", name, _OVERLAYS))
        return Card.from_timm({**self.to_timm(config), **overlay})


def _labels(given: Sequence[Any] | Mapping[Any, Any]) -> tuple[str, ...]:
    """Return the names of the classes, which timm also takes as a dictionary from their numbers."""
    if not isinstance(given, Mapping):
        return tuple(map(str, given))
    try:
        numbered = {int(number): str(name) for number, name in given.items()}
    except ValueError:
        numbered = {}
    if sorted(numbered) != list(range(len(given))):  # it is not known which output each one names
        _log.warning("names of classes that are not numbered from 0 are left out")
        return ()
    return tuple(numbered[number] for number in range(len(given)))


_OVERLAYS: Final = (
    "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "test_input_size",
    "test_crop_pct", "label_names", "license", "tag", "origin_url", "architecture", "hf_hub_id",
    "url", "metrics",
)  # fmt: skip
"""Entries of timm's `pretrained_cfg` that a card contains."""


def _reduction(config: ArchitectureConfig) -> int:
    """Return the side of the image divided by the side of the last feature map."""
    return config.stem_stride * prod(block.stride for block in config.blocks())


def _first_conv(config: ArchitectureConfig) -> str:
    """Return the name of the first convolution."""
    if config.block == "preact_bottleneck":
        return "stem"
    return "stem.conv1.conv" if len(config.stem_widths) > 1 else "stem.conv"


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _text(cfg: Mapping[str, Any], name: str) -> str | None:
    """Return an entry of a configuration as text; an empty text counts as None."""
    value = cfg.get(name)
    return str(value) if value else None
