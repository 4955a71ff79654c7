"""Reversible tables of the state-dict keys of other libraries.

The names of this library are those of timm's regnet.py. A table lists pairs of patterns, the name
in this library ("ours") and in the other ("theirs"). A pattern is the beginning of a key. In it,
`{i}` and `{j}` are the numbers of stage and block, counted from 1; `{i-1}` is the same counted from
0, and `{i+1}` from 2. The first pair that matches a key renames it. A key that matches no pair is
not renamed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

from regnet.errors import WeightsError

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class KeyTable:
    """A reversible renaming of state-dict keys by their beginnings."""

    pairs: tuple[tuple[str, str], ...]
    """Pairs of beginnings of keys: ours, theirs."""

    def to_ours(self, key: str) -> str:
        """Return our name of their tensor."""
        return self._rename(key, ((theirs, ours) for ours, theirs in self.pairs))

    def to_theirs(self, key: str) -> str:
        """Return their name of our tensor."""
        return self._rename(key, self.pairs)

    def knows_ours(self, key: str) -> bool:
        """Return whether a pair matches a key of ours."""
        return any(_match(ours, key) for ours, _ in self.pairs)

    def knows_theirs(self, key: str) -> bool:
        """Return whether a pair matches a key of theirs."""
        return any(_match(theirs, key) for _, theirs in self.pairs)

    def state_dict_to_ours(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Return their state dict with our names."""
        return _renamed(state_dict, self.to_ours)

    def state_dict_to_theirs(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Return our state dict with their names."""
        return _renamed(state_dict, self.to_theirs)

    @staticmethod
    def _rename(key: str, pairs: Iterable[tuple[str, str]]) -> str:
        for source, target in pairs:
            if match := _match(source, key):
                numbers, rest = match
                return _filled(target, numbers) + rest
        return key


def _renamed(state_dict: Mapping[str, Value], rename: Callable[[str], str]) -> dict[str, Value]:
    renamed = {rename(key): value for key, value in state_dict.items()}
    if len(renamed) < len(state_dict):
        raise WeightsError(
            "two tensors have the same name after renaming; check that this is their format"
        )
    return renamed


_PLACEHOLDER = re.compile(r"\{(\w)([+-]1)?\}")


def _match(source: str, key: str) -> tuple[dict[str, int], str] | None:
    """Return the numbers in a key that matches the pattern, counted from 1, and its rest."""
    expression, placeholders = _compiled(source)
    match = expression.match(key)
    if not match:
        return None
    numbers: dict[str, int] = {}
    for (name, offset), digits in zip(placeholders, match.groups(), strict=True):
        if numbers.setdefault(name, int(digits) - offset) != int(digits) - offset:
            return None
    return numbers, key[match.end() :]


def _filled(target: str, numbers: Mapping[str, int]) -> str:
    return _PLACEHOLDER.sub(lambda m: str(numbers[m[1]] + int(m[2] or 0)), target)


@cache
def _compiled(source: str) -> tuple[re.Pattern[str], tuple[tuple[str, int], ...]]:
    """Return the pattern as a regular expression, and the name and offset of each number in it."""
    literals = [re.escape(part) for part in _PLACEHOLDER.split(source)[::3]]
    placeholders = tuple((m[1], int(m[2] or 0)) for m in _PLACEHOLDER.finditer(source))
    return re.compile(r"(\d{1,4})".join(literals)), placeholders


def _in_blocks(ours: str, theirs: str, parts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{ours}{a}.", f"{theirs}{b}.") for a, b in parts.items())


def _like_pycls(
    stem: str, block: str, parts: Mapping[str, str], *others: tuple[str, str]
) -> KeyTable:
    """Return a table for blocks built like those of pycls: stem, blocks, and other parts."""
    return KeyTable(
        (
            ("stem.conv.", f"{stem}0."),
            ("stem.bn.", f"{stem}1."),
            *_in_blocks("s{i}.b{j}.", block, parts),
            *others,
        )
    )


_PARTS = (
    *("conv1", "conv2", "conv3", "se", "downsample", "norm1", "norm2", "norm3"),
    *("self_attn", "post_attn"),
)

TIMM: Final = KeyTable(
    tuple(
        (beginning, beginning)
        for beginning in (
            "stem.",
            *(f"s{{i}}.b{{j}}.{part}." for part in _PARTS),
            "final_conv.",
            "head.fc.",
        )
    )
)
"""timm's regnet.py, whose names are ours."""

BYOBNET: Final = KeyTable(
    (
        *_in_blocks(
            "s{i}.b{j}.",
            "stages.{i-1}.{j-1}.",
            {
                "conv1": "conv1_1x1",
                "conv2": "conv2_kxk",
                "se": "attn",
                "self_attn": "self_attn",
                "post_attn": "post_attn",
                "conv3": "conv3_1x1",
            },
        ),
        ("stem.", "stem."),
        ("final_conv.", "final_conv."),
        ("head.fc.", "head.fc."),
    )
)
"""timm's byobnet.py: RegNetZ b16, c16, d8, d32, e8 and evos, and HaloRegNetZ."""

NFNET: Final = KeyTable(
    (
        *_in_blocks(
            "s{i}.b{j}.",
            "stages.{i-1}.{j-1}.",
            {
                "conv1": "conv1",
                "conv2": "conv2",
                "se": "attn",
                "conv3": "conv3",
                "downsample": "downsample",
            },
        ),
        ("stem.", "stem."),
        ("final_conv.", "final_conv."),
        ("head.fc.", "head.fc."),
    )
)
"""timm's nfnet.py: NF-RegNet."""

PYCLS: Final = KeyTable(
    (
        ("stem.", "stem."),
        ("head.fc.", "head.fc."),
        ("final_conv.", "head."),
        *_in_blocks(
            "s{i}.b{j}.",
            "s{i}.b{j}.",
            {
                "conv1.conv": "f.a",
                "conv1.bn": "f.a_bn",
                "conv2.conv": "f.b",
                "conv2.bn": "f.b_bn",
                "se.fc1": "f.se.f_ex.0",
                "se.fc2": "f.se.f_ex.2",
                "conv3.conv": "f.c",
                "conv3.bn": "f.c_bn",
                "downsample.conv": "proj",
                "downsample.bn": "bn",
            },
        ),
    )
)
"""The paper's code, pycls: networks with bottleneck or basic blocks."""

PYCLS_VANILLA: Final = KeyTable(
    tuple((ours, theirs.replace(".f.", ".")) for ours, theirs in PYCLS.pairs)
)
"""pycls networks with vanilla blocks, whose convolutions are not inside a residual branch `f`."""

TORCHVISION: Final = _like_pycls(
    "stem.",
    "trunk_output.block{i}.block{i}-{j-1}.",
    {
        "conv1.conv": "f.a.0",
        "conv1.bn": "f.a.1",
        "conv2.conv": "f.b.0",
        "conv2.bn": "f.b.1",
        "se.fc1": "f.se.fc1",
        "se.fc2": "f.se.fc2",
        "conv3.conv": "f.c.0",
        "conv3.bn": "f.c.1",
        "downsample.conv": "proj.0",
        "downsample.bn": "proj.1",
    },
    ("head.fc.", "fc."),
)
"""torchvision's regnet.py."""

_CLASSY_PARTS: Final = {
    "conv1.conv": "f.a.0",
    "conv1.bn": "f.a.1",
    "conv2.conv": "f.b.0",
    "conv2.bn": "f.b.1",
    "se.fc1": "f.se.excitation.0",
    "se.fc2": "f.se.excitation.2",
    "conv3.conv": "f.c",
    "conv3.bn": "f.final_bn",
    "downsample.conv": "proj",
    "downsample.bn": "bn",
}

CLASSY: Final = _like_pycls(
    "stem.stem.",
    "trunk_output.block{i}.block{i}-{j-1}.",
    _CLASSY_PARTS,
    ("head.fc.", "head.fc."),
)
"""Trunks of ClassyVision, and networks of SWAG, which adds a classifier to them."""

VISSL: Final = _like_pycls(
    "_feature_blocks.conv1.stem.",
    "_feature_blocks.res{i+1}.block{i}-{j-1}.",
    _CLASSY_PARTS,
    ("head.fc.", "0.clf.0."),
)
"""Trunks of ClassyVision, wrapped by VISSL."""

_VISSL_PART: Final = re.compile(r"(_feature_blocks\.res\d+\.)(block\d+-part\d+\.)(block\d+-\d+\.)")


def vissl_table(keys: Iterable[str]) -> KeyTable:
    """Return VISSL's table for these keys; SEER 10B divides stages into parts (`block3-part1.`)."""
    pairs: list[tuple[str, str]] = []
    for stage, part, block in {m.groups() for key in keys if (m := _VISSL_PART.match(key))}:
        ours = VISSL.to_ours(f"{stage}{block}proj.").removesuffix("downsample.conv.")
        pairs += _in_blocks(ours, f"{stage}{part}{block}", _CLASSY_PARTS)
    return KeyTable((*pairs, *VISSL.pairs)) if pairs else VISSL


def _transformers(prefix: str, *, se: bool) -> KeyTable:
    layers = {"conv1.": "layer.0.", "conv2.": "layer.1.", "conv3.": f"layer.{2 + se}."}
    layers |= {"downsample.": "shortcut."}
    parts = {
        ours + kind: theirs + name
        for ours, theirs in layers.items()
        for kind, name in (("conv", "convolution"), ("bn", "normalization"))
    }
    if se:
        parts |= {"se.fc1": "layer.2.attention.0", "se.fc2": "layer.2.attention.2"}
    embedder = f"{prefix}embedder.embedder."
    return KeyTable(
        (
            ("stem.conv.", f"{embedder}convolution."),
            ("stem.bn.", f"{embedder}normalization."),
            *_in_blocks("s{i}.b{j}.", f"{prefix}encoder.stages.{{i-1}}.layers.{{j-1}}.", parts),
            *((("head.fc.", "classifier.1."),) if prefix else ()),
        )
    )


TRANSFORMERS: Final = (
    _transformers("", se=False),
    _transformers("", se=True),
    _transformers("regnet.", se=False),
    _transformers("regnet.", se=True),
)
"""transformers' RegNetModel, without a classifier, and RegNetForImageClassification, for RegNetX
and RegNetY each."""
