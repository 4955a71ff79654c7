"""Recognize published data sets, and match classes with the outputs of a model.

Class folders are a trap: sorted as text, the folders `0` to `999` of ImageNetV2 are in another
order than the classes, and a missing folder moves all behind it. Here they are matched by name.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from regnet.data.layout import normal
from regnet.data.sets import ImageSet
from regnet.errors import DataError, ImageError
from regnet.weights.catalog import data_dir, label_sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A published data set, as papers and the checkpoint table name it."""

    name: str
    images: int
    file: str = ""
    """What the names of its files begin with."""


KNOWN: Final = (
    Known(name="imagenet-1k", images=50_000, file="ILSVRC2012_val_"),
    Known(name="imagenet-sketch", images=50_889),
    Known(name="imagenet-a", images=7_500),
    Known(name="imagenet-r", images=30_000),
)

V2_SETS: Final = ("matched-frequency", "threshold0.7", "top-images")
"""The three sets of ImageNetV2, 10,000 images each, as their folders are called."""


BY_NUMBER: Final = "numbers"
BY_ORDER: Final = "their order, for want of names that the model knows"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How the classes of some images belong to the outputs of a model."""

    outputs: tuple[int, ...]
    """The output of each class of the set; -1 for one that has no images and is not known."""
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


def identify(images: ImageSet, match: Match) -> str | None:
    """The name of the published set that these are, by classes and number of images."""
    count, present = len(images), [match.outputs[label] for label in images.present]
    if set(images.classes) == set(label_sets()["cifar-10"]) and count == 10_000:
        return "cifar-10-jpeg" if _stored_as(images) == "JPEG" else "cifar-10"
    if len(present) == 1000 and count == 10_000:
        where = "/".join(Path(images.source).resolve().parts[-3:]).lower()
        return next((f"imagenet-v2-{name}" for name in V2_SETS if name in where), None)
    for known in KNOWN:
        subset = imagenet()["subsets"].get(known.name)
        of_it = len(present) == 1000 if subset is None else sorted(present) == subset
        named = Path(images.names[0]).name.startswith((known.file, "row "))
        if count == known.images and of_it and named and match.how != BY_NUMBER:
            return known.name
    return None


def _stored_as(images: ImageSet) -> str | None:
    with suppress(ImageError):
        return images.open(0).format
    return None


def match_classes(images: ImageSet, names: Sequence[str], num_classes: int) -> Match:
    """Find the output of a model for each class of some images.

    By the model's own names for its outputs, WordNet names (`n01440764`), or numbers, whichever
    knows most classes; or, if there are as many as outputs and none is known, by their order: that
    of folders sorted as text, or of the labels in a file.

    Args:
        images: the set.
        names: what the model calls its outputs; none where that is not known.
        num_classes: how many it has.

    Raises:
        DataError: a class has no output.
    """
    used = [images.classes[label] for label in images.present]
    found: list[tuple[int, str, dict[str, int | None]]] = []
    for how, numbers, key in _ways(names, num_classes):
        outputs = {name: numbers.get(key(name)) for name in used}
        found.append((sum(n is not None for n in outputs.values()), how, outputs))
    known, how, outputs = max(found, key=lambda way: way[0])
    if 2 * known >= len(used):
        if strange := [name for name, output in outputs.items() if output is None]:
            raise DataError(
                f"{images.source}: {len(strange)} of {len(used)} classes are not outputs of the "
                f"model, matched by {how}: {', '.join(strange[:5])}"
            )
        [(output, times)] = Counter(outputs.values()).most_common(1)
        if times > 1:
            raise DataError(f"{images.source}: several classes are output {output}, by {how}")
        return _matched(images, outputs, how, names, num_classes)
    if len(images.classes) == num_classes:
        return _matched(
            images, {n: k for k, n in enumerate(images.classes)}, BY_ORDER, names, num_classes
        )
    raise DataError(
        f"{images.source}: its {len(used)} classes ({', '.join(used[:3])}, ...) are neither the "
        f"names nor the numbers of the model's {num_classes} outputs"
    )


def _ways(
    names: Sequence[str], num_classes: int
) -> Iterator[tuple[str, Mapping[str, int], Callable[[str], str]]]:
    """Ways to match, the best first: what it is, outputs by key, and the key of a class."""
    yield "names", {normal(name): number for number, name in enumerate(names)}, normal
    if num_classes == 1000:
        synsets = {name: number for number, name in enumerate(imagenet()["synsets"])}
        yield "WordNet names", synsets, str
    # The Hub calls a class "tench, Tinca tinca"; two outputs of ImageNet's are "crane".
    plain = [_plain(name) for name in names]
    once = {key: number for number, key in enumerate(plain) if plain.count(key) == 1}
    yield "names", once, _plain
    numbers = {str(number): number for number in range(num_classes)}
    yield BY_NUMBER, numbers, lambda name: str(int(name)) if name.isdecimal() else name


def _matched(
    images: ImageSet,
    outputs: Mapping[str, int | None],
    how: str,
    names: Sequence[str],
    num_classes: int,
) -> Match:
    # Classes without images have no part in it.
    chosen = tuple(-1 if (n := outputs.get(name)) is None else n for name in images.classes)
    present = sorted(chosen[label] for label in images.present)
    restricted = num_classes == 1000 and present in imagenet()["subsets"].values()
    absent = sorted(set(range(num_classes)) - set(present))
    return Match(
        outputs=chosen,
        how=how,
        restricted=restricted,
        missing=() if restricted else tuple(_name(n, names) for n in absent),
    )


def _name(output: int, names: Sequence[str]) -> str:
    return names[output] if output < len(names) else str(output)


def _plain(name: str) -> str:
    name = normal(name).lower().partition(",")[0]
    return "".join(letter for letter in name if letter.isalnum())
