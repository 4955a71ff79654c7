"""What is known about a model and its weights: one typed card, and its form in timm's words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any, Final

from regnet.data.preprocess import Preprocess
from regnet.design.config import ArchitectureConfig
from regnet.documents import build
from regnet.errors import ConfigError, unknown

OWN: Final = "regnet"
"""Name of the architecture of a network that is no published variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One published accuracy, in percent."""

    dataset: str
    top1: float
    top5: float | None = None
    image_size: int | None = None
    """None: that of the checkpoint."""
    crop_pct: float | None = None
    """None: that of the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known about a model and its weights.

    Made once, where a model's source is read. It holds no number of classes or channels: those are
    the module's.
    """

    architecture: str = OWN
    """Name of the variant; "regnet" for any other network."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """How images become its input."""
    larger: Preprocess | None = None
    """A larger setting to test at, which the publisher found more accurate."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the outputs; empty where they are not known."""
    license: str | None = None
    """Id of the license of the weights; None for weights that come from nowhere else."""
    metrics: tuple[Metric, ...] = ()
    """Published accuracies of exactly this model."""
    tag: str | None = None
    """Tag of the published weights that it began with."""
    origin: str | None = None
    """Address where the weights came from first."""
    repo: str | None = None
    """Repository of the Hub that holds them."""
    url: str | None = None
    """Address of their file, where that is not on the Hub."""

    @property
    def name(self) -> str:
        """The variant and the tag, such as `regnety_016.tv2_in1k`."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture

    def other_classes(self, labels: tuple[str, ...] = ()) -> "Card":
        """Return the card of the model with another classifier: metrics are not of that one."""
        return replace(self, labels=labels, metrics=())

    def to_timm(self, config: ArchitectureConfig) -> dict[str, Any]:
        """Return card and network in the words of timm's `pretrained_cfg`.

        What is not known is left out. What the network says of itself (classes, channels, names of
        its first and last layer) comes from its config.
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
        """Return the card that a `pretrained_cfg` of timm, or of ours, describes.

        Args:
            cfg: the configuration; entries that say nothing about the model's use are ignored.
            architecture: name of the variant; None: as the configuration says.

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
            labels=tuple(map(str, cfg.get("label_names") or ())),
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
        """Return the card with other values, given as in timm's `pretrained_cfg_overlay`.

        Raises:
            ConfigError: an entry has no counterpart here, or a value cannot be used.
        """
        for name in overlay:
            if name not in _OVERLAYS:
                raise ConfigError(unknown("entry of a pretrained_cfg_overlay", name, _OVERLAYS))
        return Card.from_timm({**self.to_timm(config), **overlay})


_OVERLAYS: Final = (
    "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "test_input_size",
    "test_crop_pct", "label_names", "license", "tag", "origin_url", "architecture", "hf_hub_id",
    "url", "metrics",
)  # fmt: skip
"""Entries of timm's `pretrained_cfg` that a card holds."""


def _reduction(config: ArchitectureConfig) -> int:
    """Side of the image over the side of the last feature map."""
    return config.stem_stride * prod(block.stride for block in config.blocks())


def _first_conv(config: ArchitectureConfig) -> str:
    """Name of the module that sees the image."""
    if config.block == "preact_bottleneck":
        return "stem"
    return "stem.conv1.conv" if len(config.stem_widths) > 1 else "stem.conv"


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _text(cfg: Mapping[str, Any], name: str) -> str | None:
    """An entry of a configuration as text; empty text counts as none."""
    value = cfg.get(name)
    return str(value) if value else None
