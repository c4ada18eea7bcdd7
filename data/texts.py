"""A text, what of it a result names, and how it is shown on one line. Knows no model, no torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One text; `index` is its place in its source."""

    index: int
    title: str
    source: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.source} #{self.index}: {self.title}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def read(self, n_tokens: int) -> "TextRead":
        """What is left to say of it when so many tokens of it were read."""
        place = self.source, self.index, self.title
        return TextRead(*place, self.sha256, len(self.text), n_tokens)


@dataclass(frozen=True)
class TextRead:
    """A text that a result rests on, without its words: as a manifest has it."""

    source: str
    index: int
    title: str
    sha256: str
    characters: int
    tokens_read: int

    @property
    def number(self) -> str:
        """Its place in its source."""
        return f"#{self.index}"

    @property
    def name(self) -> str:
        return f"{self.source} {self.number}: {self.title}"

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def in_all(texts: Sequence[TextRead]) -> str:
    """How many texts and tokens a result rests on."""
    n = sum(text.tokens_read for text in texts)
    tokens = "1 token" if n == 1 else f"{n:,} tokens"
    return f"1 text of {tokens}" if len(texts) == 1 else f"{len(texts)} texts, {tokens} in all"


def visible(text: str) -> str:
    """`text` on one line, with blanks, control and other unprintable characters escaped.

    Text from models and files is data: shown this way it can neither move a terminal's cursor
    nor break a row of a table, nor turn the direction of what stands beside it.
    """
    return printable(text).replace(" ", "␣")


def printable(text: str) -> str:
    """`text` on one line, with control and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(text: str, length: int = 40) -> str:
    """The beginning of `text` on one line."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= length else words[: length - 1] + "…"
