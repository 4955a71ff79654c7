"""State-dict keys of other libraries, as reversible tables.

Ours are those of timm's regnet.py. A table lists pairs of patterns, ours and theirs, in which
`{i}` and `{j}` are the numbers of stage and block; `{i-1}` counts from 0. The first pair that
fits renames a key; a key that no pair fits keeps its name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from regnet.errors import WeightsError

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class KeyTable:
    """A two-way renaming of state-dict keys, by their beginnings."""

    pairs: tuple[tuple[str, str], ...]
    """Beginnings of keys: ours, theirs."""

    def to_ours(self, key: str) -> str:
        """Our name of their tensor."""
        return self._rename(key, ((theirs, ours) for ours, theirs in self.pairs))

    def to_theirs(self, key: str) -> str:
        """Their name of our tensor."""
        return self._rename(key, self.pairs)

    def state_dict_to_ours(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Their state dict under our names."""
        return _renamed(state_dict, self.to_ours)

    def state_dict_to_theirs(self, state_dict: Mapping[str, Value]) -> dict[str, Value]:
        """Our state dict under their names."""
        return _renamed(state_dict, self.to_theirs)

    @staticmethod
    def _rename(key: str, pairs: Iterable[tuple[str, str]]) -> str:
        for source, target in pairs:
            if match := re.match(_pattern(source), key):
                from_one = {
                    name: int(number) + (f"{{{name}-1}}" in source)
                    for name, number in match.groupdict().items()
                }
                return _fill(target, from_one) + key[match.end() :]
        return key


def _renamed(state_dict: Mapping[str, Value], rename: Callable[[str], str]) -> dict[str, Value]:
    renamed = {rename(key): value for key, value in state_dict.items()}
    if len(renamed) < len(state_dict):
        raise WeightsError(
            "two tensors have the same name after renaming; is this the right format?"
        )
    return renamed


def _pattern(source: str) -> str:
    return re.sub(r"\\\{(\w)(?:\\-1)?\\\}", r"(?P<\1>\\d+)", re.escape(source))


def _fill(target: str, numbers: Mapping[str, int]) -> str:
    for name, number in numbers.items():
        target = target.replace(f"{{{name}}}", str(number)).replace(
            f"{{{name}-1}}", str(number - 1)
        )
    return target


def _in_blocks(ours: str, theirs: str, parts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{ours}{a}.", f"{theirs}{b}.") for a, b in parts.items())


BYOBNET: Final = KeyTable(
    _in_blocks(
        "s{i}.b{j}.",
        "stages.{i-1}.{j-1}.",
        {"conv1": "conv1_1x1", "conv2": "conv2_kxk", "se": "attn", "conv3": "conv3_1x1"},
    )
)
"""timm's byobnet.py: RegNetZ b16, c16, d8, d32, e8 and evos."""

PYCLS: Final = KeyTable(
    (
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
"""pycls networks with vanilla blocks, whose convolutions are not in a residual branch f."""
