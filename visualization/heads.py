"""Pictures of the KV heads."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from visualization.bands import errors, n_texts, words
from visualization.lettering import letters_on
from visualization.style import (
    ACCENT,
    MISSING,
    NAMES,
    SPARSITY_MAP,
    Look,
    Spaces,
    beside,
    bin_width,
    by_kind,
    figure,
    from_zero,
    kind_bars,
    percent,
    styled,
)

MOST_WRITTEN_CELLS = 400  # beyond, a number in each cell is noise
NAME_HIGH = 0.125  # inches that the name of a cell takes of an axis


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
        _heat_map(fig, ax, grid, top)
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
    _heat_map(fig, ax, grid, top)
    ax.set_xlabel("Layer")
    ax.set_ylabel("KV head")
    _colour_bar(fig, [ax], f"of keys alone, the scale's end the largest: {top:.1%}")
    return fig


def _scale_top(table: pd.DataFrame) -> float:
    return max(float(table["sparsity"].max()), 0.01)


def _heat_map(fig: Figure, ax: Axes, grid: pd.DataFrame, top: float) -> None:
    """Cells in percent where they can be read, grey where a layer has no such head."""
    percents = 100 * grid.to_numpy(dtype=float)
    look: Look = {"cmap": SPARSITY_MAP, "vmin": 0, "vmax": 100 * top}
    mesh = ax.pcolormesh(percents, **look)
    ax.set_xlim(0, grid.shape[1])
    ax.set_ylim(grid.shape[0], 0)
    if grid.size <= MOST_WRITTEN_CELLS and grid.shape[1] <= 40:
        _write(ax, percents, mesh.to_rgba(percents), ".0f" if top >= 0.1 else ".1f")
    box, (width, height) = ax.get_position(), fig.get_size_inches()
    _name_cells(ax.xaxis, grid.columns, box.width * width)
    _name_cells(ax.yaxis, grid.index, box.height * height)
    ax.set_facecolor(MISSING)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _write(ax: Axes, percents: np.ndarray, grounds: np.ndarray, form: str) -> None:
    """The number of each cell that there is, in letters that its ground lets stand out."""
    look: Look = {"ha": "center", "va": "center", "fontsize": 8}
    for row, column in np.argwhere(~np.isnan(percents)):
        colour = letters_on(grounds[row, column])
        text = f"{percents[row, column]:{form}}"
        ax.text(column + 0.5, row + 0.5, text, color=colour, **look)


def _name_cells(axis: Axis, names: pd.Index, inches: float) -> None:
    """Ticks in the middle of cells, as many as an axis of this length has room for."""
    step = bin_width(len(names), max(1, int(inches / NAME_HIGH)))
    axis.set_ticks(np.arange(0, len(names), step) + 0.5, [str(name) for name in names[::step]])


def _colour_bar(fig: Figure, axes: Sequence[Axes] | np.ndarray, scale: str) -> None:
    """scale: what the darkest colour stands for, which differs from picture to picture."""
    bar = beside(fig, axes[-1], axes[0].collections[0])
    bar.set_label(f"Sparsity (% of entries below the threshold)\n{scale}")
