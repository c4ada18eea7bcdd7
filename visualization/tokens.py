"""Pictures of what each token contributes."""

from collections.abc import Sized

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import config
from visualization.bands import GREY, band, band_entry, errors, n_texts, spread
from visualization.lettering import isolated
from visualization.style import (
    ACCENT,
    COLOURS,
    MISSING,
    NAMES,
    Spaces,
    beside,
    bin_width,
    binned,
    figure,
    per_bin,
    plain_log,
    shown,
    styled,
    whole_numbers,
)

MOST_BARS = 1024
MOST_POINTS = 256
MOST_COLUMNS = 512
NORMS = {"key": "key_norm", "value": "value_norm"}


@styled
def token_position_importance(table: pd.DataFrame, about: str) -> Figure:
    """Bars of importance per position, lines of the normalised key and value norms."""
    fig, ax = figure("Importance of each token position", about, (14, 6), head=0.4, right=2.1)
    positions = table["position"].to_numpy()
    span = positions.max() + 1
    width = bin_width(span, MOST_BARS)
    middles, heights = binned(positions, table["importance"].to_numpy(), width, "max")
    label = "Importance" + per_bin(width, "maximum")
    edges = np.append(middles - width / 2, middles[-1] + width / 2)
    ax.stairs(heights, edges, fill=True, color="#b8bfc8", label=label)
    highest = table.loc[table.groupby(positions // width)["importance"].idxmax()]
    error = errors(highest, "importance")
    band(ax, middles, heights, error, step="mid", color=GREY, alpha=0.4)
    line_width = bin_width(span, MOST_POINTS)
    for kind, name in NORMS.items():
        norms = table[name].to_numpy() / (table[name].max() or 1)  # of zeros no token has a share
        line_middles, line = binned(positions, norms, line_width, "mean")
        text = f"{NAMES[kind][:-1]} norm" + per_bin(line_width, "mean")
        ax.plot(line_middles, line, "-" + _alone(line), color=COLOURS[kind], lw=1.2, label=text)
        of_norms = errors(table, name) / (table[name].max() or 1)
        error = binned(positions, of_norms, line_width, "mean")[1]
        band(ax, line_middles, line, error, color=COLOURS[kind])
    band_entry(ax, table, alpha=0.4)
    _name_top(ax, table, "importance")
    ax.set_xlim(-0.5 - 0.01 * span, span - 0.5 + 0.01 * span)
    ax.set_ylim(0, 1.05)
    ax.set_xlabel("Token position")
    ax.set_ylabel("Score (terms as shares of their maximum)")
    whole_numbers(ax.xaxis)
    ax.legend(loc="lower right", ncols=5, bbox_to_anchor=(1, 1))
    return fig


@styled
def attention_sinks(table: pd.DataFrame, about: str) -> Figure:
    """Attention received by position on a log scale: mean over layers above, each layer below."""
    layers = sorted(table["layer"].unique())
    size = (14, min(16, 6 + 0.11 * len(layers)))
    title = "Attention sinks: mean attention that each token receives"
    spaces: Spaces = {"gap": (0, 0.2), "right": 2.1, "head": 0.4, "sharex": True}
    fig, (above, below) = figure(title, about, size, 2, 1, **spaces)
    first = table.drop_duplicates("position").sort_values("position")
    above.vlines(first["position"], _floor(first), first["mean_received"], color="#7d8894", lw=0.8)
    received = first["mean_received"].to_numpy()
    error = errors(first, "mean_received")
    places = first["position"].to_numpy()
    band(above, places, received, error, step="mid", color=GREY, alpha=0.5)
    band_entry(above, table, alpha=0.5)
    even = first.dropna(subset="even_share")
    if len(even):
        label = "if every query spread its attention evenly"
        marks = "--" + _alone(even)
        above.plot(even["position"], even["even_share"], marks, color="#333333", lw=1, label=label)
    above.set_yscale("log")
    plain_log(above.yaxis)
    above.set_ylim(bottom=_floor(first), top=1.3)
    above.set_ylabel("Attention weight, mean over layers")
    _name_top(above, first, "mean_received")
    if above.get_legend_handles_labels()[0]:
        above.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    _sink_map(fig, below, table, layers)
    return fig


def _alone(points: Sized) -> str:
    """The mark of a line of one point, which would not be seen."""
    return "" if len(points) > 1 else "o"


def _floor(first: pd.DataFrame) -> float:
    positive = first.loc[first["mean_received"] > 0, "mean_received"]
    return float(positive.min()) / 2 if len(positive) else 1e-6


def _sink_map(fig: Figure, ax: Axes, table: pd.DataFrame, layers: list[int]) -> None:
    """Layers by positions; neighbouring positions share a column, which shows their maximum."""
    span = table["position"].max() + 1
    width = bin_width(span, MOST_COLUMNS)
    columns = table["position"] // width
    grid = (
        table.groupby(["layer", columns])["attention_received"]
        .max()
        .unstack()
        .reindex(columns=range(-(-span // width)))
        .to_numpy(dtype=float)
    )
    seen = grid[grid > 0] if (grid > 0).any() else np.array([1.0])
    scale = LogNorm(vmin=min(np.percentile(seen, 1), 0.5 * seen.max()), vmax=seen.max())
    extent = (-0.5, grid.shape[1] * width - 0.5, len(layers) - 0.5, -0.5)
    image = ax.imshow(
        grid, aspect="auto", norm=scale, cmap="viridis", extent=extent, interpolation="nearest"
    )
    ax.set_facecolor(MISSING)
    ax.grid(False)
    step = bin_width(len(layers), 20)
    ax.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    ax.set_xlabel("Token position" + per_bin(width, "maximum"))
    ax.set_ylabel("Layer")
    whole_numbers(ax.xaxis)
    bar = beside(fig, ax, image)
    plain_log(bar.ax.yaxis)
    bar.set_label("Attention weight, mean over KV heads")


def _name_top(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """Mark the tokens with the largest values; their names stand in a list, since the tokens that
    matter most are often neighbours and labels at the marks would overlap. Tokens that few queries
    can see are shaded, not ranked."""
    seen = table[table["well_seen"]]
    top = seen.nlargest(config.TOP_TOKENS, column, keep="first")
    ax.plot(top["position"], top[column], "v", color=ACCENT, ms=6, clip_on=False)
    last = seen["position"].max()
    if last < table["position"].max():
        note = f"seen by < {seen['seen_by'].min()} queries"
        ax.axvspan(last + 0.5, table["position"].max() + 0.5, color="#f3e3d3", zorder=0, label=note)
    lines = [_named(row, column) for _, row in top.iterrows()]
    ax.text(
        1.01,
        1.0,
        f"Highest (position: {'mean' if n_texts(table) > 1 else 'token'})\n" + "\n".join(lines),
        transform=ax.transAxes,
        va="top",
        fontsize=9,
        color=ACCENT,
    )


def _named(row: pd.Series, column: str) -> str:
    """A token by its position and its word; of several texts its mean, and the word where all have
    the same there."""
    word = isolated(shown(row["token"])[:16]) if isinstance(row["token"], str) else ""
    if f"{column}_se" not in row:
        return f"{row['position']}: {word}"
    return f"{row['position']}: {spread(row, column, '.3f')} {word}".rstrip()
