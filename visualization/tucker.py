"""Pictures of a Tucker decomposition and of what it costs."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visualization.bands import bars_entry, errors, highest, n_texts, note
from visualization.costs import bits_axis
from visualization.naming import Name, Points, error_bars, left_out, name_points
from visualization.style import (
    ACCENT,
    COLOURS,
    KINDS,
    NAMES,
    Look,
    Spaces,
    beside,
    bin_width,
    figure,
    from_zero,
    kind_bars,
    log_from,
    per_bin,
    percent,
    plain_log,
    styled,
)

SIGNED_MAP = "RdBu_r"
MOST_ROWS = 256
BEYOND = 0.02  # of the entries are beyond the ends of a colour scale
PARTS = {"core": "core, all heads", "tokens": "token factor", "dims": "embedding factor"}
MODES = {"kept_by_tokens": ("tokens", "-", 0), "kept_by_dims": ("dimensions", "--", 1)}
RANKS_MAP = "viridis_r"  # darker is more


@styled
def tucker_components(table: pd.DataFrame, about: str) -> Figure:
    """Core, token factor and embedding factor of one layer, and the energy that ranks keep: keys
    above, values below."""
    title = f"Tucker components of layer {table['layer'].iloc[0]}, and the energy that they keep"
    spaces: Spaces = {"gap": (1.75, 1.0), "right": 0.3}
    fig, axes = figure(title, about, (21, 8.5), 2, 4, **spaces)
    for row, kind in zip(axes, KINDS, strict=True):
        rows = table[table["kind"] == kind]
        for ax, (part, words) in zip(row, PARTS.items(), strict=False):
            ax.set_title(f"{NAMES[kind]}: {words}")
            _signed_map(fig, ax, rows[rows["part"] == part], part)
        row[-1].set_title(f"{NAMES[kind]}: energy kept by rank")
        _kept(row[-1], rows, kind)
    return fig


def _signed_map(fig: Figure, ax: Axes, rows: pd.DataFrame, part: str) -> None:
    """One matrix on a scale around 0 that its largest 2 % exceed; heads stand side by side."""
    if rows.empty:
        _nothing(ax)
        return
    rows = rows.fillna({"head": 0})
    n_columns = int(rows["column"].max()) + 1
    heads = int(rows["head"].max()) + 1
    grid = np.zeros((int(rows["row"].max()) + 1, heads * n_columns))
    grid[rows["row"], rows["head"].astype(int) * n_columns + rows["column"]] = rows["value"]
    width = bin_width(len(grid), MOST_ROWS)
    if width > 1:
        grid = _extremes(grid, width)
    top = max(float(np.quantile(np.abs(grid), 1 - BEYOND)), 1e-12)
    extent = (-0.5, grid.shape[1] - 0.5, len(grid) * width - 0.5, -0.5)
    look: Look = {"cmap": SIGNED_MAP, "vmin": -top, "vmax": top, "interpolation": "nearest"}
    image = ax.imshow(grid, aspect="auto", extent=extent, **look)
    for head in range(1, heads):
        ax.axvline(head * n_columns - 0.5, color="black", lw=min(1.0, 16 / heads))
    ax.grid(False)
    names = {"core": "Token component", "tokens": "Decomposed token", "dims": "Dimension"}
    across = "Embedding component" + (f", {heads} heads side by side" if part == "core" else "")
    ax.set_xlabel("Token component" if part == "tokens" else across)
    ax.set_ylabel(names[part] + per_bin(width, "largest"))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    bar = beside(fig, ax, image, extend="both" if np.abs(grid).max() > top else "neither")
    bar.set_label(f"Entry (darkest: {top:.2g} or more)", fontsize=8)


def _nothing(ax: Axes) -> None:
    ax.text(0.5, 0.5, "nothing decomposed", ha="center", transform=ax.transAxes)


def _kept(ax: Axes, rows: pd.DataFrame, kind: str) -> None:
    """Over ranks, the energy that one mode's components keep with the other mode whole; the ranks
    of the run, and what both together keep."""
    both = rows[rows["part"] == "kept"]
    if both.empty:
        _nothing(ax)
        return
    ranks, share = both[["row", "column"]].iloc[0], both["value"].iloc[0]
    for part, (mode, line, place) in MODES.items():
        own = rows[rows["part"] == part]
        rank = int(ranks.iloc[place])
        at = float(own.loc[own["row"] == rank, "value"].iloc[0])
        label = f"{rank} of {len(own)} {mode}: {at:.1%}"
        marker = "o" if len(own) == 1 else ""
        ax.plot(own["row"], own["value"], line, marker=marker, color=COLOURS[kind], label=label)
        ax.plot([rank], [at], "o", color=COLOURS[kind], ms=6)
    ax.axhline(share, color=ACCENT, ls=":", lw=1.3, label=f"both, as stored: {share:.1%}")
    ax.set_xscale("log")
    plain_log(ax.xaxis, steps=(1.0, 2.0, 5.0))
    ax.set_ylim(0, 1.03)
    percent(ax.yaxis)
    ax.set_xlabel("Components of one mode, the other whole")
    ax.set_ylabel("Share of the squared norm")
    ax.legend(loc="lower right", title="Kept by")


def _extremes(grid: np.ndarray, width: int) -> np.ndarray:
    """Rows in groups of `width`, each entry the one of largest magnitude."""
    padded = np.pad(grid, ((0, -len(grid) % width), (0, 0)))
    groups = padded.reshape(-1, width, grid.shape[1])
    largest = np.abs(groups).argmax(1)
    return np.take_along_axis(groups, largest[:, None], 1)[:, 0]


@styled
def layer_sensitivity(table: pd.DataFrame, about: str) -> Figure:
    """Relative error of each layer above; below, where it was measured, the KL when only this part
    of this layer is compressed."""
    measured = table["kl_mean_nats"].notna().any()
    title = "Tucker: error and measured cost of each layer"
    if not measured:
        title = "Tucker: error of each layer (its cost was not measured)"
    fig, axes = figure(title, about, (12, 8.5 if measured else 5), 1 + measured, 1, squeeze=False)
    above = axes[0, 0]
    several = n_texts(table) > 1
    kind_bars(above, table, "layer", "relative_error", "relative_error_se" if several else None)
    from_zero(above, highest(table, "relative_error"))
    percent(above.yaxis)
    above.set_ylabel("Relative error (Frobenius)")
    above.set_title("Error of what is restored", loc="left")
    bars_entry(above, table)
    above.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2 + several)
    if measured:
        below = axes[1, 0]
        kind_bars(below, table, "layer", "kl_mean_nats", "kl_mean_nats_se" if several else None)
        from_zero(below, highest(table, "kl_mean_nats"))
        below.set_ylabel("KL (nats per token)")
        below.set_title("Measured: only this layer's keys, or only its values", loc="left")
    for ax in axes.flat:
        ax.set_xlabel("Layer")
    return fig


@styled
def rank_sensitivity(table: pd.DataFrame, about: str) -> Figure:
    """Relative error over token ranks (keys solid, values dashed), and measured KL over what is
    stored, a line for each embedding rank; the numbers at its points are token ranks, and a ring is
    around the run's own setting."""
    title = "Tucker: error and measured cost of other ranks"
    fig, (left, right) = figure(title, about, (15, 7), 1, 2, head=0.9)
    bits_axis(right, table["bits_per_value"])
    floor = log_from(right, table["kl_mean_nats"], axis="y")
    plain_log(right.yaxis, steps=(1.0, 2.0, 5.0))
    table = table.assign(kl_mean_nats=table["kl_mean_nats"].clip(lower=floor))
    names: list[Name] = []
    lines: list[Points] = []
    by_rank = list(table[table["embedding_rank"].notna()].groupby("embedding_rank"))
    shades = colormaps[RANKS_MAP](np.linspace(0.15, 1, len(by_rank)))
    for (rank, rows), shade in zip(by_rank, shades, strict=True):
        rows = rows.sort_values("token_rank")
        look: Look = {"color": to_hex(shade), "marker": "o", "ms": 4}
        for ax, x, y, line, label in (
            (left, "token_rank", "key_error", "-", f"{rank:.0f}: keys"),
            (left, "token_rank", "value_error", "--", f"{rank:.0f}: values"),
            (right, "bits_per_value", "kl_mean_nats", "-", f"{rank:.0f}"),
        ):
            ax.plot(rows[x], rows[y], line, label=label, **look)
            if n_texts(table) > 1:
                bars: Look = {"color": look["color"], "ls": "none", "capsize": 2}
                ax.errorbar(rows[x], rows[y], errors(rows, y), **bars)
        points = list(zip(rows["bits_per_value"], rows["kl_mean_nats"], strict=True))
        ranks = zip(rows["token_rank"], points, strict=True)
        names += [Name(f"{rank:.0f}", *point, look["color"]) for rank, point in ranks]
        lines += [points, *error_bars(*zip(*points, strict=True), errors(rows, "kl_mean_nats"))]
    from_zero(left, max(highest(table, "key_error"), highest(table, "value_error")))
    percent(left.yaxis)
    left.set_ylabel("Relative error" + note(table, "bars: "))
    left.set_xlabel("Token rank")
    left.set_xticks(sorted(table["token_rank"].dropna().unique()))
    _ring(left, right, table[table["own"]])
    look = {"loc": "lower right", "bbox_to_anchor": (1, 1), "fontsize": 8}
    left.legend(title="Embedding rank", ncols=4, **look)
    missing = left_out(name_points(right, names, lines=lines))
    right.set_ylabel("KL (nats per token)" + note(table, "bars: "))
    right.set_title(f"Numbers: token rank\n{missing}".rstrip(), loc="left", fontsize=9)
    right.legend(title="Embedding rank", fontsize=8)
    return fig


def _ring(left: Axes, right: Axes, own: pd.DataFrame) -> None:
    """Around the points of the run's own setting; where its ranks are chosen layer by layer, only
    what they store has a place."""
    ring: Look = {"s": 130, "facecolors": "none", "edgecolors": ACCENT, "lw": 1.6, "zorder": 3}
    placed = own.dropna(subset="token_rank")
    for error in ("key_error", "value_error"):
        left.scatter(placed["token_rank"], placed[error], **ring)
    ranks = "" if len(placed) else " (ranks chosen by layer)"
    right.scatter(own["bits_per_value"], own["kl_mean_nats"], label=f"this run{ranks}", **ring)
