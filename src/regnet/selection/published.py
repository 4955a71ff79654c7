"""List the published settings to choose from: checkpoint, image size, crop and accuracy."""

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
"""A metric of accuracy: on the validation images of ImageNet-1k ("top1"), on the same images with
the labels of ReaL ("real"), or on the images of ImageNet-V2 ("v2")."""

DATASETS: Final = {
    "top1": "imagenet-1k",
    "real": "imagenet-real",
    "v2": "imagenet-v2-matched-frequency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A checkpoint at an image size and a crop, with the accuracy published for them."""

    checkpoint: str
    variant: str
    image_size: int
    crop_pct: float
    accuracy: float
    """In percent."""
    license: str
    allowed: bool
    """Whether the license matches the license filter."""
    flops: int

    @property
    def network(self) -> tuple[str, int]:
        """The variant and the image size; the latency depends on nothing else of a setting."""
        return self.variant, self.image_size

    @property
    def config(self) -> AnyNetConfig | RegNetConfig:
        """The config of the variant."""
        return VARIANTS[self.variant].config


def settings(
    pattern: str = "*",
    *,
    license: str | None = None,
    metric: Measure = "top1",
    min_accuracy: float | None = None,
    max_flops: float = 8e9,
) -> list[Setting]:
    """Return the published settings, the most accurate first.

    Args:
        pattern: pattern with * and ?, for the id of the checkpoint or the name of the variant.
        license: a license such as "apache-2.0"; "commercial": any that allows commercial use; None:
            any. Settings with another license are returned with `allowed` false.
        metric: the accuracy to use.
        min_accuracy: lowest accuracy, in percent; None: any.
        max_flops: largest number of multiply-adds at the image size.

    Raises:
        ConfigError: there is no such metric or license, or no setting is left.
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
            f"no published weights match {pattern!r} and the limits; `regnet list --pretrained` "
            "prints all of them with their accuracy"
        )
    # Of equally accurate settings, the one with fewer flops comes first. The order of the ids puts
    # the Hub's file before others, because most people mean that file by the name.
    return sorted(rows, key=lambda row: (-row.accuracy, row.flops, row.checkpoint))


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficientNetFacts:
    """Image size and error of an EfficientNet in Table 4 of the paper."""

    image_size: int
    top1_error: float
    """Top-1 error in percent, of the weights that pycls publishes."""


@cache
def efficientnets(max_flops: float = 8e9) -> dict[str, EfficientNetFacts]:
    """Return the EfficientNets of the paper's comparison with at most `max_flops`, by name."""
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
