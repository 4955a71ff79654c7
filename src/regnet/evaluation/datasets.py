"""Recognize published data sets, and match classes with the outputs of a model.

The order of class folders is not reliable. Sorted as text, the folders `0` to `999` of ImageNetV2
are in another order than the classes, and a missing folder shifts all classes after it. Therefore
classes are matched by name.
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
    """A published data set, under the name that papers and the table of checkpoints use."""

    name: str
    images: int
    file: str = ""
    """Beginning of the names of its files."""


KNOWN: Final = (
    Known(name="imagenet-1k", images=50_000, file="ILSVRC2012_val_"),
    Known(name="imagenet-sketch", images=50_889),
    Known(name="imagenet-a", images=7_500),
    Known(name="imagenet-r", images=30_000),
)

V2_SETS: Final = ("matched-frequency", "threshold0.7", "top-images")
"""The three sets of ImageNetV2, of 10,000 images each, by the names of their folders."""


BY_NUMBER: Final = "numbers"
BY_ORDER: Final = "their order, because the model does not know most of their names"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which output of a model belongs to each class of a set of images."""

    outputs: tuple[int, ...]
    """The output of each class of the set; -1 for a class without images that is not known."""
    how: str
    """What the classes were matched by, for the report."""
    restricted: bool
    """Whether only these outputs compete, as is usual for ImageNet-A and -R."""
    missing: tuple[str, ...]
    """Names of the outputs without images; empty if the set leaves out classes on purpose."""


@cache
def imagenet() -> Mapping[str, Any]:
    """Return the WordNet names of ImageNet-1k's classes, and which of them its subsets have."""
    table: dict[str, Any] = json.loads((data_dir() / "imagenet.json").read_text(encoding="utf-8"))
    return table


def identify(images: ImageSet, match: Match) -> str | None:
    """Return the name of the published set with these classes and this many images, or None."""
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
    """Find the output of a model for each class of a set of images.

    Classes are matched by the model's own names for its outputs, by WordNet names (`n01440764`), or
    by numbers, whichever knows the most classes. If fewer than half of the classes are known, and
    there are as many classes as outputs, they are matched by their order, which is that of folders
    sorted as text, or of the labels in a file.

    Args:
        images: the set of images.
        names: the model's names for its outputs; empty if they are not known.
        num_classes: number of outputs.

    Raises:
        DataError: a class has no output, or two classes have the same output.
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
                f"model, matched by {how}: {', '.join(strange[:5])}; rename or remove them"
            )
        [(output, times)] = Counter(outputs.values()).most_common(1)
        if times > 1:
            raise DataError(
                f"{images.source}: several classes match output {output} of the model, by {how}; "
                "rename or merge them"
            )
        return _matched(images, outputs, how, names, num_classes)
    if len(images.classes) == num_classes:
        return _matched(
            images, {n: k for k, n in enumerate(images.classes)}, BY_ORDER, names, num_classes
        )
    raise DataError(
        f"{images.source}: its {len(used)} classes ({', '.join(used[:3])}, ...) are neither the "
        f"names nor the numbers of the model's {num_classes} outputs; rename them"
    )


def _ways(
    names: Sequence[str], num_classes: int
) -> Iterator[tuple[str, Mapping[str, int], Callable[[str], str]]]:
    """Yield methods of matching, the best first: its name, outputs by key, and a class's key."""
    yield "names", {normal(name): number for number, name in enumerate(names)}, normal
    if num_classes == 1000:
        synsets = {name: number for number, name in enumerate(imagenet()["synsets"])}
        yield "WordNet names", synsets, str
    # The Hub calls a class "tench, Tinca tinca", so the first name is enough if only one output
    # has it. Two outputs of ImageNet are called "crane".
    plain = [_plain(name) for name in names]
    counts = Counter(plain)
    once = {key: number for number, key in enumerate(plain) if counts[key] == 1}
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
    # Classes without images do not count.
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
