"""One function per variant, generated from the table of variants.

Type checkers read factories.pyi, which `scripts/write_factory_stubs.py` writes from the same table.
"""

from collections.abc import Callable
from typing import Any

from regnet.design.variants import VARIANTS, Variant
from regnet.nn.model import AnyNet
from regnet.zoo.create import create


def _factory(variant: Variant) -> Callable[..., AnyNet]:
    def build(**options: Any) -> AnyNet:
        model: AnyNet = create(variant.name, **options)
        return model

    build.__name__ = build.__qualname__ = variant.factory
    build.__doc__ = f"Build {variant.label}: `create({variant.name!r}, ...)`, with its options."
    return build


__all__ = []
for _variant in VARIANTS.values():
    globals()[_variant.factory] = _factory(_variant)
    __all__ += [_variant.factory]
