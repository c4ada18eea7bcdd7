"""Folders and files that results cannot, or must not, be written to."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.hostile.case import Case, Prepare, early
from tests.hostile.texts import LONE, pipe

WRITERS = ("analyze", "analyze_similarity", "tucker", "prune")


def linked(name: str, target: str) -> Prepare:
    return lambda folder, patch: (folder / name).symlink_to(target)


def _in_the_way(folder: Path, patch: pytest.MonkeyPatch, name: str) -> None:
    """A folder of the user's where a result is to be."""
    (folder / "out" / name).unlink(missing_ok=True)
    (folder / "out" / name).mkdir(parents=True)
    (folder / "out" / name / "kept.txt").write_text("kept")


def _file_in_the_way(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A file of the user's where a folder of results is to be."""
    (folder / "other").mkdir()
    (folder / "other" / "layers").write_text("kept")


def _out(mode: str, folder: str, *says: str, **more: object) -> Case:
    flags, says = ("--output_dir", folder), ("--output_dir", *says)
    return Case(mode, flags, says, early=True, **more)  # type: ignore[arg-type]


FOLDERS = (
    *(_out(mode, "text.txt", "text.txt") for mode in WRITERS),
    *(_out(mode, "text.txt/out", "text.txt/out") for mode in WRITERS),
    *(_out(mode, f"a{LONE}b") for mode in WRITERS),
    *(_out(mode, "a\0b") for mode in WRITERS),
    _out("analyze", ""),
    _out("tucker", " "),
    _out("compress", "x" * 300),
    _out("compare", "y/" * 3000),
    _out("analyze", "/proc/nothing/out"),
    _out("analyze_generation", "/dev/null"),
    _out("prune", "/dev/full/out"),
    _out("prune", "~nobody-here/out", "~nobody-here"),
    _out("compress", "text.txt/\x1b[31mred"),
    _out("compare", "text.txt/\u202eder"),
    _out("analyze", "lost", what="a link to nowhere", prepare=linked("lost", "nowhere/at/all")),
    _out("tucker", "loop", what="a link to itself", prepare=linked("loop", "loop")),
    _out("prune", "pipe", what="a pipe", prepare=partial(pipe, name="pipe")),
)
TARGETS = (
    *(
        Case(
            mode,
            (),
            ("--output_dir", name),
            what=f"out/{name} is a folder",
            prepare=partial(_in_the_way, name=name),
        )
        for mode, name in (
            ("analyze", "analyze.json"),
            ("tucker", "tucker/texts.csv"),
            ("compress", "compress.json"),
        )
    ),
    Case(
        "analyze",
        ("--output_dir", "other"),
        ("--output_dir",),
        what="other/layers is a file",
        prepare=_file_in_the_way,
    ),
)


def _saves() -> Iterator[Case]:
    """`--save_compressed` onto what must not go, or what cannot be."""
    reads = "--text_file text.txt --save_compressed"
    for target in ("text.txt", "./out/../text.txt", "notes.md", "model/config.json"):
        name = Path(target).name
        yield early("store", f"{reads} {target}", "--save_compressed", name)
    yield early("store", "--save_compressed model/model.safetensors", "model.safetensors")
    yield early("store", "--save_compressed model/tokenizer.json", "tokenizer.json")
    for target in ("out", "model", ".", "/", "/dev/null", "/dev/full"):
        yield early("store", f"--save_compressed {target}", "--save_compressed", target)
    for target in ("nowhere/x.kv", "text.txt/x.kv", "/proc/x.kv", "~nobody-here/x.kv"):
        yield early("store", f"--save_compressed {target}", "--save_compressed", target)
    for odd in ("", " ", "a\0.kv", f"a{LONE}.kv", "x" * 300 + ".kv", "nowhere/\x1b[31m.kv"):
        yield Case("store", ("--save_compressed", odd), ("--save_compressed",), early=True)
    links = {
        "essay.kv": "text.txt",
        "x.kv": "notes.md",
        "lost.kv": "nowhere/x.kv",
        "loop.kv": "loop.kv",
    }
    for name, target in links.items():
        flags = f"{reads} {name}"
        says, what = ("--save_compressed", name), f"a link to {target}"
        yield early("store", flags, *says, what=what, prepare=linked(name, target))
    made = partial(pipe, name="pipe.kv")
    yield early("store", "--save_compressed pipe.kv", "pipe.kv", what="a pipe", prepare=made)
    hard = lambda folder, patch: (folder / "same.kv").hardlink_to(folder / "text.txt")  # noqa: E731
    says, what = ("--save_compressed", "same.kv"), "the text by another name"
    yield early("store", f"{reads} same.kv", *says, what=what, prepare=hard)


CASES = (*FOLDERS, *TARGETS, *_saves())
