"""Names of variants: resolve aliases, and suggest names similar to an unknown one."""

import difflib
from collections.abc import Mapping
from functools import cache

from regnet.design.variants import VARIANTS, Variant
from regnet.errors import ConfigError, unknown


def find_variant(name: str) -> tuple[Variant, str | None]:
    """Return the variant that a name stands for, and the tag of its checkpoint if it has one.

    Args:
        name: a canonical name or an alias, or one of these followed by `.tag`. Case does not
            matter, and - and _ are equivalent.

    Raises:
        ConfigError: there is no such variant; the message names the most similar ones.
    """
    names = _names()
    if variant := names.get(_key(name)):
        return variant, None
    before, dot, tag = name.rpartition(".")
    if dot and tag and (variant := names.get(_key(before))):
        return variant, tag
    bare = _key(before if dot else name)
    close = difflib.get_close_matches(bare, names, n=3, cutoff=0.75)
    meant = list(dict.fromkeys(names[key].name for key in close))
    raise ConfigError(
        unknown(
            "variant",
            name,
            names,
            meant=meant,
            listing="`regnet list` and list_models() list all",
        )
    )


@cache
def _names() -> Mapping[str, Variant]:
    names: dict[str, Variant] = {}
    for variant in VARIANTS.values():
        for name in (variant.name, variant.factory, variant.label, *variant.aliases):
            other = names.setdefault(_key(name), variant)
            assert other is variant, f"{name!r} names both {other.name} and {variant.name}"
    return names


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "_")
