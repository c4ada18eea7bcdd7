"""How results are laid out: for a terminal as wide as that is, plainly for a pipe or a file. All
that is laid out here is escaped, so that it can be printed as it is."""

import os
import re
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
INDENT, GAP = "  ", "  "  # of a table


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
        text = printable(text)
        if not self._holds("±"):
            text = text.replace("±", "+-")
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    @property
    def draws_lines(self) -> bool:
        return self.width is not None and self._holds("─")

    def _holds(self, character: str) -> bool:
        return character.encode(self.encoding, "ignore") != b""


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
    """Its title, the table, its note, and an empty line. Where a terminal is too narrow for the
    words of a row, that is a sentence."""
    headers = [paper.written(header) for header in grid.headers]
    rows = [[paper.written(cell) for cell in row] for row in grid.rows]
    widths = _widths([headers, *rows], paper)
    if widths is None:
        body = [line for row in rows for line in _sentence(headers, row, paper)]
    else:
        body = _drawn(grid, [headers, *rows], widths, paper)
    note = _wrapped(grid.note, paper, "  ", "  ") if grid.note else []
    return [*_wrapped(f"{grid.title}:", paper, "", "  "), *body, *note, ""]


def _widths(cells: Sequence[Sequence[str]], paper: Paper) -> list[int] | None:
    """Of the columns, such that no word is broken, and no cell where its header can be wrapped
    instead; None where the words do not fit."""
    from rich.cells import cell_len

    columns = list(zip(*cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    words = [[max(map(cell_len, _words(text))) for text in column] for column in columns]
    broken = [max(of_texts) for of_texts in words]
    whole = [
        max(header, *map(cell_len, c[1:])) for (header, *_), c in zip(words, columns, strict=True)
    ]
    room = (paper.width or ENDLESS) - len(INDENT) - len(GAP) * (len(columns) - 1)
    for least in (whole, broken):
        if sum(least) <= room:
            return _narrowed(widths, least, room)
    return None


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """What can give most is narrowed first."""
    widths = list(widths)
    while sum(widths) > room:
        spare = [width - word for width, word in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    return widths


def _words(text: str) -> list[str]:
    """Parts that stay on one line: the first with its indent, and a mean with its ±."""
    return re.findall(r"^\s*\S+(?: ±| \+-)?|\S+(?: ±| \+-)?", text) or [""]


def _sentence(headers: Sequence[str], row: Sequence[str], paper: Paper) -> list[str]:
    """The first cell, then each other one after its header."""
    pairs = zip(headers[1:], row[1:], strict=True)
    rest = ", ".join(f"{header} {cell}" for header, cell in pairs if cell)
    return _wrapped(f"{row[0].strip()}: {rest}", paper, f"{INDENT}- ", f"{INDENT}  ")


def _drawn(
    grid: Grid, cells: Sequence[Sequence[str]], widths: Sequence[int], paper: Paper
) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=_rule(paper), padding=(0, len(GAP) - 1, 0, 0), pad_edge=False)
    headers, *rows = cells
    for header, is_number, width in zip(headers, grid.numbers, widths, strict=True):
        drawn.add_column(
            Text(header, "bold"),
            justify="right" if is_number else "left",
            vertical="bottom",
            overflow="fold",
            width=width,
        )
    for row, strong in zip(rows, grid.strong, strict=True):
        drawn.add_row(*(Text(cell, "green" if strong else "") for cell in row))  # no markup
    console = Console(
        width=ENDLESS,
        color_system="standard" if paper.coloured else None,
        force_terminal=paper.coloured,
        no_color=not paper.coloured,
        legacy_windows=False,
    )
    with console.capture() as captured:
        console.print(drawn)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return [INDENT[1:] + line for line in lines if line]


def _rule(paper: Paper) -> "Box":
    """A line below the headers, of dashes where what draws boxes may not be readable."""
    from rich.box import SIMPLE_HEAD, Box

    if paper.draws_lines:
        return SIMPLE_HEAD
    return Box(str(SIMPLE_HEAD).replace("─", "-"), ascii=True)
