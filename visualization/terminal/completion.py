"""What a shell offers at the tab key: the flags of the mode that is typed, and their values.

argcomplete is brought in only where a shell asks, and need not be installed.
"""

import argparse
import os
import re
from collections.abc import Iterable

from data.vocabulary import FAMILIES
from visualization.terminal.command_line import parser_of
from visualization.terminal.flags import BY_NAME, FLAGS
from visualization.terminal.modes import MODES

PATHS = ("FILE", "FOLDER", "NAME")  # what stands for a path in the help; a model may be a folder


def answer() -> None:
    """Where a shell asks how its line may go on: tell it, and end, for nothing else is to run."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        raise SystemExit(1) from None
    mode = _mode(os.environ.get("COMP_LINE", ""))
    parser = parser_of([flag for flag in FLAGS if not mode or mode in flag.modes])
    argcomplete.autocomplete(
        parser,
        default_completer=_values,  # type: ignore[arg-type]  # any function of these will do
    )


def _mode(line: str) -> str:
    """Of a line that is being typed; none where that names none yet."""
    named = re.findall(r"--mode[ =](\S+)\s", line)
    return named[-1] if named and named[-1] in MODES else ""


def _values(prefix: str, action: argparse.Action, **_: object) -> Iterable[str]:
    """What a flag takes."""
    if action.dest in ("mode", "methods"):
        return MODES if action.dest == "mode" else FAMILIES
    rule = BY_NAME[action.dest].rule
    if rule.shown not in PATHS:
        return rule.values
    from argcomplete.completers import FilesCompleter

    files: Iterable[str] = FilesCompleter()(prefix)
    return files
