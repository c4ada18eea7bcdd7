"""Pictures of a Tucker decomposition and of what it costs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization.bands import bars_entry, errors, highest, n_texts, note
from visualization.style import (
    KINDS,
    NAMES,
    Look,
    Spaces,
    beside,
    bin_width,
    figure,
    from_zero,
    kind_bars,
    per_bin,
    percent,
    plain_log,
    styled,
    whole_numbers,
)

SIGNED_MAP = "RdBu_r"
MOST_ROWS = 256
PARTS = {"core": "core, all heads", "tokens": "token factor", "dims": "embedding factor"}
LINES = ("#9ecae1", "#4292c6", "#2171b5", "#084594", "#041f4a", "#000000")


@styled
def tucker_components(table: pd.DataFrame, about: str) -> Figure:
    """Core, token factor and embedding factor of one layer: keys above, values below."""
    title = f"Tucker components of layer {table['layer'].iloc[0]}"
    spaces: Spaces = {"gap": (1.8, 1.0), "right": 1.2}
    fig, axes = figure(title, about, (16, 8.5), 2, 3, **spaces)
    for row, kind in zip(axes, KINDS, strict=True):
        for ax, (part, words) in zip(row, PARTS.items(), strict=True):
            ax.set_title(f"{NAMES[kind]}: {words}")
            _signed_map(fig, ax, table[(table["kind"] == kind) & (table["part"] == part)], part)
    return fig


def _signed_map(fig: Figure, ax: Axes, rows: pd.DataFrame, part: str) -> None:
    """One matrix on a scale around 0 that its largest 2 % exceed; heads stand side by side."""
    if rows.empty:
        ax.text(0.5, 0.5, "nothing decomposed", ha="center", transform=ax.transAxes)
        return
    rows = rows.fillna({"head": 0})
    n_columns = int(rows["column"].max()) + 1
    heads = int(rows["head"].max()) + 1
    grid = np.zeros((int(rows["row"].max()) + 1, heads * n_columns))
    grid[rows["row"], rows["head"].astype(int) * n_columns + rows["column"]] = rows["value"]
    width = bin_width(len(grid), MOST_ROWS)
    if width > 1:
        grid = _extremes(grid, width)
    top = max(float(np.quantile(np.abs(grid), 0.98)), 1e-12)
    extent = (-0.5, grid.shape[1] - 0.5, len(grid) * width - 0.5, -0.5)
    look: Look = {"cmap": SIGNED_MAP, "vmin": -top, "vmax": top, "interpolation": "nearest"}
    image = ax.imshow(grid, aspect="auto", extent=extent, **look)
    for head in range(1, heads):
        ax.axvline(head * n_columns - 0.5, color="black", lw=1)
    ax.grid(False)
    names = {"core": "Token component", "tokens": "Decomposed token", "dims": "Dimension"}
    across = "Embedding component" + (f", {heads} heads side by side" if part == "core" else "")
    ax.set_xlabel("Token component" if part == "tokens" else across)
    ax.set_ylabel(names[part] + per_bin(width, "largest"))
    whole_numbers(ax.xaxis)
    beside(fig, ax, image)


def _extremes(grid: np.ndarray, width: int) -> np.ndarray:
    """Rows in groups of `width`, each entry the one of largest magnitude."""
    padded = np.pad(grid, ((0, -len(grid) % width), (0, 0)))
    groups = padded.reshape(-1, width, grid.shape[1])
    largest = np.abs(groups).argmax(1)
    return np.take_along_axis(groups, largest[:, None], 1)[:, 0]


@styled
def layer_sensitivity(table: pd.DataFrame, about: str) -> Figure:
    """Relative error of each layer above; below, the KL measured when only this part of this
    layer is compressed."""
    title = "Tucker: error and measured cost of each layer"
    measured = table["kl_mean_nats"].notna().any()
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
    stored, a line for each embedding rank; the numbers at its points are token ranks."""
    title = "Tucker: error and measured cost of other ranks"
    fig, (left, right) = figure(title, about, (13, 6), 1, 2)
    for i, (rank, rows) in enumerate(table.groupby("embedding_rank")):
        look: Look = {"color": LINES[i % len(LINES)], "marker": "o", "ms": 4}
        left.plot(rows["token_rank"], rows["key_error"], "-", label=f"{rank}: keys", **look)
        left.plot(rows["token_rank"], rows["value_error"], "--", label=f"{rank}: values", **look)
        right.plot(rows["bits_per_value"], rows["kl_mean_nats"], "-", label=str(rank), **look)
        if n_texts(table) > 1:
            for ax, x, y in (
                (left, "token_rank", "key_error"),
                (left, "token_rank", "value_error"),
                (right, "bits_per_value", "kl_mean_nats"),
            ):
                bars: Look = {"color": look["color"], "ls": "none", "capsize": 2}
                ax.errorbar(rows[x], rows[y], errors(rows, y), **bars)
        for row in rows.itertuples():
            right.annotate(
                str(row.token_rank),
                (row.bits_per_value, row.kl_mean_nats),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
            )
    from_zero(left, 1.25 * max(highest(table, "key_error"), highest(table, "value_error")))
    percent(left.yaxis)
    left.set_ylabel("Relative error" + note(table, "bars: "))
    left.legend(title="Embedding rank", ncols=3, fontsize=8, loc="upper right")
    if (table["kl_mean_nats"] > 0).all():
        right.set_yscale("log")
        plain_log(right.yaxis, steps=(1.0, 2.0, 5.0))
    right.set_ylabel("KL (nats per token)" + note(table, "bars: "))
    right.set_xlabel("Stored bits per value (numbers: token rank)")
    right.legend(title="Embedding rank", fontsize=8)
    left.set_xlabel("Token rank")
    left.set_xticks(sorted(table["token_rank"].unique()))
    return fig
