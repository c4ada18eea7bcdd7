"""Pictures of how alike layers, heads, tokens and dimensions are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visualization.bands import n_texts
from visualization.style import KINDS, MISSING, Look, Spaces, beside, figure, plain_log, styled

NAMES = {"key": "Keys as stored", "unrotated_key": "Unrotated keys", "value": "Values"}
SIGNED: Look = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
SHARE: Look = {"cmap": "viridis", "vmin": 0, "vmax": 1}
LAYER_MEASURES = {  # column: its name in titles, what its colour bar says, its colours
    "cosine": ("cosine", "Cosine of all entries", SIGNED),
    "cka": ("CKA", "Linear CKA", SHARE),
    "subspace": ("subspaces", "Overlap of {rank} leading directions\n(mean squared cosine)", SHARE),
}
HEAD_MEASURES = {
    "cosine": ("|cosine|", "|Cosine| of all entries", SHARE),
    "cka": ("CKA", "Linear CKA", SHARE),
}
TICK_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
OUTLIERS = 10  # times the median: entries so large leave a linear scale to themselves


@styled
def layer_similarity_matrix(table: pd.DataFrame, about: str) -> Figure:
    """Layers by layers: a row for each measure, a column for each kind."""
    layers = np.unique(table["layer_a"])
    title = f"Similarity of layers at {_n_positions(table)}"
    panel_side = 3.2 if len(layers) <= 40 else 4.2
    fig, axes, kinds = _panels(title, about, table, len(LAYER_MEASURES), panel_side)
    places = {f"layer_{end}": np.searchsorted(layers, table[f"layer_{end}"]) for end in "ab"}
    table = table.assign(**places)
    for row, (measure, (name, label, look)) in zip(axes, LAYER_MEASURES.items(), strict=True):
        for ax, kind in zip(row, kinds, strict=True):
            rows = table[table["kind"] == kind]
            _show(ax, _square(rows, "layer", measure), look)
            _name_ticks(ax, layers, most=16)
            ax.set_title(f"{NAMES[kind]}: {name}" + _chance(rows, measure))
        _bar(fig, row, label.format(rank=table["rank"].iloc[0]))
    _label(axes, "Layer")
    return fig


@styled
def head_similarity_matrix(table: pd.DataFrame, about: str) -> Figure:
    """KV heads of all layers by each other, similar ones side by side: |cosine| above, CKA
    below, a column for each kind, which has its own order."""
    title = f"Similarity of KV heads at {_n_positions(table)}"
    fig, axes, kinds = _panels(title, about, table, len(HEAD_MEASURES), 4.3, bottom=0.85)
    for row, (measure, (name, label, look)) in zip(axes, HEAD_MEASURES.items(), strict=True):
        for ax, kind in zip(row, kinds, strict=True):
            rows = table[table["kind"] == kind]
            _show(ax, np.abs(_square(rows, "order", measure)), look)
            _name_ticks(ax, _heads_in_order(rows), most=30, turned=True)
            ax.set_title(f"{NAMES[kind]}: {name}" + _chance(rows, measure))
        of_means = n_texts(table) > 1 and measure == "cosine"  # signs of texts may differ
        _bar(fig, row, "|Mean cosine over texts|" if of_means else label)
    _label(axes, "Layer:head, clustered by CKA")
    return fig


def _chance(rows: pd.DataFrame, measure: str) -> str:
    """What a title says of the value that pairs have by chance."""
    column = f"{measure}_chance"
    if column not in rows or rows[column].isna().all():
        return ""
    return f" (chance: {rows[column].mean():.2f})"


def _heads_in_order(rows: pd.DataFrame) -> list[str]:
    own = rows[rows["order_a"] == rows["order_b"]].sort_values("order_a")
    return [f"{layer}:{head}" for layer, head in zip(own["layer_a"], own["head_a"], strict=True)]


@styled
def token_similarity_matrix(table: pd.DataFrame, about: str) -> Figure:
    """Tokens by tokens, one panel for each kind."""
    title = f"Similarity of tokens, mean over layers, at {_n_positions(table)}"
    fig, axes, kinds = _panels(title, about, table, 1, 4.0)
    for ax, kind in zip(axes[0], kinds, strict=True):
        _show_positions(ax, table[table["kind"] == kind])
        ax.set_title(NAMES[kind])
    _bar(fig, axes[0], "Cosine of two tokens, over heads and dims")
    _label(axes, "Token position")
    return fig


@styled
def token_kv_similarity_matrices(table: pd.DataFrame, about: str) -> Figure:
    """Tokens by tokens: a row for each kind, a column for each chosen layer."""
    title = f"Similarity of tokens, layer by layer, at {_n_positions(table)}"
    layers, kinds = table["layer"].unique(), _kinds(table)
    fig, axes = _grid_of_panels(title, about, (len(kinds), len(layers)), 2.7)
    for row, kind in zip(axes, kinds, strict=True):
        for ax, layer in zip(row, layers, strict=True):
            chosen = (table["kind"] == kind) & (table["layer"] == layer)
            _show_positions(ax, table[chosen])
            ax.set_title(f"{NAMES[kind]}, layer {layer}")
        _bar(fig, row, "Cosine of two tokens,\nover heads and dims")
    _label(axes, "Token position")
    return fig


@styled
def token_embedding_patterns(table: pd.DataFrame, about: str) -> Figure:
    """Dimensions by token positions, keys above and values below, each on its own scale."""
    title = f"Magnitude of each dimension at {_n_positions(table)}"
    fig, axes = figure(title, about, (14, 8), 2, 1, gap=(0, 0.75), right=1.1)
    for ax, kind in zip(axes, KINDS, strict=True):
        rows = table[table["kind"] == kind]
        grid = rows.pivot(index="dim", columns="position", values="mean_abs")
        left, right = _edges(grid.columns)
        extent = (left, right, -0.5, len(grid) - 0.5)
        _show(ax, grid.to_numpy(), _magnitudes(grid.to_numpy()), extent=extent, origin="lower")
        _round_numbers(ax, most=16)
        ax.set_title(NAMES[kind], loc="left")
        ax.set_ylabel("Dimension")
        bar = beside(fig, ax, ax.images[0])
        bar.set_label("Mean |entry| over layers and heads")
        if isinstance(ax.images[0].norm, LogNorm):
            plain_log(bar.ax.yaxis, steps=(1.0, 2.0, 5.0))
    axes[-1].set_xlabel("Token position")
    return fig


def _magnitudes(grid: np.ndarray) -> Look:
    """From 0 to the largest; on a log scale where a linear one would show outliers alone."""
    middle, top = float(np.median(grid)), max(float(grid.max()), 1e-12)
    if 0 < middle < top / OUTLIERS:
        low = max(float(np.quantile(grid, 0.01)), middle / 100)
        return {"cmap": "viridis", "norm": LogNorm(low, top, clip=True)}
    return {"cmap": "viridis", "vmin": 0, "vmax": top}


@styled
def embedding_dimension_correlations(table: pd.DataFrame, about: str) -> Figure:
    """Dimensions by dimensions, one panel for each kind."""
    title = f"Correlation of embedding dimensions over {_n_positions(table)}"
    fig, axes, kinds = _panels(title, about, table, 1, 4.0)
    for ax, kind in zip(axes[0], kinds, strict=True):
        _show(ax, _square(table[table["kind"] == kind], "dim", "mean_abs_correlation"), SHARE)
        ax.set_title(NAMES[kind])
        _round_numbers(ax, most=16)
    _bar(fig, axes[0], "|Correlation|, mean over layers and heads")
    _label(axes, "Dimension")
    return fig


def _n_positions(table: pd.DataFrame) -> str:
    n = table["n_positions"].iloc[0]
    return f"{n} token positions" if n != 1 else "1 token position"


def _kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in NAMES if (table["kind"] == kind).any()]


def _panels(
    title: str,
    about: str,
    table: pd.DataFrame,
    n_rows: int,
    panel_side: float,
    bottom: float = 0.65,
) -> tuple[Figure, np.ndarray, list[str]]:
    """A figure, its axes (rows, kinds), and the kinds."""
    kinds = _kinds(table)
    shape = n_rows, len(kinds)
    return *_grid_of_panels(title, about, shape, panel_side, bottom), kinds


def _grid_of_panels(
    title: str, about: str, shape: tuple[int, int], panel_side: float, bottom: float = 0.65
) -> tuple[Figure, np.ndarray]:
    """Nearly square panels with sides of `panel_side` inches, with room for a colour bar at the end
    of each row."""
    (rows, columns), gap = shape, (0.6, 0.75)
    width = max(8, 0.95 + columns * panel_side + (columns - 1) * gap[0] + 1.25)
    height = 1.0 + rows * panel_side + (rows - 1) * gap[1] + bottom
    spaces: Spaces = {"gap": gap, "right": 1.25, "bottom": bottom, "squeeze": False}
    return figure(title, about, (width, height), rows, columns, **spaces)


def _square(rows: pd.DataFrame, name: str, value: str) -> np.ndarray:
    """(n, n), symmetric, from pairs of the places 0, 1, ... in columns `name`_a and `name`_b."""
    a, b = rows[f"{name}_a"].to_numpy(), rows[f"{name}_b"].to_numpy()
    grid = np.full((a.max() + 1, a.max() + 1), np.nan)
    grid[a, b] = grid[b, a] = rows[value]
    return grid


def _show(ax: Axes, grid: np.ndarray, look: Look, **placed: Any) -> None:
    """A matrix; grey where there is nothing to compare."""
    ax.imshow(grid, aspect="auto", **look, **placed)
    ax.set_facecolor(MISSING)
    ax.grid(False)
    if np.isnan(grid).all():
        where: Look = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "nothing to compare", **where)


def _show_positions(ax: Axes, rows: pd.DataFrame) -> None:
    """Tokens by tokens, where they stand in the text."""
    positions = np.unique(rows["position_a"])
    places = {
        f"position_{end}": np.searchsorted(positions, rows[f"position_{end}"]) for end in "ab"
    }
    left, right = _edges(positions)
    grid = _square(rows.assign(**places), "position", "cosine")
    _show(ax, grid, SIGNED, extent=(left, right, right, left))
    _round_numbers(ax, most=8)


def _round_numbers(ax: Axes, most: int) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(most, integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))


def _edges(positions: np.ndarray) -> tuple[float, float]:
    """Where cells of evenly spread positions begin and end."""
    first, last = positions[0], positions[-1]
    half = (last - first) / (len(positions) - 1) / 2 if len(positions) > 1 else 0.5
    return first - half, last + half


def _name_ticks(
    ax: Axes, names: Sequence[object] | np.ndarray, most: int, turned: bool = False
) -> None:
    """Names at as many cells as can be read, at most `most` of them."""
    step = next((s for s in TICK_STEPS if len(names) <= s * most), len(names))
    places, labels = range(0, len(names), step), [str(name) for name in names[::step]]
    ax.set_xticks(places, labels, rotation=90 if turned else 0)
    ax.set_yticks(places, labels)
    if turned:
        ax.tick_params(labelsize=7)


def _bar(fig: Figure, row: Sequence[Axes], label: str) -> None:
    """The colour bar that a row of panels shares."""
    grey = any(np.isnan(np.ma.asarray(ax.images[0].get_array()).filled(np.nan)).any() for ax in row)
    beside(fig, row[-1], row[-1].images[0]).set_label(label + "\n(grey: no comparison)" * grey)


def _label(axes: np.ndarray, label: str) -> None:
    """What the axes mean, at the left and at the bottom of a grid of panels."""
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    for ax in axes[-1]:
        ax.set_xlabel(label)
