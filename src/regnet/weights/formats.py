"""The naming schemes of published weights: recognized from the names, converted in and out.

Converting renames, and where a library's networks take blue first, turns the stem's input
channels around; both can be undone bit for bit.
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
"""Names of the convolution that sees the image: one stem, many convolutions, pre-activation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One library's way to store a network."""

    name: str
    title: str
    tables: Callable[[Iterable[str]], tuple[KeyTable, ...]]
    """Its tables; a library may have several, and one that depends on the keys at hand."""
    bgr: bool = False
    """Whether its networks take blue first."""
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    """Tensors that are no part of the network, such as heads for pretraining."""


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
    """The format with this name; `swag` is `classy`.

    Raises:
        NotFoundError: there is none.
    """
    if found := FORMATS.get({"swag": "classy"}.get(name.lower(), name.lower())):
        return found
    raise NotFoundError(unknown("format", name, (*FORMATS, "swag")))


def detect(keys: Iterable[str]) -> tuple[Format, KeyTable]:
    """The format that explains every key, and its table.

    Raises:
        WeightsError: none does; the message shows the keys that the closest one does not know.
    """
    names = tuple(keys)
    closest: tuple[int, str, list[str]] | None = None
    for row in FORMATS.values():
        parts = [key for key in names if not row.ignored.match(key)]
        for table in row.tables(parts):
            strangers = [key for key in parts if not table.knows_theirs(key)]
            if parts and not strangers:
                return row, table
            if parts and (closest is None or len(strangers) < closest[0]):
                closest = (len(strangers), row.title, strangers)
    if closest is None:
        raise WeightsError("there are no tensors in it")
    count, title, strangers = closest
    shown = ", ".join(strangers[:3]) + (f" and {count - 3} more" if count > 3 else "")
    raise WeightsError(
        f"no known format names its tensors so; in the closest, {title}'s, there is no {shown}"
    )


def to_native(
    tensors: Mapping[str, Tensor], *, bgr: bool | None = None
) -> tuple[dict[str, Tensor], Format]:
    """The tensors under our names, for images that have red first; and what format it was.

    Args:
        tensors: a state dict in any known format; tensors that are no part of a network, such as
            VISSL's projection heads, are left out.
        bgr: whether the stem takes blue first; None: as usual in the format.

    Raises:
        WeightsError: the names belong to no known format.
    """
    row, table = detect(tensors)
    kept = {key: value for key, value in tensors.items() if not row.ignored.match(key)}
    ours = plain_classifier(table.state_dict_to_ours(kept))
    return _swapped(ours) if (row.bgr if bgr is None else bgr) else ours, row


def plain_classifier(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, where the classifier is one linear layer among others without tensors.

    Such as dropout: `head.fc.1.weight` becomes `head.fc.weight`.
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
    """Our tensors as another library names them.

    Args:
        tensors: a state dict under our names.
        to: the format.
        bgr: whether the result's stem takes blue first; None: as usual in the format.

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
    """The tensors with the stem's input channels in reverse order: RGB to BGR, or back."""
    return {
        key: value.flip(1).contiguous() if key in STEM_WEIGHTS else value
        for key, value in tensors.items()
    }
