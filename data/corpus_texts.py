"""Texts of several kinds that this project's authors wrote for it, in data/corpus: an encyclopedia,
source code, passages in eight languages, stories, records and essays. Nothing to download."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"
CORPUS_SOURCE = "texts of several kinds in data/corpus"
KINDS_OF_TEXT = ("encyclopedia", "code", "languages", "fiction", "records", "essays")


@cache
def corpus_texts() -> tuple[str, ...]:
    """One of each kind."""
    files = (FOLDER / f"{kind}.txt" for kind in KINDS_OF_TEXT)
    return tuple(file.read_text(encoding="utf-8") for file in files)
