"""Pictures of the layers."""

from collections.abc import Mapping

import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from visualization.bands import band, band_entry, bars_entry, errors, highest, n_texts
from visualization.style import (
    COLOURS,
    NAMES,
    by_kind,
    figure,
    from_zero,
    kind_bars,
    percent,
    styled,
    ticks_at,
)

SHARED = 0.5  # correlation above which keys and values might share a representation
DARKER = {"key": "#12355f", "value": "#7a4008"}  # of lines that cross bars of the usual colours


@styled
def layer_statistics(table: pd.DataFrame, about: str) -> Figure:
    """Four panels over layers: sparsity, key-value correlation, spread, mean magnitude."""
    fig, axes = figure("Layer-wise statistics of the KV cache", about, (12, 8), 2, 2)
    below = f"|entry| below {config.SPARSITY_THRESHOLD_PERCENTAGE:g} % of the largest"
    names = {
        kind: f"{NAMES[kind]}: below {rows['threshold'].iloc[0]:.3g}"
        for kind, rows in by_kind(table)
    }
    _lines(axes[0, 0], table, "sparsity", f"Sparsity ({below})", names)
    percent(axes[0, 0].yaxis)
    _correlation(axes[0, 1], table[table["kind"] == "key"])
    _lines(axes[1, 0], table, "std", "Standard deviation of entries")
    _lines(axes[1, 1], table, "mean_abs", "Mean |entry|")
    for ax in axes.flat:
        ax.set_xlabel("Layer")
        ticks_at(ax.xaxis, table["layer"])
        ax.set_xlim(table["layer"].min() - 0.5, table["layer"].max() + 0.5)
    return fig


def _lines(
    ax: Axes, table: pd.DataFrame, column: str, title: str, names: Mapping[str, str] = NAMES
) -> None:
    for kind, rows in by_kind(table):
        ax.plot(rows["layer"], rows[column], "o-", ms=4, color=COLOURS[kind], label=names[kind])
        _band(ax, rows, column, COLOURS[kind])
    ax.set_title(title)
    ax.set_ylabel(title.split(" (")[0])
    from_zero(ax, highest(table, column))
    band_entry(ax, table)
    ax.legend()


def _band(ax: Axes, rows: pd.DataFrame, column: str, colour: str) -> None:
    layers, means = rows["layer"].to_numpy(), rows[column].to_numpy()
    band(ax, layers, means, errors(rows, column), color=colour)


def _correlation(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set_ylabel("Correlation (Pearson, flattened)")
    if rows["kv_correlation"].isna().all():
        note = "Keys and values differ in shape:\nthere is no correlation of entries."
        ax.text(0.5, 0.5, note, ha="center", transform=ax.transAxes)
        ax.set_title("Key-value correlation")
        return
    largest = rows["kv_correlation"].abs().max()
    ax.set_title(f"Key-value correlation (largest |r| {largest:.2f}; {SHARED} hints at sharing)")
    ax.axhline(0, color="#888888", lw=1)
    ax.plot(rows["layer"], rows["kv_correlation"], "o-", ms=4, color="#6b4c9a")
    _band(ax, rows, "kv_correlation", "#6b4c9a")
    if n_texts(rows) > 1:
        band_entry(ax, rows)
        ax.legend()
    if largest > SHARED / 2:
        ax.axhline(SHARED, color="#888888", ls="--", lw=1)


@styled
def layer_pruning_potential(table: pd.DataFrame, about: str) -> Figure:
    """Bars of key and value sparsity per layer, with dashed lines at their means."""
    title = "Pruning potential by layer: sparsity, a heuristic"
    fig, ax = figure(title, about, (12, 5.5), head=0.55)
    several = n_texts(table) > 1
    kind_bars(ax, table, "layer", "sparsity", spread="sparsity_se" if several else None)
    for kind, rows in by_kind(table):
        mean = rows["mean_sparsity"].iloc[0]
        more = f" ± {rows['mean_sparsity_se'].iloc[0]:.1%}" if several else ""
        label = f"{NAMES[kind]}: mean of layers {mean:.1%}{more}"
        line = ax.axhline(mean, color=DARKER[kind], ls="--", lw=1.8, label=label, zorder=3)
        line.set_path_effects([patheffects.withStroke(linewidth=4, foreground="white")])
    from_zero(ax, highest(table, "sparsity"))
    ax.set_xlabel("Layer")
    ax.set_ylabel("Sparsity")
    percent(ax.yaxis)
    bars_entry(ax, table)
    ax.legend(ncols=4 + several, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return fig
