"""Tables and sentences are as wide as their terminal, plain in a pipe, and can do nothing to it."""

import io
import re

import pytest
from rich.cells import cell_len

from visualization.terminal import layout
from visualization.terminal.layout import Grid, Paper
from visualization.terminal.streams import escaped

CODES = re.compile(r"\x1b\[[\d;]*m")
HEADERS = ("setting", "bits per value", "KL (nats per token)")
ROWS = [
    ("* coded 1.4e-04", "0.81", "0.0012 ± 0.0001"),
    ("  [bold]kivi-2[/bold] :smile:", "7.56", "0.0300 ± 0.0020"),
    ("  \x1b[31m\u4e2d\u6587\u202e", "16.00", ""),
]
GRID = Grid("What was compared", HEADERS, ROWS, [False, True, True], [True, False, False], "a note")


def lines(paper: Paper) -> list[str]:
    return layout.table(GRID, paper)


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("width", [34, 40, 60, 80, 140])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost_or_broken(width, coloured):
    shown = [CODES.sub("", line) for line in lines(Paper(width, coloured))]
    assert all(cell_len(line) <= width for line in shown)
    words = " ".join(shown).split()
    for row in ROWS:
        for cell in row:
            for word in escaped(cell).split():
                assert any(word in each for each in words), word


def test_where_there_is_room_each_row_is_a_line_with_its_numbers_to_the_right():
    title, headers, rule, *rows, note, empty = lines(Paper(100))
    assert (title, note, empty) == ("What was compared:", "  a note", "")
    assert set(rule.strip()) == {"─"} and headers.split("  ")[1] == "setting"
    ends = {line.index("per value") + len("per value") for line in [headers]}
    assert {
        row.index(cells[1]) + len(cells[1]) for row, cells in zip(rows[:2], ROWS, strict=False)
    } == ends
    assert [row.split() for row in rows] == [escaped(" ".join(cells)).split() for cells in ROWS]


def test_headers_are_wrapped_before_numbers_are():
    shown = lines(Paper(62))
    assert all(any(row[2] in line for line in shown) for row in ROWS)
    assert not any(HEADERS[1] in line for line in shown)


def test_only_a_terminal_that_wants_them_is_sent_escape_codes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Paper.of(Terminal()) == Paper(layout.USUAL, True)
    assert Paper.of(io.StringIO()) == Paper()
    assert any(CODES.search(line) for line in lines(Paper.of(Terminal())))
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
        assert not any("\x1b" in line for line in lines(Paper.of(Terminal())))
    assert "\x1b" not in "".join(lines(Paper()))


@pytest.mark.parametrize(("paper", "rule"), [(Paper(80), "─"), (Paper(), "-")])
def test_a_pipe_gets_dashes_for_a_line(paper, rule):
    assert set(lines(paper)[2].strip()) == {rule}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
@pytest.mark.parametrize("width", [None, 50, 80])
def test_what_an_encoding_lacks_is_escaped_before_the_columns_are_measured(encoding, width):
    shown = lines(Paper(width, encoding=encoding))
    assert "\n".join(shown).encode(encoding).decode(encoding) == "\n".join(shown)
    assert any("\\u4e2d\\u6587\\u202e" in line for line in shown)
    plus = "+-" if encoding == "ascii" else "±"
    assert any(f"0.0012 {plus}" in line for line in shown)


def test_sentences_are_wrapped_in_a_terminal_alone():
    said = {"A title": ["take `num_samples` 2 " + "or more " * 20, "short"]}
    piped = layout.findings(said, Paper())
    assert piped[:2] == ["A title:", "  - take --num_samples 2 " + "or more " * 20]
    wrapped = layout.findings(said, Paper(40))
    assert all(len(line) <= 40 for line in wrapped)
    assert " ".join(wrapped).split() == " ".join(piped).split()
