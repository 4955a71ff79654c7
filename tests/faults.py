"""Faults of the machine, as tests bring them about."""

import contextlib
from collections.abc import Iterator


def limit_file_size(size: int) -> None:
    """Let no file of this process grow beyond so many bytes, as on a disk that is full."""
    import resource  # which Windows lacks

    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


@contextlib.contextmanager
def file_sizes_restored() -> Iterator[None]:
    """Take back, at the end, what `limit_file_size` limits inside."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
