"""Pictures of smaller embedding dimensions: which go together, and what keeping fewer costs."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from visualization.costs import bits_axis, cheap_line, perplexity_axis
from visualization.naming import Name, Points, error_bars, left_out, name_points
from visualization.style import (
    KINDS,
    NAMES,
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
    """Stored bits per value against measured KL and change of perplexity, a line for each way, each
    point with the share of the dimensions that it keeps."""
    title = "Fewer embedding dimensions: stored and paid"
    fig, (left, right) = figure(title, about, (15, 7.5), 1, 2, head=1.1)
    floor = log_from(left, table["kl_mean_nats"], axis="y")
    table = table.assign(kl_mean_nats=table["kl_mean_nats"].clip(lower=floor))
    perplexity_axis(right, table)
    for ax in (left, right):
        bits_axis(ax, table["bits_per_value"])
    cheap_line(left)
    panels = {"kl_mean_nats": left, "delta_perplexity_percent": right}
    names: dict[str, list[Name]] = {column: [] for column in panels}
    lines: dict[str, list[Points]] = {column: [] for column in panels}
    for (method, unrotated), rows in table.groupby(["method", "unrotated_keys"], sort=False):
        name, colour, marker = WAYS[method]
        rows = rows.sort_values("bits_per_value")
        look: Look = {"color": colour, "marker": marker, "ms": 6, "ls": "--" if unrotated else "-"}
        look["label"] = f"{name}, keys unrotated" if unrotated else name
        for column, ax in panels.items():
            x, y, spread = rows["bits_per_value"], rows[column], rows[f"{column}_se"].fillna(0)
            ax.errorbar(x, y, yerr=spread, capsize=3, **look)
            points = list(zip(x, y, strict=True))
            lines[column] += [points, *error_bars(x, y, spread)]
            kept = zip(rows["keep"], points, strict=True)
            names[column] += [Name(_kept(keep), *point, colour) for keep, point in kept]
    n = sum(name_points(ax, names[c], lines=lines[c]) for c, ax in panels.items())
    left.set_ylabel("Measured KL (nats per token; bars: standard error over texts)")
    _legend(fig, left, "At the points: share of the dimensions that is kept. " + left_out(n))
    return fig


def _kept(keep: float) -> str:
    """The share of the dimensions, or that all are kept but for those that go together."""
    return f"{keep:.0%}" if keep < 1 else "alike"


def _legend(fig: Figure, ax: Axes, title: str) -> None:
    handles, labels = ax.get_legend_handles_labels()
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - 0.55 / fig.get_figheight())}
    fig.legend(handles, labels, ncols=4, handlelength=3.5, title=title, **place)


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
        alone = (rows["group_size"] <= 1).mean()
        title = f"{NAMES[kind]}: {1 - alone:.2%} go together, {stored:.1%} would be stored"
        ax.set_title(title, loc="left")
        ax.set_xlabel("Dimension")
    axes[0].set_ylabel("Layer")
    bar = beside(fig, axes[-1], image)
    bar.set_label("Dimensions in its group\n(mean over heads; white: alone)", fontsize=8)
    return fig


def _group_map(ax: Axes, rows: pd.DataFrame, top: float) -> AxesImage:
    """White where a dimension is alone in every head, which no other number is drawn alike."""
    grid = rows.pivot_table(index="layer", columns="dim", values="group_size")
    shades = ListedColormap(colormaps["Purples"](np.linspace(0.3, 1, 256)), under="white")
    look: Look = {"cmap": shades, "vmin": 1 + 1e-6, "vmax": top, "interpolation": "nearest"}
    image = ax.imshow(grid.to_numpy(), aspect="auto", **look)
    step = max(1, len(grid) // 30)
    ax.set_yticks(np.arange(0, len(grid), step), grid.index[::step])
    whole_numbers(ax.xaxis)
    ax.grid(False)
    if grid.to_numpy().max() <= 1:
        least = rows["similarity"].iloc[0]
        note = f"No two dimensions of a head\nreach |cosine| {least:g}: none is merged."
        ax.text(0.5, 0.5, note, ha="center", va="center", transform=ax.transAxes)
    return image
