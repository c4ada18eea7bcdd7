"""Ctrl-C, a kill and a closed terminal end a run as errors do, cleaning up on the way.

They are raised wherever the program is just then, and where that is inside a library's own code,
it may drop them with a lookup that it takes to have failed. They are remembered therefore, and
raised once more before anything that lasts is made of the run.
"""

import signal
from types import FrameType

_sent: list[BaseException] = []


def listen() -> None:
    """Have them raised in this process, except those that it was started to ignore (nohup)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def raise_again() -> None:
    """Raise what was sent to this process; nothing where nothing was."""
    if _sent:
        raise _sent[0]


def _end(number: int, _: FrameType | None) -> None:
    _sent.append(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
    raise _sent[-1]
