"""Texts that cannot be read, are none, or are too short for what is asked."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.hostile.case import Case, Prepare, early, late

LONE = "\udcff"  # a byte of the command line that is not UTF-8, as Python holds it
READERS = ("analyze", "analyze_generation", "tucker", "compress", "prune", "compare")


def written(name: str, content: bytes) -> Prepare:
    """A file with this content."""
    return lambda folder, patch: (folder / name).write_bytes(content)


def pipe(folder: Path, patch: pytest.MonkeyPatch, name: str) -> None:
    """A pipe that nobody writes into. Who opens it, to wait for ever, is let go, which is seen."""
    os.mkfifo(folder / name)
    threading.Thread(target=_let_go, args=(folder, name), daemon=True).start()


def _let_go(folder: Path, name: str) -> None:
    while (folder / name).exists():
        try:
            writer = os.open(folder / name, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it
            time.sleep(0.05)
            continue
        (folder / f"{name} was waited for").touch()
        os.close(writer)
        return


def _file(mode: str, name: str, content: bytes, *says: str, what: str) -> Case:
    return late(mode, f"--text_file {name}", name, *says, what=what, prepare=written(name, content))


LINES = {
    "broken JSON": b'{"text": "a"}\n{"text":\n',
    "a line that is no object": b'["text"]\n',
    "without a text": b'{"title": "a"}\n',
    "a text that is none": b'{"text": 5}\n',
    "a number beyond measure": b"9" * 5000 + b"\n",
    "nested without end": b"[" * 100_000 + b"\n",
    "half a character": json.dumps({"text": LONE * 9}).encode(),
    "only blank lines": b"\n  \n",
    "an empty text": b'{"text": "  "}\n',
}
FILES = (
    *(_file("analyze", "a.jsonl", content, what=what) for what, content in LINES.items()),
    _file("prune", "empty.txt", b"", what="empty"),
    _file("tucker", "blank.txt", b" \n\t\r\n" * 50, what="only blanks"),
    _file("compare", "bom.txt", b"\xef\xbb\xbf", what="only a byte order mark"),
    _file("compress", "latin.txt", "Größe".encode("latin-1") * 40, "UTF-8", what="Latin-1"),
    _file("analyze", "wide.txt", ("Hello " * 40).encode("utf-16"), "UTF-8", what="UTF-16"),
    _file("analyze_generation", "a.bin", b"MZ\0\0" * 99, "binary", what="binary"),
    _file("analyze_similarity", "a.png", bytes(range(256)), what="a picture"),
    _file("analyze", "cut.txt", "Größe".encode()[:3], "UTF-8", what="cut within a character"),
    *(late(mode, "--text_file nowhere.txt", "nowhere.txt") for mode in READERS),
    *(late(mode, "--text_file model", "model") for mode in READERS),
    late("analyze", "--text_file text.txt/x", "text.txt/x"),
    late("analyze", "--text_file /dev/null", "/dev/null"),
    late("analyze", "--text_file ''", "--text_file"),
    late("analyze", "--text_file ~nobody-here/x", "~nobody-here"),
    late("analyze", f"--text_file {'x' * 300}", "--text_file", "xxx"),
    late(
        "analyze",
        "--text_file loop.txt",
        "loop.txt",
        what="a link to itself",
        prepare=lambda folder, patch: (folder / "loop.txt").symlink_to("loop.txt"),
    ),
)
ODD_NAMES = ("a\0b.txt", f"a{LONE}.txt", "a\x1b[31m.txt", "a\nb.txt", "a\u202egnp.txt")
NAMES = tuple(
    Case("analyze", ("--text_file", name), ("--text_file",), early=name[1] in "\0" + LONE)
    for name in ODD_NAMES
)
PROMPTS = (
    *(early(mode, "--prompt ''", "--prompt") for mode in READERS),
    late("tucker", "--prompt '   '", "--prompt"),
    *(Case(mode, ("--prompt", LONE), ("--prompt",)) for mode in ("analyze", "prune")),
    Case("store", ("--save_compressed", "new.kv", "--prompt", LONE), ("--prompt",)),
    Case("tucker", ("--continuation", LONE), ("--continuation",)),
    Case("compare", ("--continuation", f"and{LONE}"), ("--continuation",)),
    late("tucker", "--continuation ''", "--continuation"),
    *(late(mode, "--prompt Hello", "tokens") for mode in READERS[2:]),
    late("analyze_similarity", "--prompt Hello", "tokens"),
    late("analyze", "--measure --prompt Hello", "tokens"),
    late("store", "--save_compressed new.kv --prompt a", "one token", notes=True),
)
CASES = (*FILES, *NAMES, *PROMPTS)
