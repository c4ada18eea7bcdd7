"""Pictures of smaller embedding dimensions: which go together, and what keeping fewer costs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

import config
from visualization.style import (
    KINDS,
    NAMES,
    SAFE,
    Look,
    Spaces,
    beside,
    figure,
    log_from,
    styled,
    whole_numbers,
)

WAYS = {  # method -> name in the legend, colour, marker
    "merged_dims": ("groups merged", "#c0392b", "s"),
    "dropped_dims": ("sparse ones dropped", "#7b7d7d", "X"),
    "embedding_factor": ("one basis for all heads", "#b7950b", "D"),
    "pca": ("PCA, basis stored with the text", "#2f6db3", "o"),
    "calibrated_pca": ("PCA, basis of other texts", "#17a589", "^"),
}


@styled
def dimension_compression(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against measured KL and change of perplexity, a line for each way."""
    title = "Fewer embedding dimensions: stored and paid"
    fig, (left, right) = figure(title, about, (14, 6.8), 1, 2, head=1.0)
    for (method, unrotated), rows in table.groupby(["method", "unrotated_keys"], sort=False):
        name, colour, marker = WAYS[method]
        rows = rows.sort_values("bits_per_value")
        look: Look = {"color": colour, "marker": marker, "ms": 6, "ls": "--" if unrotated else "-"}
        look["label"] = f"{name}, keys unrotated" if unrotated else name
        for ax, column in ((left, "kl_mean_nats"), (right, "delta_perplexity_percent")):
            spread = rows[f"{column}_se"].fillna(0)
            ax.errorbar(rows["bits_per_value"], rows[column], yerr=spread, capsize=3, **look)
    log_from(left, table["kl_mean_nats"], axis="y")
    left.axhline(config.ACCEPTABLE_KL, color=SAFE, ls=":", lw=1.3)
    left.set_ylabel(f"KL (nats per token; dotted: {config.ACCEPTABLE_KL:g})")
    right.axhline(0, color="#555555", ls=":", lw=1.3)
    full = table["perplexity_full"].iloc[0]
    right.set_ylabel(f"Change of perplexity (%; untouched: {full:.2f})")
    for ax in (left, right):
        ax.set_xlabel("Stored bits per value (16: uncompressed)")
        ax.set_xlim(0, None)
    handles, labels = left.get_legend_handles_labels()
    fig.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.6 / 6.8),
        ncols=3,
        handlelength=3.5,
    )
    return fig


@styled
def embedding_dimension_groups(table: pd.DataFrame, about: str) -> Figure:
    """In how large a group each dimension of each layer is merged (mean over KV heads), at the
    threshold: white stays alone."""
    n_layers = table["layer"].nunique()
    size = (15, min(18, max(4.2, 2.0 + 0.2 * n_layers)))
    least = table["similarity"].iloc[0]
    title = f"Dimensions of a head that go together (|cosine over tokens| from {least:g})"
    spaces: Spaces = {"gap": (0.35, 0), "right": 1.2, "head": 0.45, "sharey": True}
    fig, axes = figure(title, about, size, 1, 2, **spaces)
    top = max(2.0, table["group_size"].max())
    for ax, kind in zip(axes, KINDS, strict=True):
        rows = table[table["kind"] == kind]
        image = _group_map(ax, rows, top)
        stored = rows["group_share"].sum() / len(rows)
        ax.set_title(f"{NAMES[kind]}: {stored:.1%} of the dimensions would be stored", loc="left")
        ax.set_xlabel("Dimension")
    axes[0].set_ylabel("Layer")
    bar = beside(fig, axes[-1], image)
    bar.set_label("Dimensions in its group, mean over KV heads")
    return fig


def _group_map(ax: Axes, rows: pd.DataFrame, top: float) -> AxesImage:
    grid = rows.pivot_table(index="layer", columns="dim", values="group_size")
    look: Look = {"cmap": "Purples", "vmin": 1, "vmax": top, "interpolation": "nearest"}
    image = ax.imshow(grid.to_numpy(), aspect="auto", **look)
    step = max(1, len(grid) // 30)
    ax.set_yticks(np.arange(0, len(grid), step), grid.index[::step])
    whole_numbers(ax.xaxis)
    ax.grid(False)
    return image
