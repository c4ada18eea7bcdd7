"""Pictures of the KV heads."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization.bands import errors, n_texts, words
from visualization.style import (
    ACCENT,
    MISSING,
    NAMES,
    SPARSITY_MAP,
    Look,
    Spaces,
    beside,
    by_kind,
    figure,
    from_zero,
    kind_bars,
    percent,
    styled,
)

MOST_WRITTEN_CELLS = 400  # beyond, a number in each cell is noise


@styled
def head_sparsity(table: pd.DataFrame, about: str) -> Figure:
    """Two heat maps, layers by heads, on one colour scale; darker is sparser."""
    n_layers, n_heads = table["layer"].nunique(), table["head"].nunique()
    size = (min(16, max(8, 3 + 0.5 * n_heads)), min(20, max(5, 1.8 + 0.24 * n_layers)))
    spaces: Spaces = {"gap": (0.3, 0), "right": 1.2, "sharey": True}
    fig, axes = figure("Sparsity by layer and KV head", about, size, 1, 2, **spaces)
    top = _scale_top(table)
    for ax, (kind, rows) in zip(axes, by_kind(table), strict=True):
        grid = rows.pivot(index="layer", columns="head", values="sparsity")
        _heat_map(ax, grid, top)
        ax.set_title(NAMES[kind])
        ax.set_xlabel("KV head")
        ax.set_ylabel("Layer" if kind == "key" else "")
    _colour_bar(fig, axes, f"one scale for both, its end the largest: {top:.1%}")
    return fig


@styled
def head_pruning_potential(table: pd.DataFrame, about: str) -> Figure:
    """Mean sparsity of each head over layers; error bars are its standard deviation."""
    n_heads = table["head"].nunique()
    size = (min(16, max(8, 2 + 0.4 * n_heads)), 5.5)
    title = "Pruning potential by KV head: sparsity, a heuristic"
    fig, ax = figure(title, about, size, head=0.55)
    kind_bars(ax, table, "head", "sparsity_mean", spread="sparsity_std")
    ax.set_xlabel("KV head")
    ax.set_ylabel("Sparsity, mean over layers\n(bars: standard deviation over layers)")
    if n_texts(table) > 1:
        _errors_over_texts(ax, table)
    from_zero(ax, (table["sparsity_mean"] + table["sparsity_std"]).max())
    percent(ax.yaxis)
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return fig


def _errors_over_texts(ax: Axes, table: pd.DataFrame) -> None:
    """Beside the middle of each bar, where the deviation over layers has its own."""
    for shift, (_, rows) in zip((-0.3, 0.1), by_kind(table), strict=True):
        look: Look = {"color": ACCENT, "ls": "none", "capsize": 2, "lw": 1.5}
        look["label"] = words(table) if shift < 0 else None
        spread = errors(rows, "sparsity_mean")
        ax.errorbar(rows["head"] + shift, rows["sparsity_mean"], yerr=spread, **look)


@styled
def pruning_heatmap_by_layer_head(table: pd.DataFrame, about: str) -> Figure:
    """Sparsity of keys: one column per layer, one row per head."""
    n_layers, n_heads = table["layer"].nunique(), table["head"].nunique()
    size = (min(22, max(8, 2.5 + 0.42 * n_layers)), min(16, max(5, 2.2 + 0.35 * n_heads)))
    title = "Key sparsity by KV head and layer: a heuristic"
    fig, ax = figure(title, about, size, right=1.2, head=0.15)
    grid = table.pivot(index="head", columns="layer", values="sparsity")
    top = _scale_top(table)
    _heat_map(ax, grid, top)
    ax.set_xlabel("Layer")
    ax.set_ylabel("KV head")
    _colour_bar(fig, [ax], f"of keys alone, the scale's end the largest: {top:.1%}")
    return fig


def _scale_top(table: pd.DataFrame) -> float:
    return max(float(table["sparsity"].max()), 0.01)


def _heat_map(ax: Axes, grid: pd.DataFrame, top: float) -> None:
    """Cells in percent where they can be read, grey where a layer has no such head."""
    written = grid.size <= MOST_WRITTEN_CELLS and grid.shape[1] <= 40
    sns.heatmap(
        100 * grid,
        ax=ax,
        cmap=SPARSITY_MAP,
        vmin=0,
        vmax=100 * top,
        cbar=False,
        annot=written,
        fmt=".0f" if top >= 0.1 else ".1f",
        annot_kws={"fontsize": 8},
    )
    ax.set_facecolor(MISSING)
    ax.grid(False)
    ax.tick_params(rotation=0)


def _colour_bar(fig: Figure, axes: Sequence[Axes] | np.ndarray, scale: str) -> None:
    """scale: what the darkest colour stands for, which differs from picture to picture."""
    bar = beside(fig, axes[-1], axes[0].collections[0])
    bar.set_label(f"Sparsity (% of entries below the threshold)\n{scale}")
