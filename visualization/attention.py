"""Picture of the attention that tokens receive."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analysis.sinks import SINK, are_too_few, sinks
from visualization.bands import GREY, band, band_entry, errors
from visualization.style import (
    ACCENT,
    MISSING,
    Look,
    Spaces,
    beside,
    bin_width,
    figure,
    per_bin,
    plain_log,
    styled,
    whole_numbers,
)
from visualization.token_marks import alone, mark, shade, sink_label, sink_list, write

MOST_COLUMNS = 512


@styled
def attention_sinks(table: pd.DataFrame, about: str) -> Figure:
    """Attention received by position on a log scale: mean over layers above, each layer below."""
    layers = sorted(table["layer"].unique())
    size = (14, min(16, 6.5 + 0.11 * len(layers)))
    title = "Attention sinks: mean attention that each token receives"
    spaces: Spaces = {"gap": (0, 0.2), "right": 2.4, "head": 0.4, "sharex": True}
    fig, (above, below) = figure(title, about, size, 2, 1, **spaces)
    first = table.drop_duplicates("position").sort_values("position")
    _received(above, first)
    write(above, sink_list(first))
    _sink_map(fig, below, table, layers)
    return fig


def _received(ax: Axes, first: pd.DataFrame) -> None:
    """first: a row for each token."""
    floor = _floor(first)
    ax.vlines(first["position"], floor, first["mean_received"], color="#7d8894", lw=0.8)
    received, places = first["mean_received"].to_numpy(), first["position"].to_numpy()
    error = errors(first, "mean_received")
    band(ax, places, received, error, step="mid", color=GREY, alpha=0.5)
    band_entry(ax, first, alpha=0.5)
    even = first.dropna(subset="even_share")
    if len(even):
        look: Look = {"color": "#333333", "lw": 1.2, "label": "even share of attention"}
        ax.plot(even["position"], even["even_share"], "--" + alone(even), **look)
    of_sinks = even[even["well_seen"] & ~are_too_few(even["even_share"])]
    if len(of_sinks) > 1:
        look = {"color": ACCENT, "lw": 1.2, "label": f"{SINK} × the even share"}
        ax.plot(of_sinks["position"], SINK * of_sinks["even_share"], ":", **look)
    many = sinks(first)
    mark(ax, many, "mean_received", "v", ACCENT, sink_label(len(many)))
    shade(ax, first)
    ax.set_yscale("log")
    plain_log(ax.yaxis)
    ax.set_ylim(bottom=floor, top=1.3)
    ax.set_ylabel("Attention weight, mean over layers")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5)


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
    ax.set_xlim(-0.5, span - 0.5)
    ax.set_xlabel("Token position" + per_bin(width, "maximum"))
    ax.set_ylabel("Layer")
    whole_numbers(ax.xaxis)
    bar = beside(fig, ax, image)
    plain_log(bar.ax.yaxis)
    bar.set_label("Attention weight, mean over KV heads")
