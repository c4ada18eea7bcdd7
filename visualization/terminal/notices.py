"""What a person sees while a command runs: notices above bars, on streams that may be gone."""

import io
import logging
import os
import sys
from pathlib import Path

from visualization.terminal.flags import as_flags


class _Notices(logging.Handler):
    """Writes notices to stderr, above a bar where one is shown, with arguments as flags."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"note: {as_flags(record.getMessage())}", file=sys.stderr)


def start(quiet: bool) -> None:
    """Notices go to stderr as they are; bars only to a terminal that wants them."""
    if quiet or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for package in ("data", "analysis", "compression", "visualization"):
        logging.getLogger(package).handlers = [_Notices()]


def usable_streams() -> None:
    """A closed stream swallows what is written; one that lacks a character shows its escape."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        if isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")
