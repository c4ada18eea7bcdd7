"""Pictures of the layers."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization.style import (
    COLOURS,
    NAMES,
    by_kind,
    figure,
    from_zero,
    kind_bars,
    percent,
    styled,
    whole_numbers,
)

SHARED = 0.5  # correlation above which keys and values might share a representation


@styled
def layer_statistics(table: pd.DataFrame, about: str) -> Figure:
    """Four panels over layers: sparsity, key-value correlation, spread, mean magnitude."""
    fig, axes = figure("Layer-wise statistics of the KV cache", about, (12, 8), 2, 2)
    _lines(axes[0, 0], table, "sparsity", "Sparsity (share of entries below the threshold)")
    percent(axes[0, 0].yaxis)
    _correlation(axes[0, 1], table[table["kind"] == "key"])
    _lines(axes[1, 0], table, "std", "Standard deviation of entries")
    _lines(axes[1, 1], table, "mean_abs", "Mean |entry|")
    for ax in axes.flat:
        ax.set_xlabel("Layer")
        whole_numbers(ax.xaxis)
    return fig


def _lines(ax: Axes, table: pd.DataFrame, column: str, title: str) -> None:
    for kind, rows in by_kind(table):
        ax.plot(rows["layer"], rows[column], "o-", ms=4, color=COLOURS[kind], label=NAMES[kind])
    ax.set_title(title)
    ax.set_ylabel(title.split(" (")[0])
    from_zero(ax, table[column].max())
    ax.legend()


def _correlation(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set_ylabel("Correlation (Pearson, flattened)")
    if rows["kv_correlation"].isna().all():
        note = "Keys and values differ in shape:\nthere is no correlation of entries."
        ax.text(0.5, 0.5, note, ha="center", transform=ax.transAxes)
        ax.set_title("Key-value correlation")
        ax.set_xlim(rows["layer"].min() - 0.5, rows["layer"].max() + 0.5)
        return
    largest = rows["kv_correlation"].abs().max()
    ax.set_title(f"Key-value correlation (largest |r| {largest:.2f}; {SHARED} hints at sharing)")
    ax.axhline(0, color="#888888", lw=1)
    ax.plot(rows["layer"], rows["kv_correlation"], "o-", ms=4, color="#6b4c9a")
    if largest > SHARED / 2:
        ax.axhline(SHARED, color="#888888", ls="--", lw=1)


@styled
def layer_pruning_potential(table: pd.DataFrame, about: str) -> Figure:
    """Bars of key and value sparsity per layer, with dashed lines at their means."""
    title = "Pruning potential by layer: sparsity, a heuristic"
    fig, ax = figure(title, about, (12, 5.5), head=0.55)
    kind_bars(ax, table, "layer", "sparsity")
    for kind, rows in by_kind(table):
        mean = rows["mean_sparsity"].iloc[0]
        label = f"{NAMES[kind]}: mean of layers {mean:.1%}"
        ax.axhline(mean, color=COLOURS[kind], ls="--", lw=1.5, label=label)
    from_zero(ax, table["sparsity"].max())
    ax.set_xlabel("Layer")
    ax.set_ylabel("Sparsity")
    percent(ax.yaxis)
    ax.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return fig
