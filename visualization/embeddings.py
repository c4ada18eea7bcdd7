"""Pictures of the embedding dimensions of keys and values."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from visualization.bands import GREY, band, band_entry, errors, note
from visualization.style import (
    ACCENT,
    COLOURS,
    KINDS,
    NAMES,
    SAFE,
    Look,
    bin_width,
    binned,
    by_kind,
    figure,
    filled_steps,
    per_bin,
    percent,
    styled,
    whole_numbers,
)

MOST_POINTS = 128
LINES = ("#1b4f72", "#2e86c1", "#17a589", "#b7950b", "#a04000", "#6c3483", "#7b7d7d")


@styled
def embedding_consistency(table: pd.DataFrame, about: str) -> Figure:
    """Sparsity of each dimension over the whole cache, with the sparse and the dense line."""
    fig, axes = figure(
        "Sparsity of each embedding dimension", about, (12, 7), 2, 1, gap=(0, 0.7), sharey=True
    )
    for ax, (kind, rows) in zip(axes, by_kind(table), strict=True):
        means = rows["sparsity"].to_numpy()
        filled_steps(ax, means, color=COLOURS[kind])
        look: Look = {"step": "mid", "color": GREY, "alpha": 0.6}
        band(ax, rows["dim"].to_numpy(), means, errors(rows, "sparsity"), **look)
        band_entry(ax, rows, alpha=0.6)
        sparse, dense = config.SPARSE_DIM_SHARE, config.DENSE_DIM_SHARE
        n_sparse, n_dense = (rows["sparsity"] > sparse).sum(), (rows["sparsity"] < dense).sum()
        label = f"{sparse:.0%}: {n_sparse} of {len(rows)} above, may be removable"
        ax.axhline(sparse, color=ACCENT, lw=1.5, label=label)
        label = f"{dense:.0%}: {n_dense} of {len(rows)} below, likely critical"
        ax.axhline(dense, color=SAFE, lw=1.5, label=label)
        ax.set_title(NAMES[kind], loc="left")
        ax.set_ylabel("Sparsity")
        ax.set_ylim(0, 1)
        percent(ax.yaxis)
        whole_numbers(ax.xaxis)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    axes[-1].set_xlabel("Dimension (over all layers, KV heads and tokens)")
    return fig


@styled
def sparse_dense_embedding_patterns(table: pd.DataFrame, about: str) -> Figure:
    """Mean |entry| over token positions of the most sensitive dimensions above and of the most
    invariant ones below."""
    title = "Embedding dimensions over token positions"
    fig, axes = figure(title, about, (14, 8.5), 2, 2, sharex=True, sharey="col")
    words = {"sensitive": "most position-sensitive", "invariant": "most position-invariant"}
    for row, (pattern, word) in zip(axes, words.items(), strict=True):
        for ax, kind in zip(row, KINDS, strict=True):
            chosen = table[(table["kind"] == kind) & (table["pattern"] == pattern)]
            _pattern_lines(ax, chosen)
            ax.set_title(f"{NAMES[kind]}: {word} dimensions")
            ax.set_ylabel("Mean |entry|" + note(table, "bands: "))
            ax.tick_params(labelleft=True)
    for column in axes.T:  # one scale, so that the calm look calmer; with room for the legends
        column[0].set_ylim(0, 1.3 * max(ax.dataLim.y1 for ax in column) or 1)
    return fig


def _pattern_lines(ax: Axes, table: pd.DataFrame) -> None:
    width = bin_width(table["position"].max() + 1, MOST_POINTS)
    for i, (dim, rows) in enumerate(table.groupby("dim", sort=False)):
        positions, means = rows["position"].to_numpy(), rows["mean_abs"].to_numpy()
        middles, line = binned(positions, means, width, "mean")
        _, error = binned(positions, errors(rows, "mean_abs"), width, "mean")
        band(ax, middles, line, error, color=LINES[i])
        label = f"dim {dim} (variance {rows['variance'].iloc[0]:.2g})"
        marker = "o" if len(middles) == 1 else None  # a line needs two points
        ax.plot(middles, line, lw=1.3, marker=marker, color=LINES[i], label=label)
    ends = table["position"].min(), table["position"].max()
    ax.set_xlim(ends[0] - 0.5, ends[1] + 0.5)
    ax.set_xlabel("Token position" + per_bin(width, "mean"))
    whole_numbers(ax.xaxis)
    ax.tick_params(labelbottom=True)
    ax.legend(loc="upper center", ncols=3, fontsize=8)
