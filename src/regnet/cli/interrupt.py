"""Handle signals: remember Ctrl-C, and let others end a command in order.

Ctrl-C is remembered because a library that is being imported can swallow the KeyboardInterrupt.
"""

import signal
from types import FrameType
from typing import NoReturn

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


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed.

    A second signal ends the process at once. Signals that are ignored, as `nohup` does with SIGHUP,
    stay ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def handled() -> None:
    """Forget the Ctrl-C: the command has dealt with it, and later errors are errors again."""
    _seen.clear()
