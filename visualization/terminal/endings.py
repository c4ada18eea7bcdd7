"""How a command ends: its exit code, and one sentence where it could not do what was asked."""

import traceback
from collections.abc import Callable
from pathlib import Path

from config import UsageError
from data import memory, signals
from visualization.terminal.flags import as_flags
from visualization.terminal.streams import ReaderGone, complain, end_line

ROOT = Path(__file__).resolve().parent.parent.parent
NO_MEMORY = (
    "Memory ran out: read fewer tokens (--context_tokens) or fewer at a time (--prefill_chunk), "
    "take --dtype bfloat16, which needs half as much as float32, --cache_offload disk or "
    "--device_map auto, or give a smaller model"
)


def exit_code(
    command: Callable[[], None], debug: bool = False, refuse: Callable[[str], None] = complain
) -> int:
    """Run a command: 0, 2 for what a person can mend, 1 for a fault of the program; where it was
    ended from outside, as `signals.exit_code` says.

    debug: the traceback of whatever went wrong is shown before its sentence. refuse: is told that
    sentence.
    """
    try:
        command()
    except ReaderGone:
        return 0
    except KeyboardInterrupt:
        return _interrupted(refuse)
    except Exception as error:
        if signals.told():  # and stumbled on its way out, as over a terminal that is gone
            return _interrupted(refuse)
        if debug:
            traceback.print_exc()
        sentence, code = _told(error, debug)
        refuse(sentence)
        return code
    return 0


def _interrupted(refuse: Callable[[str], None]) -> int:
    end_line()
    refuse("interrupted; earlier results were kept.")
    return signals.exit_code()


def _told(error: Exception, debug: bool) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, UsageError):
        return as_flags(str(error)), 2
    if memory.is_lack(error):
        return f"{NO_MEMORY}.", 2
    return _fault(error, debug), 1


def _fault(error: Exception, debug: bool) -> str:
    """That it is the program's, what it is, and where."""
    said = " ".join(str(error).split()) or "without a message"
    advice = "" if debug else "; --debug shows the traceback"
    return (
        f"{type(error).__name__} ({said[:200]}) in {_place(error)}: this is a fault of the "
        f"program, which should have told you what to do{advice}."
    )


def _place(error: Exception) -> str:
    """The last line of ours that was reached: compression/files.py, line 31."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(ROOT)]
    ours = [f for f in ours if ".venv" not in Path(f.filename).parts]
    if not ours:
        return "a library"
    return f"{Path(ours[-1].filename).relative_to(ROOT)}, line {ours[-1].lineno}"
