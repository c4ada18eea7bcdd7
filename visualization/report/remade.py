"""`--mode report`: the page of a folder made anew."""

from pathlib import Path

import config
from config import UsageError
from data.writing import whole_or_nothing
from visualization.report.page import build


def remake(output_dir: str, compare_with: str | None = None) -> Path:
    """Write `report.html` into a folder of results; its path."""
    folder = config.user_path(output_dir, "`output_dir`")
    other = None if compare_with is None else config.user_path(compare_with, "`compare_with`")
    page = build(folder, other)
    file = folder / "report.html"
    try:
        with whole_or_nothing(file) as part:
            part.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"`output_dir` {folder} cannot be written ({error.strerror or error})",
            "make room, or copy the results to another folder",
        ) from None
    return file
