"""Naming schemes of published weights: recognize them by the names, and convert from and to them.

A conversion renames the tensors. It also reverses the input channels of the stem if the other
library's networks take blue first. Both can be undone exactly, bit by bit.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from regnet.errors import NotFoundError, WeightsError, unknown
from regnet.weights.identify import identify
from regnet.weights.keys import (
    BYOBNET,
    CLASSY,
    NFNET,
    PYCLS,
    PYCLS_VANILLA,
    TIMM,
    TORCHVISION,
    TRANSFORMERS,
    KeyTable,
    vissl_table,
)

STEM_WEIGHTS: Final = ("stem.conv.weight", "stem.conv1.conv.weight", "stem.weight")
"""Names of the first convolution in plain stems, in stems of several convolutions, and in
pre-activation networks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The naming scheme of a library."""

    name: str
    title: str
    tables: Callable[[Iterable[str]], tuple[KeyTable, ...]]
    """Returns the tables of the scheme for these keys; a library may have several tables."""
    bgr: bool = False
    """Whether its networks take the channels in the order blue, green, red."""
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    """Matches tensors that do not belong to the network, such as heads for pretraining."""


FORMATS: Final[Mapping[str, Format]] = {
    row.name: row
    for row in (
        Format(name="timm", title="timm", tables=lambda _: (TIMM, BYOBNET, NFNET)),
        Format(name="torchvision", title="torchvision", tables=lambda _: (TORCHVISION,)),
        Format(name="pycls", title="pycls", tables=lambda _: (PYCLS, PYCLS_VANILLA), bgr=True),
        Format(name="transformers", title="transformers", tables=lambda _: TRANSFORMERS),
        Format(name="classy", title="ClassyVision and SWAG", tables=lambda _: (CLASSY,)),
        Format(
            name="vissl",
            title="VISSL",
            tables=lambda keys: (vissl_table(keys),),
            ignored=re.compile(r"\d+\.(projection_head|prototypes)"),
        ),
    )
}


def find_format(name: str) -> Format:
    """Return the format with this name; `swag` is another name for `classy`.

    Raises:
        NotFoundError: there is no such format.
    """
    if found := FORMATS.get({"swag": "classy"}.get(name.lower(), name.lower())):
        return found
    raise NotFoundError(unknown("format", name, (*FORMATS, "swag")))


def detect(keys: Iterable[str]) -> tuple[Format, KeyTable]:
    """Return the format that explains every key, and its table.

    Raises:
        WeightsError: there is no such format; the message lists keys that the closest format lacks.
    """
    row, table, strangers = closest(keys)
    if not strangers:
        return row, table
    count = len(strangers)
    shown = ", ".join(strangers[:3]) + (f" and {count - 3} more" if count > 3 else "")
    raise WeightsError(
        f"its tensor names match no known format; the closest, {row.title}, does not have {shown}"
    )


def closest(keys: Iterable[str]) -> tuple[Format, KeyTable, list[str]]:
    """Return the format that explains the most keys, its table, and the keys that it lacks.

    Raises:
        WeightsError: there are no keys.
    """
    names = tuple(keys)
    found: tuple[Format, KeyTable, list[str]] | None = None
    for row in FORMATS.values():
        parts = [key for key in names if not row.ignored.match(key)]
        for table in row.tables(parts):
            strangers = [key for key in parts if not table.knows_theirs(key)]
            if parts and not strangers:
                return row, table, []
            if parts and (found is None or len(strangers) < len(found[2])):
                found = row, table, strangers
    if found is None:
        raise WeightsError("it contains no tensors")
    return found


def to_native(
    tensors: Mapping[str, Tensor], *, bgr: bool | None = None
) -> tuple[dict[str, Tensor], Format]:
    """Return tensors with the names of this library, for images with red first, and the format.

    Args:
        tensors: a state dict in any known format; tensors that do not belong to the network, such
            as projection heads of VISSL, are left out.
        bgr: whether the stem takes blue first; None: as usual in the format.

    Raises:
        WeightsError: the names belong to no known format.
    """
    row, table = detect(tensors)
    kept = {key: value for key, value in tensors.items() if not row.ignored.match(key)}
    ours = plain_classifier(table.state_dict_to_ours(kept))
    return _swapped(ours) if (row.bgr if bgr is None else bgr) else ours, row


def plain_classifier(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a classifier with one linear layer among layers without tensors to a plain classifier.

    For example, with dropout before the linear layer, `head.fc.1.weight` becomes `head.fc.weight`.
    """
    inner = {key: key.rpartition(".") for key in tensors if key.startswith("head.fc.")}
    layers = {before for before, _, _ in inner.values()}
    if len(layers) != 1 or {name for _, _, name in inner.values()} - {"weight", "bias"}:
        return dict(tensors)
    names = {key: f"head.fc.{name}" for key, (_, _, name) in inner.items()}
    return {names.get(key, key): value for key, value in tensors.items()}


def from_native(
    tensors: Mapping[str, Tensor], to: Format, *, bgr: bool | None = None
) -> dict[str, Tensor]:
    """Return tensors of this library with the names of another library.

    Args:
        tensors: a state dict with the names of this library.
        to: the format of the result.
        bgr: whether the stem of the result takes blue first; None: as usual in the format.

    Raises:
        WeightsError: the format has no such networks.
    """
    ours = _swapped(tensors) if (to.bgr if bgr is None else bgr) else dict(tensors)
    table = _table_for(ours, to)
    for key in ours:
        if not table.knows_ours(key) or table.to_ours(table.to_theirs(key)) != key:
            raise WeightsError(f"{to.title} has no networks with {key}")
    return table.state_dict_to_theirs(ours)


def _table_for(tensors: Mapping[str, Tensor], to: Format) -> KeyTable:
    if to.name == "timm":
        if any(key.endswith(".gain") for key in tensors):
            return NFNET
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        variants = identify(shapes)
        return BYOBNET if any(v.config.bottleneck_from == "input" for v in variants) else TIMM
    if to.name == "pycls":
        plain = not any(".conv3." in key or ".downsample." in key for key in tensors)
        return PYCLS_VANILLA if plain else PYCLS
    tables = to.tables(())
    fitting = (t for t in tables if all(map(t.knows_ours, tensors)))
    return next(fitting, tables[0])


def _swapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the stem's input channels reversed: from RGB to BGR, or back."""
    return {
        key: value.flip(1).contiguous() if key in STEM_WEIGHTS else value
        for key, value in tensors.items()
    }
