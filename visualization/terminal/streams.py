"""What is written to a terminal: text, whatever it holds, on streams that may be gone."""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from config import UsageError
from data.texts import printable


class ReaderGone(Exception):
    """Whoever read our output has seen enough."""


def escaped(text: str) -> str:
    """Lines with what characters could do to a terminal shown and not done."""
    return "\n".join(map(printable, text.split("\n")))


def tell(text: str) -> None:
    """Print lines, at once, whatever they hold."""
    put(escaped(text))


def put(text: str) -> None:
    """Print, at once, what is escaped already."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        mute()
        raise ReaderGone from None
    except OSError as error:
        mute()
        raise UsageError(
            f"Standard output cannot be written ({error.strerror or error})",
            "send it elsewhere; files that the run has written are there",
        ) from None


def complain(sentence: str) -> None:
    """One line to stderr, where that takes it."""
    with suppress(OSError):
        print(f"main.py: {printable(sentence)}", file=sys.stderr)


def end_line() -> None:
    """On stderr, where a progress bar stands in it; a terminal that was closed takes nothing."""
    with suppress(OSError):
        print(file=sys.stderr)


def mute() -> None:
    """What is still to be printed goes nowhere: at its end Python would try again."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def usable() -> None:
    """A closed stream swallows what is written; one that lacks a character shows its escape."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        if isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")
