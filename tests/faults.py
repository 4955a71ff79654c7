"""Faults of the machine and of files, as tests cause them."""

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final


def limit_file_size(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes, as on a full disk."""
    import resource  # not available on Windows

    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


@contextlib.contextmanager
def file_sizes_restored() -> Iterator[None]:
    """Restore the limit at the end, after `limit_file_size` was called inside."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def flipped_bits(path: Path, count: int) -> Iterator[int]:
    """Flip one random bit of the original file, `count` times; restore the file at the end."""
    whole, rng = path.read_bytes(), random.Random(0)
    try:
        for number in range(count):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            yield number
    finally:
        path.write_bytes(whole)


ODD_VALUES: Final = (
    None, True, -1, 0, 10**30, -0.5, float("nan"), float("inf"), "", "x", "../../x", "\x1b[2J",
    [], {}, [[]], [None], {"a": {}}, [1] * 1000,
)  # fmt: skip


def changed_by_hand(values: Any, rng: random.Random) -> Any:
    """Return a JSON value with one entry changed, removed or added, as a person might edit it."""
    values = json.loads(json.dumps(values))
    places = list(_places(values))
    inside, key = rng.choice(places)
    how = rng.random()
    if how < 0.2:
        del inside[key]
    elif how < 0.3 and isinstance(inside, dict):
        inside["added"] = rng.choice(ODD_VALUES)
    else:
        inside[key] = rng.choice(ODD_VALUES)
    return values


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every object or list inside a JSON value, with each of its keys."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)
