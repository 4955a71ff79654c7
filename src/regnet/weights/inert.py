"""A pickle reader for `torch.load` that builds tensors and plain containers, and runs nothing.

Every class or function that a file names, other than the few that tensors need, becomes an empty
object that ignores what is done to it. This module takes the place of `pickle`.
"""

import pickle
from collections import OrderedDict
from typing import Any, Final

import torch
import torch._utils

_ALLOWED: Final[dict[tuple[str, str], Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
} | {
    ("torch", name): getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}


class Ignored:
    """Stands for an object that was left out."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> "Ignored":
        return self

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _value: object) -> None:
        """Ignore it."""

    def extend(self, _values: object) -> None:
        """Ignore them."""

    def add(self, _value: object) -> None:
        """Ignore it."""


class Unpickler(pickle.Unpickler):
    """Finds nothing but what tensors are made of."""

    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), Ignored)


def load(file: Any, **options: Any) -> Any:
    """As `pickle.load`."""
    return Unpickler(file, **options).load()
