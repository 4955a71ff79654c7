"""Remember Ctrl-C, because one that arrives during another library's import can be lost there."""

import signal
from types import FrameType

_seen: list[int] = []


def remember_interrupts() -> None:
    """Note each Ctrl-C before it becomes a KeyboardInterrupt, unless someone else handles it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def interrupted() -> bool:
    """Whether there was one; an error after it is its consequence, and no news."""
    return bool(_seen)


def _note(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    signal.default_int_handler(number, frame)


def handled() -> None:
    """Forget it: a command has made of it what it should, and later errors are news."""
    _seen.clear()
