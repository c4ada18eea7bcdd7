"""The file that a prompt is stored in: there to be read, or free to be written."""

import json
import os
from pathlib import Path

import config
from config import UsageError, user_path
from data.writing import unfinished

OURS = "compressed cache "  # how the format of our files begins, in any version
LARGEST_HEADER = 100_000_000  # bytes: what safetensors itself would read


def to_write(save_compressed: str, text_file: str | None = None, model: str | None = None) -> Path:
    """The file of this name. Raises UsageError where it cannot be written, or holds what is not
    ours, such as the text or the model of the run."""
    file = user_path(save_compressed, "`save_compressed`")
    try:
        if not file.name or (file.exists() and not file.is_file()):
            raise UsageError(
                f"`save_compressed` {file} is no file", "give a name such as prompt.kv"
            )
        if file.exists() and not _is_ours(file):
            raise UsageError(
                f"`save_compressed` {file} {_what_it_is(file, text_file, model)}",
                "give a new name, or that of an earlier compressed prompt",
            )
        if file.resolve().is_relative_to(config.cache_folder().resolve()):
            raise UsageError(
                f"`save_compressed` {file} is where the toolkit keeps its own files",
                "give another folder",
            )
        with unfinished(file.resolve()):
            return file
    except (OSError, RuntimeError) as error:  # the latter: links that go around in a circle
        raise not_written(file, getattr(error, "strerror", None) or error) from None


def to_read(load_compressed: str) -> Path:
    """The file of this name. Raises UsageError where there is none."""
    file = user_path(load_compressed, "`load_compressed`")
    if not os.path.isfile(file):  # noqa: PTH113 (no error, ever)
        raise UsageError(
            f"`load_compressed` {file} is no file", "give one that `save_compressed` has written"
        )
    return file


def not_written(file: Path, reason: object) -> UsageError:
    return UsageError(
        f"`save_compressed` {file} cannot be written ({reason})",
        "give a file in a folder that exists and has room",
    )


def _is_ours(file: Path) -> bool:
    """Whether a file is a compressed prompt, whole or damaged: by the header that a safetensors
    file begins with, after eight bytes of its length."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > LARGEST_HEADER:
            return False
        try:
            header = json.loads(opened.read(length))
            return str(header["__metadata__"]["format"]).startswith(OURS)
        except (ValueError, RecursionError, LookupError, TypeError):
            return False


def _what_it_is(file: Path, text_file: str | None, model: str | None) -> str:
    text = None if text_file is None else user_path(text_file, "`text_file`")
    if text is not None and text.exists() and file.samefile(text):
        return "is the text that is read"
    if model and file.resolve().is_relative_to(user_path(model, "`model`").resolve()):
        return "is a file of the model"
    return "is there and is no compressed prompt"
