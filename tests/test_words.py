"""The text coloured by attention: every token in its place, in letters that can be read."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

import config
from analysis.sinks import sinks
from tests.drawn import ABOUT, is_within, texts_of
from visualization import words
from visualization.lettering import letters_on, luminance
from visualization.words import COLUMNS, GROUND, LINES, laid_out

LATIN = ["The", "␣cat", "␣sat", ".", "\\n", "\\n", "␣␣Then", "␣it", "␣slept", ".\\n", "Well", "␣"]


def table_of(tokens: list[str], received=None, few: int = 0) -> pd.DataFrame:
    """few: how many of the last tokens too few queries see."""
    n = len(tokens)
    columns = {
        "position": range(n),
        "token": tokens,
        "mean_received": np.full(n, 0.01) if received is None else received,
        "even_share": 0.01,
        "seen_by": range(n, 0, -1),
        "well_seen": np.arange(n) < n - few,
    }
    return pd.DataFrame(columns)


def drawn(table: pd.DataFrame):
    return words.attended_text(table, ABOUT)


@pytest.mark.parametrize(
    "tokens",
    [
        LATIN,
        LATIN * 20,
        ["no", "blanks", "at", "all"] * 90,
        ["x" * 300, "␣" + "y" * 130, "␣z"],
        ["␣" + "w" * n for n in range(1, 100)],
    ],
)
def test_every_token_stands_once_in_order_and_within_the_lines(tokens):
    pieces = laid_out(tokens)
    joined = {i: "".join(p.text for p in pieces if p.row == i) for i in range(len(tokens))}
    assert [joined[i] for i in joined] == [token.replace("␣", " ") for token in tokens]
    places = [(p.line, p.column) for p in pieces]
    assert places == sorted(places)
    for one, two in pairwise(pieces):
        assert one.column + len(one.text) <= (two.column if one.line == two.line else COLUMNS)


def test_words_are_whole_where_they_fit_into_a_line_and_lines_end_where_the_text_s_do():
    pieces = laid_out(["␣" + "a" * 60, "␣" + "b" * 60, "␣ccc", "ccc", "ccc"])
    assert [p.line for p in pieces] == [0, 0, 1, 1, 1]
    lines = [p.line for p in laid_out(LATIN)]
    assert lines == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]  # two ends of lines stay where one is


def test_of_a_long_text_what_is_left_out_is_said():
    tokens = ["␣token"] * 4000
    pieces = laid_out(tokens)
    assert pieces[-1].line == LINES - 1
    n_shown = pieces[-1].row + 1
    written = " ".join(texts_of(drawn(table_of(tokens))))
    assert f"The first {n_shown:,} of 4,000 tokens are shown; the rest is left out." in written
    assert "All 12 tokens are shown." in " ".join(texts_of(drawn(table_of(LATIN))))


def test_letters_can_be_read_on_every_ground():
    for share in np.linspace(0, 1, 256):
        ground = luminance(GROUND(share))
        letters = luminance(to_rgb(letters_on(GROUND(share))))
        light, dark = max(ground, letters), min(ground, letters)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert letters_on(GROUND(1.0)) == "white" and letters_on(GROUND(0.0)) == "black"


def test_grounds_are_darker_the_more_is_received_and_sinks_are_framed():
    tokens = [f"␣w{i}" for i in range(40)]
    received = np.geomspace(0.001, 0.9, 40)
    table = table_of(tokens, received, few=10)
    figure = drawn(table)
    grounds, frames = (c for c in figure.axes[0].collections if isinstance(c, PolyCollection))
    light = [luminance(colour) for colour in grounds.get_facecolors()]
    assert len(light) == 30 and light == sorted(light, reverse=True) and light[0] > light[-1]
    many = sinks(table)
    assert len(frames.get_paths()) == len(many) > 0
    corners = {p.row: p.corners for p in laid_out(tokens)}
    for path, row in zip(frames.get_paths(), sorted(many.index), strict=True):
        assert [tuple(corner) for corner in path.vertices[:4]] == corners[row]
    written = " ".join(texts_of(figure))
    assert f"Sinks: 10 times the even share or more ({len(many)})" in written.replace("\n", " ")
    assert "seen by fewer than 11 queries" in written


def test_letters_stand_on_the_grounds_of_their_tokens():
    """Of a line and a colour all letters are one text, so that a column has to be as wide as they
    are."""
    figure = drawn(table_of(["␣" + "m" * 20] * 6))
    figure.set_dpi(config.FIGURE_DPI)
    figure.canvas.draw()
    ax = figure.axes[0]
    (text,) = [t for t in ax.texts if t.get_text().startswith(" mm")]
    box = text.get_window_extent().transformed(ax.transData.inverted())
    assert box.x1 == pytest.approx(126, abs=0.5) and box.x0 == pytest.approx(0, abs=1.2)


def test_letters_that_take_no_column_each_stand_by_themselves_in_their_own_place():
    hebrew, accented, chinese = "␣\u05e9\u05dc\u05d5\u05dd", "␣e\u0301a", "␣\u4e2d"
    figure = drawn(table_of(["␣one", hebrew, accented, chinese, "␣two"]))
    assert is_within(figure)
    texts = {t.get_text(): t for t in figure.axes[0].texts}
    assert texts["\u05e9\u05dc\u05d5\u05dd"].get_position() == (4 + 2.5, 0)
    assert texts["e\u0301a"].get_position() == (9 + 2, 0)
    (line,) = [t for t in texts if t.startswith(" one")]
    assert line == " one" + " " * 9 + " \\u4e2d two"


@pytest.mark.parametrize("tokens", [["one"], ["\\n"], ["␣"], LATIN * 30, ["␣$x_1$"] * 9])
def test_it_keeps_within_its_figure(tokens):
    assert is_within(drawn(table_of(tokens, few=len(tokens) // 3)))
