"""Which tests are slow: those that are marked so, and those that use a slow fixture."""

from collections.abc import Callable
from typing import TypeVar

import pytest

Fixture = TypeVar("Fixture", bound=Callable[..., object])

SLOW_MARKERS = ("slow", "browser", "long", "gpu")


def slow_fixture(function: Fixture) -> Fixture:
    """Mark every test that uses a fixture, directly or by way of others, as slow."""
    function.slow = True  # type: ignore[attr-defined]
    return function


def is_slow(item: pytest.Item) -> bool:
    """Return whether a test is left out of `make test`."""
    if any(item.get_closest_marker(name) for name in SLOW_MARKERS):
        return True
    fixtures = getattr(item, "_fixtureinfo", None)
    definitions = fixtures.name2fixturedefs.values() if fixtures else ()
    return any(getattr(found.func, "slow", False) for many in definitions for found in many)
