"""Pictures of how many dimensions keys and values really use."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visualization.style import (
    ACCENT,
    COLOURS,
    MISSING,
    Look,
    Spaces,
    beside,
    figure,
    percent,
    styled,
    whole_numbers,
)

NAMES = {
    "key": "Keys as stored",
    "unrotated_key": "Keys before rotary embedding",
    "value": "Values",
}
KIND_COLOURS = {**COLOURS, "unrotated_key": "#17a589"}
LEVELS = (0.90, 0.95, 0.99)  # of the energy
DEPTH = "viridis"  # darker is nearer to the text
SHARES = "viridis"
TOO_FEW = "fewer tokens than dimensions: no rank is above the tokens"
MOST_DOTS = 40  # of a line
TICK_STEPS = (1, 2, 5, 10, 20, 50, 100)


@styled
def energy_spectrum(table: pd.DataFrame, about: str) -> Figure:
    """Cumulative energy over components, a line for each layer, mean over its heads."""
    kinds = _kinds(table)
    spaces: Spaces = {"gap": (0.3, 0), "right": 1.1, "sharey": True, "squeeze": False}
    size = (max(8, 2.05 + 3.6 * len(kinds)), 5.2)
    title = f"Cumulative energy of components: {_rests_on(table)}"
    fig, axes = figure(title, _noted(about, table), size, 1, len(kinds), **spaces)
    layers = np.unique(table["layer"])
    depth = ScalarMappable(Normalize(layers[0], max(layers[-1], layers[0] + 1)), DEPTH)
    for ax, kind in zip(axes[0], kinds, strict=True):
        rows = table[table["kind"] == kind]
        means = rows.groupby(["layer", "component"])["cumulative"].mean()
        for layer, line in means.groupby(level="layer"):
            component = line.index.get_level_values("component")
            marker = "o" if len(line) == 1 else ""
            ax.plot(component, line, color=depth.to_rgba(layer), lw=1.1, marker=marker)
        _levels(ax)
        ax.set_title(f"{NAMES[kind]} ({_dims(rows)})")
        ax.set_xlabel("Component")
        ax.set_xlim(1 - 0.02 * rows["dim"].max(), 1.02 * rows["dim"].max() + 0.1)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes[0, 0].set_ylabel("Energy held by the first components\n(mean over heads)")
    axes[0, 0].set_ylim(0, 1.03)
    percent(axes[0, 0].yaxis)
    bar = beside(fig, axes[0, -1], depth)
    bar.set_label("Layer")
    whole_numbers(bar.ax.yaxis)
    return fig


def _levels(ax: Axes) -> None:
    for level in LEVELS:
        ax.axhline(level, color="#888888", ls=":", lw=1)
    ax.text(
        0.98, LEVELS[0] - 0.015, "90, 95, 99%", transform=ax.get_yaxis_transform(),
        ha="right", va="top", fontsize=8, color="#555555",
    )  # fmt: skip


@styled
def ranks(table: pd.DataFrame, about: str) -> Figure:
    """Over layers: effective rank with its spread over heads, and the rank at three shares of the
    energy, all as shares of the dimension."""
    kinds = _kinds(table)
    title = f"Ranks of keys and values: {_rests_on(table)}"
    spaces: Spaces = {"gap": (0.3, 0), "sharey": True, "squeeze": False, "bottom": 1.25}
    size = (4.4 + 3.2 * len(kinds), 5.6)
    fig, axes = figure(title, _noted(about, table), size, 1, 1 + len(kinds), **spaces)
    first, *others = axes[0]
    for kind in kinds:
        _spread(first, table[table["kind"] == kind], kind)
    first.set_title("Effective rank (mean, range of heads)")
    first.set_ylabel("Share of the dimension")
    for ax, kind in zip(others, kinds, strict=True):
        _at_levels(ax, table[table["kind"] == kind], kind)
    first.set_ylim(0, 1.03)
    percent(first.yaxis)
    for ax in axes[0]:
        ax.set_xlabel("Layer")
        ax.set_xlim(table["layer"].min() - 0.5, table["layer"].max() + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    named = _entries(axes[0])
    look: Look = {"ncols": 3, "bbox_to_anchor": (0.5, 0)}
    fig.legend(named.values(), named.keys(), loc="lower center", **look)
    return fig


def _spread(ax: Axes, rows: pd.DataFrame, kind: str) -> None:
    by_layer = rows.groupby("layer")["share_of_dim"].agg(["mean", "min", "max"])
    look: Look = {"color": KIND_COLOURS[kind], "lw": 0, "alpha": 0.18}
    ax.fill_between(by_layer.index, by_layer["min"], by_layer["max"], **look)
    look = {"color": KIND_COLOURS[kind], "label": NAMES[kind], **_marked(by_layer)}
    ax.plot(by_layer.index, by_layer["mean"], **look)


def _at_levels(ax: Axes, rows: pd.DataFrame, kind: str) -> None:
    for level, style in zip(LEVELS, (":", "--", "-"), strict=True):
        share = rows[f"rank_{100 * level:.0f}"] / rows["dim"]
        by_layer = share.groupby(rows["layer"]).mean()
        look: Look = {"ls": style, "color": KIND_COLOURS[kind], **_marked(by_layer)}
        ax.plot(by_layer.index, by_layer, **look)
        ax.plot([], [], ls=style, color="#555555", label=f"Rank at {level:.0%} of the energy")
    limit = (rows["tokens"] / rows["dim"]).groupby(rows["layer"]).min()
    if (limit < 1).any():
        look = {"color": ACCENT, "lw": 1, "label": "Tokens, if fewer than dimensions"}
        ax.plot(limit.index, limit.clip(upper=1), **look)
    ax.set_title(f"{NAMES[kind]} ({_dims(rows)})")


def _marked(by_layer: pd.Series | pd.DataFrame) -> Look:
    """A dot for each layer, where there is room."""
    return {"marker": "o", "ms": 3} if len(by_layer) <= MOST_DOTS else {}


def _entries(axes: Sequence[Axes] | np.ndarray) -> dict[str, Artist]:
    """Of all panels' legends, each once, by their labels."""
    named: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    return named


@styled
def effective_rank_by_head(table: pd.DataFrame, about: str) -> Figure:
    """Layers by KV heads, a panel for each kind, on one colour scale."""
    kinds = _kinds(table)
    n_layers, n_heads = table["layer"].nunique(), table["head"].nunique()
    panel = (min(6, max(2.6, 0.3 * n_heads)), min(14, max(3, 0.17 * n_layers)))
    fig, axes = _panels(
        f"Effective rank by layer and KV head: {_rests_on(table)}",
        _noted(about, table),
        kinds,
        panel,
    )
    top = float(table["share_of_dim"].max())
    for ax, kind in zip(axes, kinds, strict=True):
        rows = table[table["kind"] == kind]
        grid = rows.pivot(index="layer", columns="head", values="share_of_dim")
        _show(ax, grid, top)
        ax.set_title(f"{NAMES[kind]}\n({_dims(rows)})")
        ax.set_xlabel("KV head")
    axes[0].set_ylabel("Layer")
    bar = beside(fig, axes[-1], axes[-1].images[0])
    n_cells = len(kinds) * n_layers * n_heads
    grey = "\n(grey: no such head)" if len(table) < n_cells else ""
    bar.set_label(f"Effective rank, share of the dimension{grey}")
    percent(bar.ax.yaxis)
    return fig


@styled
def subspace_overlap(table: pd.DataFrame, about: str) -> Figure:
    """Layers by layers, a panel for each kind, on one colour scale from 0."""
    kinds = _kinds(table)
    n_layers = table["layer_a"].nunique()
    side = min(5, max(3, 0.1 * n_layers))
    title = f"Overlap of heads' leading directions: {_rests_on(table)}"
    fig, axes = _panels(title, about, kinds, (side, side))
    top = float(table["overlap"].fillna(0).max())
    for ax, kind in zip(axes, kinds, strict=True):
        rows = table[table["kind"] == kind]
        grid = rows.pivot(index="layer_a", columns="layer_b", values="overlap")
        _show(ax, grid, top)
        ax.set_title(f"{NAMES[kind]}\n({_chance(rows)})")
        ax.set_xlabel("Layer")
    axes[0].set_ylabel("Layer")
    grey = "\n(grey: no two heads to compare)" * bool(table["overlap"].isna().any())
    bar = beside(fig, axes[-1], axes[-1].images[0])
    bar.set_label(f"Mean squared cosine of principal angles{grey}")
    return fig


def _chance(rows: pd.DataFrame) -> str:
    compared = rows[rows["overlap"].notna()]
    if compared.empty:
        return "nothing to compare"
    directions = "–".join(map(str, sorted({compared["rank"].min(), compared["rank"].max()})))
    chance = "–".join(
        f"{c:.2f}" for c in sorted({compared["chance"].min(), compared["chance"].max()})
    )
    plural = "" if directions == "1" else "s"
    return f"{directions} direction{plural}; chance: {chance}"


def _panels(
    title: str, about: str, kinds: list[str], panel: tuple[float, float]
) -> tuple[Figure, np.ndarray]:
    """A row of panels of this size in inches, with room for a colour bar."""
    gap, right = 0.55, 1.25
    width = 0.95 + len(kinds) * panel[0] + (len(kinds) - 1) * gap + right
    extra = max(0.0, 8.0 - width)  # a title takes 8 inches
    spaces: Spaces = {"gap": (gap, 0), "head": 0.65, "squeeze": False}
    spaces |= {"right": right + extra / 2, "left": 0.95 + extra / 2}
    size = (width + extra, panel[1] + 1.95)
    fig, axes = figure(title, about, size, 1, len(kinds), **spaces)
    return fig, axes[0]


def _show(ax: Axes, grid: pd.DataFrame, top: float) -> None:
    """A matrix, grey where there is nothing; rows and columns are named by their numbers."""
    ax.imshow(grid.to_numpy(), aspect="auto", cmap=SHARES, vmin=0, vmax=max(top, 0.01))
    ax.set_facecolor(MISSING)
    ax.grid(False)
    for names, axis in ((grid.columns, ax.xaxis), (grid.index, ax.yaxis)):
        step = next((s for s in TICK_STEPS if len(names) <= 16 * s), len(names))
        axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])


def _kinds(table: pd.DataFrame) -> list[str]:
    return [kind for kind in NAMES if (table["kind"] == kind).any()]


def _dims(rows: pd.DataFrame) -> str:
    least, most = rows["dim"].min(), rows["dim"].max()
    return f"{most} dims" if least == most else f"{least} to {most} dims"


def _rests_on(table: pd.DataFrame) -> str:
    """What a title says of the number of texts and tokens."""
    least, most = table["tokens"].min(), table["tokens"].max()
    tokens = _counted(most, "token") if least == most else f"{least} to {most} tokens"
    return f"{_counted(table['texts'].iloc[0], 'text')}, {tokens}"


def _noted(about: str, table: pd.DataFrame) -> str:
    """With a warning where ranks tell of the number of tokens."""
    return f"{about} · {TOO_FEW}" if (table["tokens"] < table["dim"]).any() else about


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
