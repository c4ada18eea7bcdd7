"""Texts that a person has in files: a text file is one, each .txt and .md file of a folder is one,
and so is each line of a .jsonl file.

Of a folder or a .jsonl file no text is read before it is asked for, so they may be larger than
memory. What cannot be read is refused by the name of its file and, where it has lines, its line.
"""

import io
import json
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import config
from config import UsageError
from data import hub

PIPE_PATIENCE_S = 30.0  # seconds in which a pipe that is given as a file has to end
LARGEST_FILE = 2**28  # bytes of one text; in memory up to four times that
OF_A_FOLDER = (".txt", ".md")  # endings of the files of a folder that are texts
ADVICE = "give a file in UTF-8: .txt, or .jsonl with a field `text` in each line"

Document = tuple[str, str]  # its title, and its text


@dataclass(frozen=True)
class Folder:
    """The .txt and .md files of a folder in the order of their names; what lies in folders below
    it, or is hidden, is none of it."""

    path: Path
    names: tuple[str, ...]

    def __iter__(self) -> Iterator[Document]:
        return ((name, read(str(self.path / name))) for name in self.names)


@dataclass(frozen=True)
class Lines:
    """The texts of a .jsonl file, one in the field `text` of each line; a blank line or text is
    none. content: of a pipe, which can be read once only."""

    path: str
    content: bytes | None = None

    def __iter__(self) -> Iterator[Document]:
        with _told(self.path), self._opened() as handle:
            for number, line in enumerate(iter(lambda: handle.readline(LARGEST_FILE + 1), b""), 1):
                text = _text_of_line(line, f"`text_file` {_shown(self.path)}, line {number}")
                if text.strip():
                    yield f"line {number}", text

    def _opened(self) -> BinaryIO:
        return Path(self.path).open("rb") if self.content is None else io.BytesIO(self.content)


def documents(path: str) -> Iterable[Document]:
    """The texts in a file or folder, read as they are asked for; refuses what holds none."""
    with _told(path):
        file = config.user_path(path, "`text_file`")
        if file.is_dir():
            return _folder(file, path)
        if file.suffix.lower() != ".jsonl":
            return ((file.name, read(path)),)
        _refuse_device(file, path)
        lines = Lines(str(file), _content(file, path) if file.is_fifo() else None)
        if next(iter(lines), None) is None:
            raise UsageError(f"`text_file` {path} holds no text", ADVICE)
        return lines


def _folder(folder: Path, path: str) -> Folder:
    names = sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in OF_A_FOLDER and not file.name.startswith(".") and file.is_file()
    )
    if not names:
        raise UsageError(
            f"`text_file` {path} is a folder without a .txt or .md file",
            "give one whose files are texts (those in folders below it are not read)",
        )
    return Folder(folder, tuple(names))


def read(path: str) -> str:
    """The whole of a UTF-8 text file."""
    with _told(path):
        content = _content(config.user_path(path, "`text_file`"), path)
    shown = _shown(path)
    try:
        text = content.decode("utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError:
        raise UsageError(f"`text_file` {shown} is not UTF-8 text", ADVICE) from None
    if "\0" in text:
        raise UsageError(f"`text_file` {shown} is binary", ADVICE)
    if not text.strip():
        raise UsageError(f"`text_file` {shown} holds no text")
    return text


def refuse_surrogates(text: str, name: str) -> None:
    """Half of a character is no text: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} holds broken characters", "give valid UTF-8") from None


@contextmanager
def _told(path: str) -> Iterator[None]:
    """A file that cannot be opened or read is one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"`text_file` {_shown(path)} cannot be read", f"{reason}") from None


def _shown(path: str) -> str:
    """A name in a folder may hold what no terminal should be given."""
    return path if path.isprintable() else ascii(path)[1:-1]


def _content(file: Path, path: str) -> bytes:
    """Its bytes; a pipe, which may never end, has a deadline."""
    if file.is_fifo():
        content = hub.in_time(PIPE_PATIENCE_S, lambda: _beginning(file))
        if content is None:
            raise UsageError(
                f"`text_file` {path} is a pipe that did not end in {PIPE_PATIENCE_S:.0f} s",
                "give a file",
            )
    else:
        _refuse_device(file, path)
        content = _beginning(file)
    if len(content) > LARGEST_FILE:
        raise UsageError(
            f"`text_file` {_shown(path)} is larger than {LARGEST_FILE // 2**20} MiB",
            "give a part of it, or its texts as the lines of a .jsonl file",
        )
    return content


def _refuse_device(file: Path, path: str) -> None:
    mode = file.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISFIFO(mode)):
        raise UsageError(f"`text_file` {path} is a device", ADVICE)


def _beginning(file: Path) -> bytes:
    with file.open("rb") as handle:
        return handle.read(LARGEST_FILE + 1)


def _text_of_line(line: bytes, name: str) -> str:
    """Of a line of JSON that ends at \\n alone: its strings may hold other characters that
    `str.splitlines` cuts at. Empty for a blank line."""
    if len(line) > LARGEST_FILE:
        raise UsageError(f"{name} is longer than {LARGEST_FILE // 2**20} MiB", "cut it")
    try:
        content = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text", ADVICE) from None
    if not content.strip():
        return ""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):  # also numbers and nestings beyond all measure
        raise UsageError(f"{name} is not JSON", ADVICE) from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UsageError(f"{name} has no text field `text`", ADVICE)
    refuse_surrogates(text, name)
    return text
