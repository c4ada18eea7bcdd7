"""How a command ends: its exit code, and one sentence where it could not do what was asked."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from config import UsageError
from visualization.terminal.flags import as_flags


def exit_code(command: Callable[[], None]) -> int:
    """Run a command: 0, 2 for what a person can mend, 130 for Ctrl-C."""
    try:
        command()
        sys.stdout.flush()
    except UsageError as error:
        return _said(as_flags(str(error)), 2)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _said("interrupted; earlier results were kept.", 130)
    except BrokenPipeError:  # the reader of our output has seen enough
        _mute()
        return 0
    except OSError as error:  # output that cannot be written, and whatever else the system refuses
        _mute()
        return _said(str(error), 2)
    return 0


def _said(sentence: str, code: int) -> int:
    print(f"main.py: {sentence}", file=sys.stderr)
    return code


def _mute() -> None:
    """What is still to be printed goes nowhere: at its end Python would try again."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def clean_up_when_killed() -> None:
    """A kill cleans up as Ctrl-C does."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)
