"""The table of published checkpoints: one row each, read from the files in `weights/`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from regnet.data.preprocess import Preprocess
from regnet.errors import NotFoundError, WeightsError
from regnet.weights.card import Card, Metric
from regnet.weights.licenses import License, license_of

COLLECTIONS: Final = (
    "embedded",
    "timm",
    "torchvision",
    "pycls",
    "transformers",
    "vissl",
    "swag",
)
"""The files of the table, one per publisher; of equally accurate checkpoints, the first is
preferred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The published weights of one variant, and what is known about them.

    Their file is in a repository of the Hub (`repo`), at an address (`url`), or, if both are None,
    in the folder of the table.
    """

    variant: str
    tag: str
    collection: str
    """The publisher: the name of the table's file."""
    upstream: str | None = None
    """Name that the publisher uses, if it differs from `id`."""
    repo: str | None = None
    revision: str | None = None
    """Commit of the repository; None: the newest, or the one in the cache."""
    file: str | None = None
    """Name of the file in the repository or in the table's folder; None: one of the usual names."""
    url: str | None = None
    sha256: str | None = None
    """SHA-256 of the file, or the first digits that its publisher states."""
    size: int | None = None
    """Size of the file in bytes."""
    format: str
    """Naming scheme of the tensors; see `regnet.weights.formats`."""
    bgr: bool = False
    """Whether the stem in the file takes the channels in the order blue, green, red; networks of
    this library take red first."""
    license: str
    """Id of the license; see `regnet.weights.licenses`."""
    num_classes: int
    labels: str | tuple[str, ...] | None = None
    """Names of the classes, or their key in `weights/labels.json`."""
    preprocess: Preprocess
    test: Preprocess | None = None
    """A transform with larger images that the publisher found more accurate."""
    metrics: tuple[Metric, ...] = ()
    metrics_source: str | None = None
    origin: str | None = None
    """Address of the original weights."""
    note: str | None = None
    command: str | None = None
    """Command that produced the weights."""

    @property
    def id(self) -> str:
        """The name that `create` takes: `variant.tag`, or the name of a repository."""
        if self.collection == "repository":
            return self.upstream or ""
        return f"{self.variant}.{self.tag}"

    @property
    def is_local(self) -> bool:
        """Whether the file comes with the package."""
        return self.repo is None and self.url is None

    @property
    def license_terms(self) -> License:
        """The license; one that is not in the table of licenses counts as restricted."""
        return license_of(self.license)

    @property
    def source(self) -> str:
        """The address of the weights."""
        if self.repo:
            return f"https://huggingface.co/{self.repo}"
        return self.url or self.file or ""

    @property
    def top1(self) -> float | None:
        """Published top-1 accuracy on ImageNet-1k in percent, at the default image size."""
        return max(
            (
                metric.top1
                for metric in self.metrics
                if metric.dataset == "imagenet-1k"
                and metric.image_size in (None, self.preprocess.size[0])
            ),
            default=None,
        )

    @property
    def card(self) -> Card:
        """The card of a model with these weights."""
        return Card(
            architecture=self.variant,
            preprocess=self.preprocess,
            larger=self.test,
            labels=self.label_names,
            license=self.license,
            metrics=self.metrics,
            tag=self.tag,
            origin=self.origin,
            repo=self.repo,
            url=self.url,
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if they are not known."""
        if isinstance(self.labels, tuple):
            return self.labels
        return label_sets().get(self.labels or "", ())


def data_dir() -> Path:
    """Return the folder of the table and the embedded checkpoint: in the package or a checkout."""
    installed = Path(__file__).parent / "data"
    checkout = Path(__file__).parents[3] / "weights"
    for folder in (installed, checkout):
        if (folder / "embedded.json").is_file():
            return folder
    raise WeightsError(f"the package's data is missing from {installed}; install regnet again")


@cache
def label_sets() -> Mapping[str, tuple[str, ...]]:
    """Return the names of the classes of each data set."""
    sets = json.loads((data_dir() / "labels.json").read_text(encoding="utf-8"))
    return {name: tuple(labels) for name, labels in sets.items()}


@cache
def checkpoints() -> Mapping[str, Checkpoint]:
    """Return all checkpoints by id."""
    return {row.id: row for collection in COLLECTIONS for row in _read(collection)}


@cache
def _upstream_ids() -> Mapping[str, Checkpoint]:
    return {row.upstream.lower(): row for row in checkpoints().values() if row.upstream}


def checkpoints_of(variant: str) -> tuple[Checkpoint, ...]:
    """Return a variant's checkpoints: those that can be its default first, then by accuracy."""
    rows = [row for row in checkpoints().values() if row.variant == variant]
    return tuple(sorted(rows, key=lambda row: (not _may_be_default(row), -(row.top1 or 0))))


def find_upstream(name: str) -> Checkpoint | None:
    """Return the checkpoint with this name at its publisher, such as `facebook/regnet-y-016`."""
    return _upstream_ids().get(name.strip().lower())


def default_checkpoint(variant: str) -> Checkpoint | None:
    """Return a variant's default weights; None if there are none under a permissive license.

    The default is the checkpoint with the highest published ImageNet-1k top-1 accuracy at its
    default image size among those that are under a permissive license, have a classifier, and are
    saved as safetensors with the names of this library. Of equally accurate ones, it is the first
    in the table. The checkpoint that comes with the package is the default of its variant.
    """
    rows = checkpoints_of(variant)
    return rows[0] if rows and _may_be_default(rows[0]) else None


def find_checkpoint(variant: str, tag: str | None = None) -> Checkpoint:
    """Return the checkpoint with this variant and tag; without a tag, `default_checkpoint`.

    Raises:
        WeightsError: there is no such checkpoint, or a tag is needed because all weights of the
            variant are restricted.
    """
    if tag is None and (row := default_checkpoint(variant)):
        return row
    of_variant = checkpoints_of(variant)
    for row in of_variant:
        if tag is not None and row.tag.lower() == tag.lower():
            return row
    if not of_variant:
        raise NotFoundError(
            f"no weights of {variant} are published; `regnet list --pretrained` lists all weights"
        )
    tags = ", ".join(f"{row.tag} ({row.license_terms.name})" for row in of_variant)
    if tag is not None:
        raise NotFoundError(f"{variant} has no weights tagged {tag!r}; it has {tags}")
    raise WeightsError(
        f"all weights of {variant} have a restricted license, so none is the default; if a license "
        f"suits you, name the weights as {variant}.TAG, where TAG is {tags}"
    )


def _may_be_default(row: Checkpoint) -> bool:
    if row.collection == "embedded":
        return True
    stored = row.repo is not None and row.format == "timm"
    return stored and row.license_terms.permissive and row.top1 is not None


def _read(collection: str) -> Iterator[Checkpoint]:
    rows: list[dict[str, Any]] = json.loads(
        (data_dir() / f"{collection}.json").read_text(encoding="utf-8")
    )
    for row in rows:
        yield from_row(row, collection)


def from_row(row: Mapping[str, Any], collection: str) -> Checkpoint:
    """Return the checkpoint of a row of the table."""
    values = dict(row)
    preprocess: dict[str, Any] = values.pop("preprocess")
    test: dict[str, Any] | None = values.pop("test", None)
    return Checkpoint(
        **values | {"metrics": tuple(Metric(**m) for m in values.get("metrics", ()))},
        collection=collection,
        preprocess=Preprocess(**preprocess),
        test=Preprocess(**preprocess | test) if test else None,
    )
