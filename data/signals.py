"""Ctrl-C, a kill and a closed terminal: all end a run as Ctrl-C does, cleaning up on the way.

They are raised wherever the program is just then, and where that is inside a library's own code,
it may drop them with a lookup that it takes to have failed. They are remembered therefore, and
raised once more before anything that lasts is made of the run.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
_sent: list[int] = []


def listen() -> None:
    """Have them raised in this process, except those that it was started to ignore (nohup)."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


@contextmanager
def kept() -> Iterator[None]:
    """Put back in the end what a library made of them, such as an exit of its own."""
    handlers = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def raise_again() -> None:
    """Raise KeyboardInterrupt where this process was told to end."""
    if told():
        raise KeyboardInterrupt


def told() -> bool:
    """Whether this process was told to end."""
    return bool(_sent)


def exit_code() -> int:
    """Of a run that was ended, as a shell counts: 130 of Ctrl-C, 143 of a kill."""
    return 128 + (_sent[0] if _sent else signal.SIGINT)


def _end(number: int, _: FrameType | None) -> None:
    _sent.append(number)
    raise KeyboardInterrupt
