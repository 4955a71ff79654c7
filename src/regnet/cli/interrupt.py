"""Remember Ctrl-C, because a library that is being imported can swallow the KeyboardInterrupt."""

import signal
from types import FrameType

_seen: list[int] = []


def remember_interrupts() -> None:
    """Record each Ctrl-C before it raises KeyboardInterrupt, unless another handler is set."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def interrupted() -> bool:
    """Return whether Ctrl-C was pressed; an error that follows it is only its consequence."""
    return bool(_seen)


def _note(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    signal.default_int_handler(number, frame)


def handled() -> None:
    """Forget the Ctrl-C: the command has dealt with it, and later errors are errors again."""
    _seen.clear()
