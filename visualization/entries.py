"""Pictures of the cache itself: the entries of one layer and KV head, tokens by dimensions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.entry_findings import OUTLIER, outliers
from visualization.style import (
    ACCENT,
    COLOURS,
    MISSING,
    Spaces,
    below,
    beside,
    figure,
    filled_steps,
    styled,
    ticks_at,
)
from visualization.token_marks import named

SIGNED_MAP = "RdBu_r"
MOST_NAMED = 6  # outlier channels that are named
MOST_WORDS = 48  # rows that each bear their token
STRIP, STRIP_GAP = 1.3, 0.25  # inches
WITHOUT = {
    "undone": "",
    "none": "This model does not rotate its keys by position: there is nothing to undo.",
    "not known": "What rotated these keys is not known: it cannot be undone.",
}
TITLES = {
    "key": "Keys as stored",
    "unrotated_key": "Keys with the rotary embedding undone",
    "value": "Values",
}


@styled
def keys(table: pd.DataFrame, about: str) -> Figure:
    """Keys of one layer and head as stored, and beside them with the rotary embedding undone."""
    return _drawn(table, about, "keys")


@styled
def values(table: pd.DataFrame, about: str) -> Figure:
    """Values of one layer and head."""
    return _drawn(table, about, "values")


def _drawn(table: pd.DataFrame, about: str, what: str) -> Figure:
    kinds = list(dict.fromkeys(table["kind"]))
    where = f"layer {table['layer'].iloc[0]}, KV head {table['head'].iloc[0]}"
    title = f"The cache itself: {what} of {where}"
    spaces: Spaces = {
        "gap": (0.45, 0),
        "left": 1.75,
        "right": 1.3,
        "bottom": 0.75 + STRIP + STRIP_GAP,
        "head": 0.45,
        "sharey": True,
        "squeeze": False,
    }
    size = (3.2 + 5.9 * len(kinds), 10)
    fig, panels = figure(title, about, size, 1, len(kinds), **spaces)
    scale = _scale(_grid(table))
    for ax, kind in zip(panels[0], kinds, strict=True):
        rows = table[table["kind"] == kind]
        grid = _grid(rows)
        image = ax.imshow(grid, aspect="auto", norm=scale, cmap=SIGNED_MAP, interpolation="nearest")
        ax.set_facecolor(MISSING)
        ax.grid(False)
        ax.set_title(_title(kind, rows), fontsize=10)
        ax.tick_params(labelbottom=False)
        _strip(below(fig, ax, STRIP_GAP, STRIP), grid, kind)
    fig.axes[len(kinds)].set_ylabel("|entry|: filled median,\nline largest", fontsize=8)
    _rows(panels[0, 0], table[table["kind"] == kinds[0]])
    bar = beside(fig, panels[0, -1], image)
    bar.set_ticks(_ticks(scale), labels=[f"{x:g}" for x in _ticks(scale)])
    bar.minorticks_off()
    bar.set_label("Entry (even steps near 0, logarithmic beyond)")
    return fig


def _title(kind: str, rows: pd.DataFrame) -> str:
    note = WITHOUT[rows["rotary"].iloc[0]] if kind == "key" else ""
    return f"{TITLES[kind]}\n{note}".rstrip()


def _grid(rows: pd.DataFrame) -> np.ndarray:
    """(rows, dim)"""
    grid: np.ndarray = rows.filter(regex=r"^dim_\d+$").to_numpy(dtype=float)
    return grid


def _scale(entries: np.ndarray) -> AsinhNorm:
    """So that outlier channels are seen and what is usual is not flattened: even up to twice the
    median magnitude, logarithmic from there to the largest."""
    magnitudes = np.abs(entries[~np.isnan(entries)])
    top = float(magnitudes.max()) if len(magnitudes) else 0.0
    usual = 2 * float(np.median(magnitudes)) if top else 1.0
    return AsinhNorm(linear_width=usual or 0.1 * top, vmin=-(top or 1), vmax=top or 1)


def _ticks(scale: AsinhNorm) -> list[float]:
    """0 and, to both sides, 1 and 3 of the decades from the usual to the largest."""
    decades = 10.0 ** np.arange(-12, 13)
    steps = np.sort(np.concatenate([decades, 3 * decades]))
    above = steps[(steps >= 0.3 * scale.linear_width) & (steps <= scale.vmax)]
    above = above if len(above) else np.array([scale.vmax])
    return [*-above[::-1], 0.0, *above]


def _rows(ax: Axes, first: pd.DataFrame) -> None:
    size = int(first["tokens"].max())
    grouped = f"\n(each row: of {size} neighbours, the entry farthest from 0)" if size > 1 else ""
    ax.set_ylabel(f"Token position{grouped}")
    if len(first) <= MOST_WORDS and size == 1:
        ax.set_yticks(range(len(first)), [named(row) for _, row in first.iterrows()], fontsize=8)
        return
    positions = first["position"].to_numpy()
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda row, _: _position(positions, row)))


def _position(positions: np.ndarray, row: float) -> str:
    """Of the first token in a row; nothing beside the picture."""
    place = int(row)
    return f"{positions[place]}" if 0 <= place < len(positions) else ""


def _strip(ax: Axes, grid: np.ndarray, kind: str) -> None:
    """Of each dimension the median and the largest magnitude over rows: an outlier channel is
    large everywhere, an outlier token only in its own row."""
    held = np.abs(grid[~np.isnan(grid).all(axis=1)])  # without what was evicted
    held = held if len(held) else np.zeros((1, grid.shape[1]))
    usual, largest = np.median(held, axis=0), held.max(axis=0)
    colour = COLOURS["value" if kind == "value" else "key"]
    filled_steps(ax, usual, colour)
    ax.stairs(largest, np.arange(len(largest) + 1) - 0.5, color="#777777", lw=0.8)
    ax.set_ylim(0, 1.08 * (np.max(largest) or 1))
    ax.set_xlabel("Dimension")
    ticks_at(ax.xaxis, range(len(usual)))
    _name_outliers(ax, usual)


def _name_outliers(ax: Axes, usual: np.ndarray) -> None:
    many = outliers(usual)
    note = f"no dimension's median is above {OUTLIER} times the usual"
    if many:
        note = f"outlier dimensions (median above {OUTLIER} × the usual): {_listed(many)}"
    ax.text(0.5, 1.02, note, transform=ax.transAxes, ha="center", fontsize=8, color=ACCENT)


def _listed(dims: Sequence[int]) -> str:
    more = f" and {len(dims) - MOST_NAMED} more" if len(dims) > MOST_NAMED else ""
    return ", ".join(map(str, dims[:MOST_NAMED])) + more
