"""Markers of tests: a test is slow if it is marked so or uses a slow fixture."""

import sys
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import pytest

from regnet.design.variants import VARIANTS

Fixture = TypeVar("Fixture", bound=Callable[..., object])

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and limits of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs features of Linux, such as /proc")

SLOW_MARKERS = ("slow", "browser", "long", "gpu")


def slow_fixture(function: Fixture) -> Fixture:
    """Mark every test that uses a fixture, directly or through other fixtures, as slow."""
    function.slow = True  # type: ignore[attr-defined]
    return function


def is_slow(item: pytest.Item) -> bool:
    """Return whether a test is left out of `make test`."""
    if any(item.get_closest_marker(name) for name in SLOW_MARKERS):
        return True
    fixtures = getattr(item, "_fixtureinfo", None)
    definitions = fixtures.name2fixturedefs.values() if fixtures else ()
    return any(getattr(found.func, "slow", False) for many in definitions for found in many)


def one_per_family(
    names: Iterable[str],
    variant: Callable[[str], str] = str,
    rest: pytest.MarkDecorator = pytest.mark.slow,
) -> list[Any]:
    """Return the names as parameters of a test; all but the first of each family get a marker.

    Args:
        names: names of variants, or of things that belong to a variant.
        variant: returns the name of the variant to which a name belongs.
        rest: the marker.
    """
    rows = ((name,) for name in names)
    return first_of_each(rows, lambda name: VARIANTS[variant(name)].family, rest)


def first_of_each(
    rows: Iterable[tuple[Any, ...]],
    kind: Callable[..., Hashable],
    rest: pytest.MarkDecorator = pytest.mark.slow,
) -> list[Any]:
    """Return rows of parameters of a test; all but the first of each kind get a marker."""
    seen = set()
    parameters = []
    for row in rows:
        found = kind(*row)
        marks = [rest] if found in seen else []
        parameters.append(pytest.param(*row, id="-".join(map(str, row)), marks=marks))
        seen.add(found)
    return parameters


def long(*values: Any) -> list[Any]:
    """Return values as parameters of a test that run only with --long."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


def times(quick: int, long: int) -> pytest.MarkDecorator:
    """Parametrize `count`, how often a fault is repeated: `quick`, or `long` with --long."""
    return pytest.mark.parametrize("count", [quick, pytest.param(long, marks=pytest.mark.long)])
