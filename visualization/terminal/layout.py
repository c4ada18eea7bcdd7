"""How results are laid out: for a terminal as wide as that is, plainly for a pipe or a file. All
that is laid out here is escaped, so that it can be printed as it is."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from data.texts import printable
from visualization.terminal.flags import as_flags

if TYPE_CHECKING:
    from rich.box import Box

USUAL = 80  # columns of a terminal that does not say
ENDLESS = 10_000  # columns where nothing is wrapped


@dataclass(frozen=True)
class Paper:
    """What results are printed on. width: in columns, None where nothing has to be wrapped.
    coloured: whether escape codes are understood and wanted."""

    width: int | None = None
    coloured: bool = False
    encoding: str = "utf-8"

    @classmethod
    def of(cls, stream: TextIO) -> "Paper":
        encoding = getattr(stream, "encoding", None) or "utf-8"
        if not stream.isatty():
            return cls(encoding=encoding)
        try:
            width = os.get_terminal_size(stream.fileno()).columns
        except (OSError, ValueError):
            width = 0
        coloured = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(width or USUAL, coloured, encoding)

    def written(self, text: str) -> str:
        """On one line, without control characters, those that the encoding lacks as escapes: by
        now, since they take more room."""
        return printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def can_write(self, text: str) -> bool:
        return self.written(text) == text


@dataclass(frozen=True)
class Grid:
    """A table as text. numbers: which of its columns stand to the right. strong: which rows stand
    out. note: below it."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[bool]
    strong: Sequence[bool]
    note: str = ""


def findings(said: Mapping[str, Sequence[str]], paper: Paper) -> list[str]:
    """Sentences by headings, an empty line after each."""
    lines = []
    for title, sentences in said.items():
        lines += [*_wrapped(f"{title}:", paper, "", "  ")]
        for sentence in sentences:
            lines += _wrapped(as_flags(sentence), paper, "  - ", "    ")
        lines.append("")
    return lines


def paragraphs(texts: Mapping[str, str], paper: Paper) -> list[str]:
    """Texts by headings, an empty line after each."""
    lines = []
    for title, text in texts.items():
        lines += [*_wrapped(f"{title}:", paper, "", "  "), *_wrapped(text, paper, "  ", "  "), ""]
    return lines


def paragraph(text: str, paper: Paper) -> list[str]:
    return _wrapped(text, paper, "", "  ")


def _wrapped(text: str, paper: Paper, first: str, later: str) -> list[str]:
    text = paper.written(text)
    if paper.width is None:
        return [first + text]
    return textwrap.wrap(
        text,
        paper.width,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]


def table(grid: Grid, paper: Paper) -> list[str]:
    """Its title, the table, its note, and an empty line."""
    lines = _wrapped(f"{grid.title}:", paper, "", "  ") + _drawn(grid, paper)
    return [*lines, *(_wrapped(grid.note, paper, "  ", "  ") if grid.note else []), ""]


def _drawn(grid: Grid, paper: Paper) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=_rule(paper), padding=(0, 1), pad_edge=True, header_style="bold")
    for header, is_number in zip(grid.headers, grid.numbers, strict=True):
        drawn.add_column(
            Text(paper.written(header)),
            justify="right" if is_number else "left",
            vertical="bottom",
            overflow="fold",
        )
    for row, strong in zip(grid.rows, grid.strong, strict=True):
        cells = (Text(paper.written(cell)) for cell in row)  # text as it is: markup is data
        drawn.add_row(*cells, style="green" if strong else None)
    console = Console(
        file=None,
        width=paper.width or ENDLESS,
        color_system="standard" if paper.coloured else None,
        force_terminal=paper.coloured,
        no_color=not paper.coloured,
        legacy_windows=False,
    )
    with console.capture() as captured:
        console.print(drawn)
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


def _rule(paper: Paper) -> "Box":
    """A line below the headers, of dashes where what draws boxes may not be readable."""
    from rich.box import SIMPLE_HEAD, Box

    if paper.width is not None and paper.can_write("─"):
        return SIMPLE_HEAD
    return Box(str(SIMPLE_HEAD).replace("─", "-"), ascii=True)
