"""What a person is told while a command runs: notices above bars."""

import logging
import os
import sys

from data.texts import printable
from visualization.terminal.flags import as_flags
from visualization.terminal.results import Results


class _Notices(logging.Handler):
    """Writes notices to stderr, above a bar where one is shown, with arguments as flags."""

    def __init__(self, results: Results) -> None:
        super().__init__()
        self._results = results

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        notice = printable(as_flags(record.getMessage()))
        if self._results.heard(notice):
            tqdm.write(f"note: {notice}", file=sys.stderr)


def start(results: Results) -> None:
    """Notices go to stderr as they are; bars only to a terminal that wants them."""
    if results.quiet or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for package in ("data", "analysis", "compression", "visualization"):
        logging.getLogger(package).handlers = [_Notices(results)]
