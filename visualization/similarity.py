"""Pictures of how alike layers, heads, tokens and dimensions are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from visualization.bands import n_texts
from visualization.matrices import (
    NAMES,
    Scale,
    around_zero,
    counted_positions,
    edges,
    from_zero_to_most,
    grid_of_panels,
    kinds_of,
    label_outside,
    name_ticks,
    panels,
    round_numbers,
    shared_bar,
    show,
    square,
    without_diagonal,
)
from visualization.style import ACCENT, KINDS, Look, beside, figure, plain_log, styled

SHARE = Scale({"cmap": "viridis", "vmin": 0, "vmax": 1})
LAYER_MEASURES = {  # column: its name in titles, what its colour bar says
    "cosine": ("cosine", "Cosine of all entries"),
    "cka": ("CKA", "Linear CKA"),
    "subspace": ("subspaces", "Overlap of {rank} leading directions\n(mean squared cosine)"),
}
HEAD_MEASURES = {"cosine": ("|cosine|", "|Cosine| of all entries"), "cka": ("CKA", "Linear CKA")}
ITSELF = "\n(grey: of one with itself)"
LARGEST_PANEL, HEADS_PER_INCH = 6.2, 15  # inches, and names that can be read in one
Head = tuple[int, int]  # of a layer
COSINE_OF_TOKENS = f"Cosine of two tokens{ITSELF}"
OUTLIERS = 10  # times the median: entries so large leave a linear scale to themselves


@styled
def layer_similarity_matrix(table: pd.DataFrame, about: str) -> Figure:
    """Layers by layers: a row for each measure, a column for each kind."""
    layers = np.unique(table["layer_a"])
    title = f"Similarity of layers at {counted_positions(table)}"
    panel_side = 3.2 if len(layers) <= 40 else 4.2
    fig, axes, kinds = panels(title, about, table, len(LAYER_MEASURES), panel_side)
    places = {f"layer_{end}": np.searchsorted(layers, table[f"layer_{end}"]) for end in "ab"}
    table = table.assign(**places)
    for row, (measure, (name, label)) in zip(axes, LAYER_MEASURES.items(), strict=True):
        grids = {kind: square(table[table["kind"] == kind], "layer", measure) for kind in kinds}
        scale = SHARE
        if measure == "cosine":
            grids = {kind: without_diagonal(grid) for kind, grid in grids.items()}
            scale, label = around_zero(np.stack(list(grids.values()))), label + ITSELF
        for ax, (kind, grid) in zip(row, grids.items(), strict=True):
            show(ax, grid, scale.look)
            name_ticks(ax, layers, most=16)
            chance = _chance(table[table["kind"] == kind], measure)
            ax.set_title(f"{NAMES[kind]}: {name}{chance}")
        shared_bar(fig, row, label.format(rank=table["rank"].iloc[0]), scale.extend)
    label_outside(axes, "Layer")
    return fig


@styled
def head_similarity_matrix(table: pd.DataFrame, about: str) -> Figure:
    """KV heads of all layers by each other: |cosine| above, CKA below, a column for each kind. All
    panels have one order, in which similar heads by the first kind's CKA are side by side; a ring
    is around the pair of each panel that is most alike."""
    title = f"Similarity of KV heads at {counted_positions(table)}"
    first = kinds_of(table)[0]
    heads = _heads_in_order(table[table["kind"] == first])
    names = [f"{layer}:{head}" for layer, head in heads]
    side = min(LARGEST_PANEL, max(4.3, len(heads) / HEADS_PER_INCH))
    shape = len(HEAD_MEASURES), len(kinds_of(table))
    fig, axes = grid_of_panels(title, about, shape, side, bottom=0.85, head=0.65)
    by_kind = {k: _ordered(table[table["kind"] == k], heads) for k in kinds_of(table)}
    for row, (measure, (name, label)) in zip(axes, HEAD_MEASURES.items(), strict=True):
        grids = {k: np.abs(square(rows, "order", measure)) for k, rows in by_kind.items()}
        scale = SHARE
        if measure == "cosine":
            label = "|Mean cosine over texts|" if n_texts(table) > 1 else label  # signs may differ
            grids = {kind: without_diagonal(grid) for kind, grid in grids.items()}
            scale, label = from_zero_to_most(np.stack(list(grids.values()))), label + ITSELF
        for ax, (kind, grid) in zip(row, grids.items(), strict=True):
            show(ax, grid, scale.look)
            step = name_ticks(ax, names, int(side * HEADS_PER_INCH), turned=True)
            nearest = _ring(ax, grid, heads)
            ax.set_title(f"{NAMES[kind]}: {name}{_chance(by_kind[kind], measure)}{nearest}")
        shared_bar(fig, row, label, scale.extend)
    skipped = "" if step == 1 else f" (1 in {step} named)"
    label_outside(axes, f"Layer:head{skipped}, all clustered by CKA of {NAMES[first].lower()}")
    return fig


def _ordered(rows: pd.DataFrame, heads: Sequence[Head]) -> pd.DataFrame:
    """Pairs with the places of both among `heads`."""
    places = pd.MultiIndex.from_tuples(heads)
    ends = {x: pd.MultiIndex.from_frame(rows[[f"layer_{x}", f"head_{x}"]]) for x in "ab"}
    return rows.assign(**{f"order_{x}": places.get_indexer(end) for x, end in ends.items()})


def _ring(ax: Axes, grid: np.ndarray, heads: Sequence[Head]) -> str:
    """Mark the two different heads that are most alike; returns their names, for the title."""
    others = np.where(np.triu(np.ones(grid.shape), 1) > 0, grid, np.nan)
    if np.isnan(others).all():
        return ""
    a, b = map(int, np.unravel_index(np.nanargmax(others), others.shape))
    look: Look = {"s": 110, "facecolors": "none", "edgecolors": ACCENT, "lw": 1.5}
    ax.scatter([b, a], [a, b], **look)
    pair = " and ".join(f"{layer}:{head}" for layer, head in sorted((heads[a], heads[b])))
    return f"\nmost alike: {pair} ({others[a, b]:z.2f})"


def _chance(rows: pd.DataFrame, measure: str) -> str:
    """What a title says of the value that pairs have by chance."""
    column = f"{measure}_chance"
    if column not in rows or rows[column].isna().all():
        return ""
    return f" (chance: {rows[column].mean():.2f})"


def _heads_in_order(rows: pd.DataFrame) -> list[Head]:
    own = rows[rows["order_a"] == rows["order_b"]].sort_values("order_a")
    return list(zip(own["layer_a"], own["head_a"], strict=True))


@styled
def token_similarity_matrix(table: pd.DataFrame, about: str) -> Figure:
    """Tokens by tokens, one panel for each kind."""
    title = f"Similarity of tokens, mean over layers, at {counted_positions(table)}"
    fig, axes, kinds = panels(title, about, table, 1, 4.0)
    scale = _cosines(table)
    for ax, kind in zip(axes[0], kinds, strict=True):
        _show_positions(ax, table[table["kind"] == kind], scale.look)
        ax.set_title(NAMES[kind])
    shared_bar(fig, axes[0], COSINE_OF_TOKENS, scale.extend)
    label_outside(axes, "Token position")
    return fig


@styled
def token_kv_similarity_matrices(table: pd.DataFrame, about: str) -> Figure:
    """Tokens by tokens: a row for each kind, a column for each chosen layer."""
    title = f"Similarity of tokens, layer by layer, at {counted_positions(table)}"
    layers, kinds = table["layer"].unique(), kinds_of(table)
    fig, axes = grid_of_panels(title, about, (len(kinds), len(layers)), 2.7)
    for row, kind in zip(axes, kinds, strict=True):
        rows = table[table["kind"] == kind]
        scale = _cosines(rows)
        for ax, layer in zip(row, layers, strict=True):
            _show_positions(ax, rows[rows["layer"] == layer], scale.look)
            ax.set_title(f"{NAMES[kind]}, layer {layer}")
        shared_bar(fig, row, COSINE_OF_TOKENS, scale.extend)
    label_outside(axes, "Token position")
    return fig


@styled
def token_embedding_patterns(table: pd.DataFrame, about: str) -> Figure:
    """Dimensions by token positions, keys above and values below, each on its own scale."""
    title = f"Magnitude of each dimension at {counted_positions(table)}"
    fig, axes = figure(title, about, (14, 8), 2, 1, gap=(0, 0.75), right=1.1)
    for ax, kind in zip(axes, KINDS, strict=True):
        rows = table[table["kind"] == kind]
        grid = rows.pivot(index="dim", columns="position", values="mean_abs")
        left, right = edges(grid.columns)
        extent = (left, right, -0.5, len(grid) - 0.5)
        show(ax, grid.to_numpy(), _magnitudes(grid.to_numpy()), extent=extent, origin="lower")
        round_numbers(ax, most=16)
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
    """Dimensions by dimensions, one panel for each kind; what a dimension has with itself is left
    out, for the others to be told apart."""
    title = f"Correlation of embedding dimensions over {counted_positions(table)}"
    fig, axes, kinds = panels(title, about, table, 1, 4.0)
    others = table[table["dim_a"] != table["dim_b"]]
    scale = from_zero_to_most(others["mean_abs_correlation"])
    for ax, kind in zip(axes[0], kinds, strict=True):
        grid = square(table[table["kind"] == kind], "dim", "mean_abs_correlation")
        show(ax, without_diagonal(grid), scale.look)
        highest = others.loc[others["kind"] == kind, "mean_abs_correlation"].max()
        ax.set_title(NAMES[kind] + (f" (highest: {highest:z.2f})" if pd.notna(highest) else ""))
        round_numbers(ax, most=16)
    label = "|Correlation|, mean over layers and heads"
    shared_bar(fig, axes[0], label + ITSELF, scale.extend)
    label_outside(axes, "Dimension")
    return fig


def _cosines(rows: pd.DataFrame) -> Scale:
    return around_zero(rows.loc[rows["position_a"] != rows["position_b"], "cosine"])


def _show_positions(ax: Axes, rows: pd.DataFrame, look: Look) -> None:
    """Tokens by tokens, where they stand in the text."""
    positions = np.unique(rows["position_a"])
    places = {
        f"position_{end}": np.searchsorted(positions, rows[f"position_{end}"]) for end in "ab"
    }
    left, right = edges(positions)
    grid = square(rows.assign(**places), "position", "cosine")
    show(ax, without_diagonal(grid), look, extent=(left, right, right, left))
    round_numbers(ax, most=8)
