"""Picture of a text whose words are coloured by the attention that they receive."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import config
from analysis.sinks import sinks
from visualization.lettering import is_from_the_right, letters_on
from visualization.style import ACCENT, Look, Spaces, figure, plain_log, shown, styled
from visualization.token_marks import sink_list, write

FONT = "DejaVu Sans Mono"
ADVANCE = 1233 / 2048  # of each of its characters, in sizes of the font
COLUMNS, LINES = 126, 60  # characters to a line, and lines at most
COLUMN, LINE = 0.075, 0.185  # inches, about
LEFT, RIGHT, TOP, BOTTOM, LEAST = 0.95, 2.7, 1.05, 1.35, 2.4  # margins; least height of the text
GROUND = colormaps["YlGnBu"]
UNRANKED = "#8a8a8a"  # letters of tokens that too few queries see
BLANK = "␣"  # how a table writes one


@dataclass(frozen=True)
class Piece:
    """A token, or what of it fits into a line. row: of the token in the table."""

    row: int
    line: int
    column: int
    text: str

    @property
    def corners(self) -> list[tuple[float, float]]:
        left, right = self.column, self.column + len(self.text)
        top, foot = self.line - 0.5, self.line + 0.5
        return [(left, top), (right, top), (right, foot), (left, foot)]

    @property
    def is_alone(self) -> bool:
        """Whether its letters may not take one column each, so that it is written by itself."""
        if self.text.isascii():
            return False
        is_foreign = shown(self.text, FONT) != self.text  # and is written in the usual font
        return (
            is_foreign or is_from_the_right(self.text) or any(map(unicodedata.combining, self.text))
        )


@styled
def attended_text(table: pd.DataFrame, about: str) -> Figure:
    """The words themselves on grounds that are darker the more attention they receive, the sinks
    in a frame."""
    table = table.reset_index(drop=True)
    pieces = laid_out(table["token"])
    n_lines = pieces[-1].line + 1
    column = round(COLUMN * config.FIGURE_DPI) / config.FIGURE_DPI  # whole pixels, as letters are
    high = max(LINE * n_lines, LEAST)
    size = (LEFT + COLUMNS * column + RIGHT, TOP + high + BOTTOM)
    spaces: Spaces = {"left": LEFT, "right": RIGHT, "bottom": BOTTOM, "head": TOP - 0.56}
    title = "The text by the attention that its tokens receive"
    fig, ax = figure(title, about, size, **spaces)
    ax.set_xlim(0, COLUMNS)
    ax.set_ylim(high / LINE - 0.5, -0.5)
    scale = _scale(table)
    grounds = GROUND(scale(table["mean_received"].clip(lower=scale.vmin).to_numpy()))
    _grounds(ax, table, pieces, grounds)
    colours = np.where(table["well_seen"], [letters_on(ground) for ground in grounds], UNRANKED)
    _letters(ax, pieces, colours, 72 * column / ADVANCE)
    _margins(ax, table, pieces)
    write(ax, sink_list(table), x=1.02)
    _bar(fig, ax, scale)
    return fig


def laid_out(words: Sequence[str]) -> list[Piece]:
    """Tokens in lines, as many as there is room for. Words are not broken where they fit into a
    line; where no token tells of a blank, one column is left between any two."""
    blanks = any(word.startswith(BLANK) for word in words)
    texts = [shown(word).replace(BLANK, " ") or " " for word in words]
    starts = [not blanks or text.startswith(" ") for text in texts]
    pieces: list[Piece] = []
    line = column = 0
    is_broken = False
    for row, text in enumerate(texts):
        of_word = row + 1
        while of_word < len(texts) and not starts[of_word]:
            of_word += 1
        word = sum(map(len, texts[row:of_word])) if starts[row] else len(text)
        full = column + word > COLUMNS >= word or column >= COLUMNS
        if column and (full or (is_broken and not _is_break(words[row]))):
            line, column = line + 1, 0
        while text and line < LINES:
            part, text = text[: COLUMNS - column], text[COLUMNS - column :]
            pieces.append(Piece(row, line, column, part))
            column += len(part)
            if text:
                line, column = line + 1, 0
        column += not blanks
        is_broken = words[row].rstrip(BLANK).endswith("\\n")
        if line >= LINES:
            break
    return pieces


def _is_break(word: str) -> bool:
    """Whether there is nothing in a token but ends of lines: such stay where the line ended."""
    return not word.replace("\\n", "").strip(BLANK)


def _scale(table: pd.DataFrame) -> LogNorm:
    """From the least to the most that a well-seen token receives, but for a few very small."""
    received = table.loc[table["well_seen"], "mean_received"]
    seen = received[received > 0] if (received > 0).any() else pd.Series([1.0])
    return LogNorm(min(np.percentile(seen, 1), 0.5 * seen.max()), seen.max(), clip=True)


def _grounds(ax: Axes, table: pd.DataFrame, pieces: list[Piece], colours: np.ndarray) -> None:
    """Tokens that too few queries see have none."""
    coloured = [piece for piece in pieces if table["well_seen"][piece.row]]
    corners = [piece.corners for piece in coloured]
    faces = [colours[piece.row] for piece in coloured]
    ax.add_collection(PolyCollection(corners, facecolors=faces, linewidths=0), autolim=False)
    of_sinks = set(sinks(table).index)
    framed = [piece.corners for piece in pieces if piece.row in of_sinks]
    frames = PolyCollection(framed, facecolors="none", edgecolors=ACCENT, linewidths=1.8, zorder=3)
    ax.add_collection(frames, autolim=False)


def _letters(ax: Axes, pieces: list[Piece], colours: np.ndarray, size: float) -> None:
    """Of a line and a colour all at once, blanks in between: far fewer texts than tokens."""
    look: Look = {"fontsize": size, "va": "center_baseline", "clip_on": True}
    together: dict[tuple[int, str], str] = {}
    for piece in pieces:
        colour = str(colours[piece.row])
        if piece.is_alone:
            middle = piece.column + len(piece.text) / 2
            ax.text(middle, piece.line, piece.text.strip(), ha="center", color=colour, **look)
            continue
        before = together.get((piece.line, colour), "")
        together[piece.line, colour] = before.ljust(piece.column) + piece.text
    for (line, colour), text in together.items():
        ax.text(0, line, text, color=colour, family=FONT, **look)


def _margins(ax: Axes, table: pd.DataFrame, pieces: list[Piece]) -> None:
    """Where each line begins, and what is not shown or not ranked."""
    first = {piece.line: piece.row for piece in reversed(pieces)}
    lines = sorted(first)
    ax.set_yticks(lines, [str(table["position"][first[line]]) for line in lines], fontsize=7)
    ax.set_xticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    ax.set_ylabel("Position of its first token")
    ax.set_xlabel("\n".join(_notes(table, pieces)), loc="left")


def _notes(table: pd.DataFrame, pieces: list[Piece]) -> list[str]:
    n_tokens, n_shown = int(table["seen_by"].max() + table["position"].min()), pieces[-1].row + 1
    notes = [f"All {n_shown:,} tokens are shown."]
    if n_shown < n_tokens - table["position"].min():
        notes = [f"The first {n_shown:,} of {n_tokens:,} tokens are shown; the rest is left out."]
    if not table["well_seen"][:n_shown].all():
        least = table.loc[table["well_seen"], "seen_by"].min()
        notes[0] += f" Grey without a ground: seen by fewer than {least} queries, not ranked."
    if len(sinks(table)):
        notes[0] += " In a red frame: sinks."
    return notes


def _bar(fig: Figure, ax: Axes, scale: LogNorm) -> None:
    """The colours, in the bottom margin."""
    box, height = ax.get_position(), fig.get_figheight()
    place = fig.add_axes((box.x0, 0.62 / height, 0.5 * box.width, 0.16 / height))
    mappable = ScalarMappable(scale, GROUND)
    bar = fig.colorbar(mappable, cax=place, orientation="horizontal")
    plain_log(bar.ax.xaxis, (1.0, 3.0))
    what = "Attention weight received: mean over layers, KV heads, and the queries that see it"
    bar.set_label(what, loc="left")
