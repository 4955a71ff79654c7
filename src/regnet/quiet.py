"""Other libraries kept from talking while we call them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Errors only from a logger, and no warnings; the level is restored afterwards."""
    other = logging.getLogger(logger)
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        other.setLevel(level)
