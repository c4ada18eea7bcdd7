"""One look for all pictures: colours, sizes, titles, and how many things fit on an axis."""

import textwrap
from collections.abc import Callable, Container, Iterable
from functools import cache, wraps
from io import BytesIO
from typing import Any, Literal, TypedDict, Unpack, overload

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from visualization.lettering import from_the_left
from visualization.picture_files import save

KINDS = ("key", "value")
COLOURS = {"key": "#2f6db3", "value": "#d9822b"}
NAMES = {"key": "Keys", "value": "Values"}
SPARSITY_MAP = "Blues"  # darker is sparser
ACCENT = "#c0392b"  # thresholds, sinks, new tokens
SAFE = "#2e8b57"
CHARACTERS_PER_INCH = 13  # of the line below the title
MISSING = "#d0d0d0"  # heat map cells that do not exist

RC: dict[Any, object] = {  # matplotlib would have each name as a literal
    "text.parse_math": False,  # titles and tokens are data: a $ in them is a $
    "figure.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 11,
    "axes.titley": 1.0,  # where titles go unless ticks are above them, which takes long to look up
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


Draw = Callable[[pd.DataFrame, str], Figure]
Look = dict[str, Any]  # named arguments of a function of matplotlib


class Spaces(TypedDict, total=False):
    """What `figure` takes beside a title, texts and sizes."""

    gap: tuple[float, float]
    right: float
    bottom: float
    left: float
    head: float
    sharex: bool | Literal["col"]
    sharey: bool | Literal["col"]
    squeeze: bool


class Picture(Figure):
    """A figure that a notebook shows where it stands at the end of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        stream = BytesIO()
        save(self, stream)
        return stream.getvalue()


def styled(draw: Draw) -> Draw:
    """Draw under this style, whatever the caller's settings are, and leave those alone."""

    @wraps(draw)
    def in_style(table: pd.DataFrame, about: str) -> Figure:
        with matplotlib.rc_context(RC):
            return draw(table, about)

    return in_style


@overload
def figure(
    title: str, about: str, size: tuple[float, float], **spaces: Unpack[Spaces]
) -> tuple[Figure, Axes]: ...


@overload
def figure(
    title: str,
    about: str,
    size: tuple[float, float],
    rows: int,
    columns: int,
    **spaces: Unpack[Spaces],
) -> tuple[Figure, np.ndarray]: ...


def figure(
    title: str,
    about: str,
    size: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    *,
    gap: tuple[float, float] = (0.95, 1.0),
    right: float = 0.25,
    bottom: float = 0.65,
    left: float = 0.95,
    head: float = 0.4,
    sharex: bool | Literal["col"] = False,
    sharey: bool | Literal["col"] = False,
    squeeze: bool = True,
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure with a title, the model and text it shows, and its axes: one panel, or an array
    of `rows` x `columns` of them.

    Everything is in inches: `size`, the `gap` between panels (across, down), the margins to the
    `left`, `right` and `bottom`, and the `head` room above the upper panels. Fixed margins, since
    letting matplotlib find them takes as long as all the drawing. The rest goes to
    `Figure.subplots`.
    """
    width, height = size
    fig = Picture(figsize=size)
    FigureCanvasAgg(fig)
    wrapped = textwrap.wrap(shown(about), int(CHARACTERS_PER_INCH * width))
    lines = [from_the_left(line) for line in wrapped]
    fig.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=13, fontweight="bold")
    fig.text(
        0.5, 1 - 0.38 / height, "\n".join(lines), ha="center", va="top", fontsize=9,
        color="#555555", linespacing=1.4,
    )  # fmt: skip
    top = 0.38 + 0.18 * len(lines) + head
    across = (width - left - right - gap[0] * (columns - 1)) / columns
    down = (height - top - bottom - gap[1] * (rows - 1)) / rows
    fig.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=gap[0] / across,
        hspace=gap[1] / down,
    )
    return fig, fig.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=squeeze)


def below(fig: Figure, ax: Axes, gap: float, height: float) -> Axes:
    """A panel in the bottom margin below `ax`, as wide and on the same horizontal axis; inches."""
    box, inch = ax.get_position(), 1 / fig.get_figheight()
    place = (box.x0, box.y0 - (gap + height) * inch, box.width, height * inch)
    return fig.add_axes(place, sharex=ax)


def beside(fig: Figure, ax: Axes, image: ScalarMappable, extend: str = "neither") -> Colorbar:
    """A colour bar in the right margin next to `ax`. extend: `min`, `max` or `both`, the ends
    beyond which there are values."""
    box = ax.get_position()
    width = fig.get_figwidth()
    place = (box.x1 + 0.15 / width, box.y0, 0.2 / width, box.height)
    return fig.colorbar(image, cax=fig.add_axes(place), extend=extend)


def shown(text: str, family: str | None = None) -> str:
    """`text` with the characters that the font cannot draw written as escapes. family: of the
    font; the usual one where it is not given."""
    drawable = _drawable(family)
    return "".join(
        c if ord(c) in drawable else c.encode("unicode_escape").decode("ascii") for c in text
    )


@cache
def _drawable(family: str | None) -> Container[int]:
    """Code points that a font has letters for."""
    return get_font(findfont(FontProperties(family=family))).get_charmap()


def by_kind(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(kind, its rows) for keys and values, in this order."""
    return [(kind, table[table["kind"] == kind]) for kind in KINDS]


def from_zero(ax: Axes, highest: float) -> None:
    """A vertical axis from 0 to a little above the highest value, which may be 0 as well."""
    ax.set_ylim(0, 1.08 * highest if highest > 0 else 1)


def log_from(ax: Axes, values: pd.Series, axis: str = "x") -> float:
    """A logarithmic axis for values of which some may be 0; returns what those are drawn at, half
    the smallest of the others."""
    positive = values[values > 0]
    floor: float = positive.min() / 2 if len(positive) else 1e-6
    top = max(3 * values.max(), 10 * floor)
    steps = (1.0,) if top / floor > 300 else (1.0, 2.0, 5.0)
    if axis == "x":
        ax.set_xlim(floor / 1.5, top)  # first: a logarithmic axis takes no limits from zeros
        ax.set_xscale("log")
        plain_log(ax.xaxis, steps)
    else:
        ax.set_ylim(floor / 1.5, top)
        ax.set_yscale("log")
        plain_log(ax.yaxis, steps)
    return floor


def percent(axis: Axis) -> None:
    """Shares between 0 and 1 as percentages, on one axis of a panel."""
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))


def plain_log(axis: Axis, steps: tuple[float, ...] = (1.0,)) -> None:
    """0.001 rather than a typeset power, which costs a parser, at these steps of each decade."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def whole_numbers(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(integer=True, nbins=16, min_n_ticks=1))


def ticks_at(axis: Axis, numbers: Iterable[int], most: int = 16) -> None:
    """Ticks at numbers that there are, such as those of layers: at most so many, evenly apart."""
    there = sorted(set(numbers))
    axis.set_ticks(there[:: bin_width(len(there), most)])


def kind_bars(ax: Axes, table: pd.DataFrame, x: str, y: str, spread: str | None = None) -> None:
    """Keys and values side by side in one bar pair for each value of column `x`."""
    for shift, (kind, rows) in zip((-0.2, 0.2), by_kind(table), strict=True):
        bars: Look = {"width": 0.4, "color": COLOURS[kind], "label": NAMES[kind]}
        if spread is not None:
            bars |= {"yerr": rows[spread], "capsize": 3, "ecolor": "#444444"}
        ax.bar(rows[x] + shift, rows[y], **bars)
    ax.set_xlim(table[x].min() - 0.6, table[x].max() + 0.6)
    ticks_at(ax.xaxis, table[x], most=32)


def filled_steps(ax: Axes, values: np.ndarray, color: str) -> None:
    """Touching bars of width 1 at 0, 1, ...: one shape, however many there are."""
    ax.stairs(values, np.arange(len(values) + 1) - 0.5, fill=True, color=color)
    ax.set_xlim(-0.5, len(values) - 0.5)


def bin_width(n_positions: int, most: int) -> int:
    """Tokens to a bin so that at most `most` bins are drawn."""
    return -(-n_positions // most)


def binned(
    positions: np.ndarray, values: np.ndarray, width: int, how: str
) -> tuple[np.ndarray, np.ndarray]:
    """Left-to-right bins of `width` token positions: their middles and the mean or max of each."""
    if width == 1:
        return positions, values
    grouped = pd.Series(values).groupby(positions // width)
    combined = grouped.agg(how)
    return combined.index.to_numpy() * width + (width - 1) / 2, combined.to_numpy()


def per_bin(width: int, how: str) -> str:
    """What a label says of binning: nothing where each token is drawn."""
    return "" if width == 1 else f" ({how} of {width} tokens)"
