"""Which published data set some images are, and which outputs of a model their classes are.

Class folders are a trap: sorted as text, the folders `0` to `999` of ImageNetV2 are in another
order than the classes, and a missing folder moves all behind it. Here they are matched by name.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from regnet.data.sets import ImageSet
from regnet.errors import DataError, ImageError
from regnet.weights.catalog import data_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A published data set, as papers and the checkpoint table name it."""

    name: str
    images: int
    classes: int


KNOWN: Final = (
    Known(name="imagenet-1k", images=50_000, classes=1000),
    Known(name="imagenet-sketch", images=50_889, classes=1000),
    Known(name="imagenet-a", images=7_500, classes=200),
    Known(name="imagenet-r", images=30_000, classes=200),
    Known(name="cifar-10", images=10_000, classes=10),
)

V2_SETS: Final = ("matched-frequency", "threshold0.7", "top-images")
"""The three sets of ImageNetV2, 10,000 images each, as their folders are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How the classes of some images belong to the outputs of a model."""

    outputs: tuple[int, ...]
    """The output of each class of the set."""
    how: str
    """By what they were matched, for the report."""
    restricted: bool
    """Whether only these outputs compete, as is usual for ImageNet-A and -R."""
    missing: tuple[str, ...]
    """Outputs that no image belongs to, where that is not the point of the set."""


@cache
def imagenet() -> Mapping[str, Any]:
    """Names of the classes of ImageNet-1k in WordNet, and which of them subsets have."""
    table: dict[str, Any] = json.loads((data_dir() / "imagenet.json").read_text(encoding="utf-8"))
    return table


def identify(images: ImageSet) -> str | None:
    """The name of the published set that these are, by the number of images and classes."""
    count, classes = len(images), len(images.classes)
    if count == 10_000 and classes == 1000:
        for name in V2_SETS:
            if name in images.source.lower():
                return f"imagenet-v2-{name}"
        return None
    for known in KNOWN:
        if (known.images, known.classes) == (count, classes):
            if known.name != "cifar-10":
                return known.name
            if "airplane" in images.classes:
                return "cifar-10-jpeg" if _stored_as(images) == "JPEG" else "cifar-10"
    return None


def _stored_as(images: ImageSet) -> str | None:
    with suppress(ImageError):
        return images.open(0).format
    return None


def match_classes(images: ImageSet, names: Sequence[str], num_classes: int) -> Match:
    """Find the output of a model for each class of some images.

    By WordNet names (`n01440764`), numbers, the model's own names for its outputs, or, if there are
    as many, their order: that of folders sorted as text, or of the labels in a file.

    Args:
        images: the set.
        names: what the model calls its outputs; none where that is not known.
        num_classes: how many it has.

    Raises:
        DataError: a class has no output.
    """
    classes, synsets = images.classes, imagenet()["synsets"]
    known = {_plain(name): number for number, name in enumerate(names)}
    if num_classes == len(synsets) and classes[0] in synsets:
        numbers: Mapping[str, int] = {name: number for number, name in enumerate(synsets)}
        how, keys = "WordNet names", list(classes)
    elif all(name.isdecimal() for name in classes):
        numbers = {str(number): number for number in range(num_classes)}
        how, keys = "numbers", [str(int(name)) for name in classes]
    elif len(known) == num_classes and _plain(classes[0]) in known:
        numbers, how, keys = known, "names", [_plain(name) for name in classes]
    elif len(classes) == num_classes:
        return Match(
            outputs=tuple(range(num_classes)),
            how="their order, for want of names that the model knows",
            restricted=False,
            missing=(),
        )
    else:
        raise DataError(
            f"{images.source}: its {len(classes)} classes ({', '.join(classes[:3])}, ...) are "
            f"neither the names nor the numbers of the model's {num_classes} outputs"
        )
    strange = [name for name, key in zip(classes, keys, strict=True) if key not in numbers]
    if strange:
        raise DataError(
            f"{images.source}: {len(strange)} of {len(classes)} classes are not outputs of the "
            f"model, matched by {how}: {', '.join(strange[:5])}"
        )
    outputs = tuple(numbers[key] for key in keys)
    twice = [output for output, times in Counter(outputs).items() if times > 1]
    if twice:
        raise DataError(f"{images.source}: several classes are output {twice[0]}, by {how}")
    is_subset = sorted(outputs) in imagenet()["subsets"].values()
    restricted = num_classes == len(synsets) and is_subset
    absent = sorted(set(range(num_classes)) - set(outputs))
    return Match(
        outputs=outputs,
        how=how,
        restricted=restricted,
        missing=() if restricted else tuple(_name(n, names) for n in absent),
    )


def _name(output: int, names: Sequence[str]) -> str:
    return names[output] if output < len(names) else str(output)


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
