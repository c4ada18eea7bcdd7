"""The file that a prompt is stored in: there to be read, or free to be written."""

import os
from pathlib import Path

from config import UsageError, user_path
from data.own_files import OwnFile

OURS = "compressed cache "  # how the format of our files begins, in any version
FILE = OwnFile("save_compressed", OURS, "compressed prompt", "prompt.kv")
to_write = FILE.to_write
not_written = FILE.not_written


def to_read(load_compressed: str) -> Path:
    """The file of this name. Raises UsageError where there is none."""
    file = user_path(load_compressed, "`load_compressed`")
    if not os.path.isfile(file):  # noqa: PTH113 (no error, ever)
        raise UsageError(
            f"`load_compressed` {file} is no file", "give one that `save_compressed` has written"
        )
    return file
