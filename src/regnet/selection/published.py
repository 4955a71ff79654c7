"""Published settings to choose from: checkpoint, image size, crop and accuracy."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Final, Literal

from regnet.bench.networks import PAIRINGS
from regnet.design.complexity import total
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, check_number, unknown
from regnet.nn.efficientnet import EFFICIENTNETS
from regnet.selection.timings import cost_of
from regnet.weights.catalog import Checkpoint, checkpoints
from regnet.weights.licenses import find_license

Measure = Literal["top1", "real", "v2"]
"""Accuracy on ImageNet's validation images, on these with ReaL's labels, on V2's images."""

DATASETS: Final = {
    "top1": "imagenet-1k",
    "real": "imagenet-real",
    "v2": "imagenet-v2-matched-frequency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A checkpoint at an image size and a crop, with the accuracy that is published for it."""

    checkpoint: str
    variant: str
    image_size: int
    crop_pct: float
    accuracy: float
    """In percent."""
    license: str
    allowed: bool
    """Whether the license asked for allows its use."""
    flops: int

    @property
    def network(self) -> tuple[str, int]:
        """What its latency depends on: the variant and the image size."""
        return self.variant, self.image_size

    @property
    def config(self) -> AnyNetConfig | RegNetConfig:
        """The architecture."""
        return VARIANTS[self.variant].config


def settings(
    pattern: str = "*",
    *,
    license: str | None = None,
    metric: Measure = "top1",
    min_accuracy: float | None = None,
    max_flops: float = 8e9,
) -> list[Setting]:
    """Published settings, the most accurate first.

    Args:
        pattern: with * and ?, for the id of the checkpoint or the variant.
        license: such as "apache-2.0"; "commercial" for all that allow commercial use; None: any.
        metric: which accuracy.
        min_accuracy: least, in percent.
        max_flops: most multiply-adds at the image size.

    Raises:
        ConfigError: there is no such metric or license, or nothing is left.
    """
    if metric not in DATASETS:
        raise ConfigError(unknown("metric", metric, DATASETS))
    if license not in (None, "commercial"):
        find_license(license)
    if min_accuracy is not None:
        check_number("min_top1", min_accuracy, most=100)
    rows = []
    for row in checkpoints().values():
        if not any(fnmatchcase(name.lower(), pattern.lower()) for name in (row.id, row.variant)):
            continue
        for found in row.metrics:
            size = found.image_size or row.preprocess.size[0]
            if found.dataset != DATASETS[metric] or found.top1 < (min_accuracy or 0):
                continue
            flops = cost_of((row.variant, size)).flops
            if flops > max_flops:
                continue
            rows.append(
                Setting(
                    checkpoint=row.id,
                    variant=row.variant,
                    image_size=size,
                    crop_pct=found.crop_pct or row.preprocess.crop_pct,
                    accuracy=found.top1,
                    license=row.license,
                    allowed=_allowed(row, license),
                    flops=flops,
                )
            )
    if not rows:
        raise ConfigError(
            f"no published weights fit {pattern!r} and the limits; `regnet list --pretrained` "
            "lists all, with their accuracy"
        )
    # Of equal ones, the smaller first; and what most people mean by a name: the Hub's file.
    return sorted(rows, key=lambda row: (-row.accuracy, row.flops, row.checkpoint))


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientNetFacts:
    """What the paper's Table 4 says about an EfficientNet."""

    image_size: int
    top1_error: float
    """In percent; pycls publishes these weights."""


@cache
def efficientnets(max_flops: float = 8e9) -> dict[str, EfficientNetFacts]:
    """The EfficientNets of the paper's comparison, by name, up to so many multiply-adds."""
    found = {}
    for name, _, error, _ in PAIRINGS:
        size = EFFICIENTNETS[name]
        if total(size.layers(size.image_size)).flops <= max_flops:
            found[name] = EfficientNetFacts(image_size=size.image_size, top1_error=error)
    return found


def _allowed(row: Checkpoint, license: str | None) -> bool:
    if license == "commercial":
        return row.license_terms.permissive
    return license in (None, row.license)
