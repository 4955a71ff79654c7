"""The checkpoint table: one row per published set of weights, read from the files in `weights/`."""

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
"""The files of the table, one per publisher, in the order in which ties are broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One set of weights of one variant.

    It lies in a repository of the Hub (`repo`), at a `url`, or, if there is neither, beside the
    table.
    """

    variant: str
    tag: str
    collection: str
    """Who published it: the name of the table's file."""
    upstream: str | None = None
    """What its publisher calls it, where that is not our id."""
    repo: str | None = None
    revision: str | None = None
    """Commit of the repository; None: the newest, or what the cache has."""
    file: str | None = None
    """Name in the repository, or beside the table; None: a usual name."""
    url: str | None = None
    sha256: str | None = None
    """SHA-256 of the file, or its first digits, as far as published."""
    size: int | None = None
    """Bytes of the file."""
    format: str
    """Naming of the tensors; see `regnet.weights.formats`."""
    bgr: bool = False
    """Whether the file's stem takes blue first; ours take red first."""
    license: str
    """Id of the license, see `regnet.weights.licenses`."""
    num_classes: int
    labels: str | tuple[str, ...] | None = None
    """Names of the classes, or their key in `weights/labels.json`."""
    preprocess: Preprocess
    test: Preprocess | None = None
    """A larger setting, which its publisher found more accurate."""
    metrics: tuple[Metric, ...] = ()
    metrics_source: str | None = None
    origin: str | None = None
    """Where the weights came from."""
    note: str | None = None
    command: str | None = None
    """What made it."""

    @property
    def id(self) -> str:
        """The name that `create` takes: `variant.tag`; of a repository, its name."""
        if self.collection == "repository":
            return self.upstream or ""
        return f"{self.variant}.{self.tag}"

    @property
    def is_local(self) -> bool:
        """Whether its file is on this machine from the start."""
        return self.repo is None and self.url is None

    @property
    def license_terms(self) -> License:
        """What the license allows; one that the table lacks counts as restricted."""
        return license_of(self.license)

    @property
    def source(self) -> str:
        """Where a person finds it."""
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
        """What is known about a model with these weights."""
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
        """Names of the classes; none where they are not known."""
        if isinstance(self.labels, tuple):
            return self.labels
        return label_sets().get(self.labels or "", ())


def data_dir() -> Path:
    """The folder of the tables and the embedded checkpoint: in the package, or in a checkout."""
    installed = Path(__file__).parent / "data"
    checkout = Path(__file__).parents[3] / "weights"
    for folder in (installed, checkout):
        if (folder / "embedded.json").is_file():
            return folder
    raise WeightsError(f"the package's data is missing from {installed}; install regnet again")


@cache
def label_sets() -> Mapping[str, tuple[str, ...]]:
    """Names of classes, by data set."""
    sets = json.loads((data_dir() / "labels.json").read_text(encoding="utf-8"))
    return {name: tuple(labels) for name, labels in sets.items()}


@cache
def checkpoints() -> Mapping[str, Checkpoint]:
    """All rows by id."""
    return {row.id: row for collection in COLLECTIONS for row in _read(collection)}


@cache
def _upstream_ids() -> Mapping[str, Checkpoint]:
    return {row.upstream.lower(): row for row in checkpoints().values() if row.upstream}


def checkpoints_of(variant: str) -> tuple[Checkpoint, ...]:
    """The variant's rows: those that `create` may choose first, the most accurate foremost."""
    rows = [row for row in checkpoints().values() if row.variant == variant]
    return tuple(sorted(rows, key=lambda row: (not _may_be_default(row), -(row.top1 or 0))))


def find_upstream(name: str) -> Checkpoint | None:
    """The checkpoint that its publisher calls so, such as `facebook/regnet-y-016`."""
    return _upstream_ids().get(name.strip().lower())


def default_checkpoint(variant: str) -> Checkpoint | None:
    """The variant's default weights, None where there are none that may be used freely.

    It is the checkpoint with the highest published ImageNet-1k top-1 accuracy at its default image
    size among those that are under a permissive license, have a classifier, and are stored as
    safetensors under our names; of equals, the first in the table. The checkpoint that comes with
    the package is its variant's default.
    """
    rows = checkpoints_of(variant)
    return rows[0] if rows and _may_be_default(rows[0]) else None


def find_checkpoint(variant: str, tag: str | None = None) -> Checkpoint:
    """The checkpoint of this variant and tag; without a tag, `default_checkpoint`.

    Raises:
        WeightsError: there is none, or none that may be used freely.
    """
    if tag is None and (row := default_checkpoint(variant)):
        return row
    of_variant = checkpoints_of(variant)
    for row in of_variant:
        if tag is not None and row.tag.lower() == tag.lower():
            return row
    if not of_variant:
        raise NotFoundError(
            f"no weights of {variant} have been published; `regnet list --pretrained` lists all"
        )
    tags = ", ".join(f"{row.tag} ({row.license_terms.name})" for row in of_variant)
    if tag is not None:
        raise NotFoundError(f"{variant} has no weights tagged {tag!r}; it has {tags}")
    raise WeightsError(
        f"all weights of {variant} restrict their use, so that none is the default; if the license "
        f"suits you, name one: {variant}.TAG with {tags}"
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
    """Return the checkpoint of a row of a table."""
    values = dict(row)
    preprocess: dict[str, Any] = values.pop("preprocess")
    test: dict[str, Any] | None = values.pop("test", None)
    return Checkpoint(
        **values | {"metrics": tuple(Metric(**m) for m in values.get("metrics", ()))},
        collection=collection,
        preprocess=Preprocess(**preprocess),
        test=Preprocess(**preprocess | test) if test else None,
    )
