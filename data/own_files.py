"""Files of ours that a person names, to be written: free, or an earlier one of the same kind."""

import json
from dataclasses import dataclass
from pathlib import Path

import config
from config import UsageError, user_path
from data.writing import unfinished

LARGEST_HEADER = 100_000_000  # bytes: what safetensors itself would read


@dataclass(frozen=True)
class OwnFile:
    """A kind of file. argument: that names one. begins: how its format does, in any version.
    called: what it is. example: of a name."""

    argument: str
    begins: str
    called: str
    example: str

    def to_write(self, given: str, text_file: str | None = None, model: str | None = None) -> Path:
        """The file of this name. Raises UsageError where it cannot be written, or holds what is not
        ours, such as the text or the model of the run."""
        file = user_path(given, f"`{self.argument}`")
        named = f"`{self.argument}` {file}"
        try:
            if not file.name or (file.exists() and not file.is_file()):
                raise UsageError(f"{named} is no file", f"give a name such as {self.example}")
            if file.exists() and not _begins(file, self.begins):
                what = _what_it_is(file, text_file, model) or f"is there and is no {self.called}"
                raise UsageError(
                    f"{named} {what}", f"give a new name, or that of an earlier {self.called}"
                )
            if file.resolve().is_relative_to(config.cache_folder().resolve()):
                raise UsageError(
                    f"{named} is where the toolkit keeps its own files", "give another folder"
                )
            with unfinished(file.resolve()):
                return file
        except (OSError, RuntimeError) as error:  # the latter: links that go around in a circle
            raise self.not_written(file, getattr(error, "strerror", None) or error) from None

    def not_written(self, file: Path, reason: object) -> UsageError:
        return UsageError(
            f"`{self.argument}` {file} cannot be written ({reason})",
            "give a file in a folder that exists and has room",
        )


SAVED_CACHE = OwnFile("save_cache", "plain cache ", "saved cache", "text.cache")


def refuse(
    save_cache: str | None = None, text_file: str | None = None, model: str | None = None
) -> None:
    """Raise UsageError where a cache cannot be saved there, before any work is done."""
    if save_cache is not None:
        SAVED_CACHE.to_write(save_cache, text_file, model)


def _begins(file: Path, format: str) -> bool:
    """Whether a file is of this format, whole or damaged: by the header that a safetensors file
    begins with, after eight bytes of its length."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > LARGEST_HEADER:
            return False
        try:
            header = json.loads(opened.read(length))
            return str(header["__metadata__"]["format"]).startswith(format)
        except (ValueError, RecursionError, LookupError, TypeError):
            return False


def _what_it_is(file: Path, text_file: str | None, model: str | None) -> str | None:
    text = None if text_file is None else user_path(text_file, "`text_file`")
    if text is not None and text.exists() and file.samefile(text):
        return "is the text that is read"
    if model and file.resolve().is_relative_to(user_path(model, "`model`").resolve()):
        return "is a file of the model"
    return None
