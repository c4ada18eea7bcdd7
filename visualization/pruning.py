"""Pictures of what pruning costs, and of the heuristics on trial."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from visualization.naming import Name, name_points
from visualization.style import (
    ACCENT,
    COLOURS,
    KINDS,
    NAMES,
    SAFE,
    Look,
    Spaces,
    beside,
    figure,
    from_zero,
    log_from,
    percent,
    styled,
    whole_numbers,
)

CONTROL = "#8a8a8a"
PART_NAMES = {"key": "keys of a layer", "value": "values of a layer", "head": "KV heads"}
PART_COLOURS = {**COLOURS, "head": "#6b4c9a"}
HEAD_MAP = "viridis"
SIDE_BY_SIDE = 0.7  # of the room of a layer that its heads take
NAMED = 4  # heads at each end
CROWDED = 16  # heads of a layer above which their spread is drawn
DAMAGE_NAMES = {"removed": "removed", "noise": "disturbed by noise of equal relative error"}


@styled
def pruning_impact(table: pd.DataFrame, about: str) -> Figure:
    """A row per choice: bytes saved on the left, measured KL on the right, with that of random
    choices of the same size in grey."""
    choices = list(dict.fromkeys(table["choice"]))
    height = 2.0 + 0.55 * len(choices)
    spaces: Spaces = {"gap": (0.4, 0), "left": 3.4, "head": 0.55, "sharey": True}
    fig, (left, right) = figure("Pruning: saved and paid", about, (14, height), 1, 2, **spaces)
    chosen = table[table["role"] == "chosen"].drop_duplicates("choice").set_index("choice")
    chosen = chosen.loc[choices]
    places = np.arange(len(choices))
    left.barh(places, 1 - 1 / chosen["ratio"], color="#7fa7cf", height=0.6)
    for place, row in zip(places, chosen.itertuples(), strict=True):
        saved = 1 - 1 / row.ratio
        left.text(max(saved, 0), place, f" {saved:.1%}", va="center", fontsize=9)
    left.set_yticks(places, [textwrap.fill(choice, 46) for choice in choices])
    share = 1 - 1 / chosen["ratio"]
    left.set_xlim(min(0, 1.1 * share.min()), max(1.25 * share.max(), 0.01))  # with its number
    left.invert_yaxis()
    left.set_xlabel("Share of the bytes saved, masks counted")
    percent(left.xaxis)
    cheap = config.ACCEPTABLE_KL
    floor = log_from(right, pd.concat([table["kl_mean_nats"], pd.Series([cheap])]))
    controls = table[table["role"] == "control"]
    place_of_control = controls["choice"].map({choice: i for i, choice in enumerate(choices)})
    look: Look = {"s": 26, "facecolors": "none", "edgecolors": CONTROL}
    cost = controls["kl_mean_nats"].clip(lower=floor)
    right.scatter(cost, place_of_control, label="as much at random", **look)
    errors = chosen["kl_mean_nats_se"].fillna(0)
    right.errorbar(
        chosen["kl_mean_nats"].clip(lower=floor), places, xerr=errors, fmt="o", color=ACCENT,
        capsize=3, label="chosen",
    )  # fmt: skip
    right.axvline(cheap, color=SAFE, ls="--", lw=1.2, label=f"{cheap:g} nats: called cheap")
    right.set_xlabel("Measured KL (nats per token; bars: standard error over texts)")
    right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return fig


@styled
def heuristics_on_trial(table: pd.DataFrame, about: str) -> Figure:
    """Spearman's correlation of each heuristic with what the model can spare, and its bootstrap
    interval: removal on the left, noise on the right."""
    title = "Heuristics on trial: do they know what can be spared?"
    heuristics = list(dict.fromkeys(table["heuristic"]))[::-1]
    size = (14, 2.6 + 0.55 * len(heuristics))
    spaces: Spaces = {"gap": (0.3, 0), "left": 1.9, "head": 0.75, "sharey": True}
    fig, axes = figure(title, about, size, 1, 2, **spaces)
    for ax, (damage, words) in zip(axes, DAMAGE_NAMES.items(), strict=True):
        rows = table[table["damage"] == damage]
        for shift, (part, name) in zip((0.22, 0.0, -0.22), PART_NAMES.items(), strict=True):
            own = rows[rows["part"] == part]
            place = np.array([heuristics.index(name) for name in own["heuristic"]]) + shift
            span = [own["spearman"] - own["low"], own["high"] - own["spearman"]]
            label = f"{name} ({own['parts'].max():.0f})" if len(own) else name
            ax.errorbar(
                own["spearman"], place, xerr=np.clip(span, 0, None), fmt="o", ms=5, capsize=3,
                color=PART_COLOURS[part], label=label,
            )  # fmt: skip
        ax.axvline(0, color="#555555", lw=1)
        ax.set_xlim(-1.05, 1.05)
        ax.set_title(f"Parts {words}", loc="left")
        ax.set_xlabel("Rank correlation (bars: 95 % bootstrap)\n-1: wrong way round · 0: no idea · "
                      "1: right")  # fmt: skip
    axes[0].set_yticks(range(len(heuristics)), [name.replace("_", " ") for name in heuristics])
    axes[1].legend(loc="lower right", bbox_to_anchor=(1, 1.06), ncols=3)
    return fig


@styled
def cost_of_each_part(table: pd.DataFrame, about: str) -> Figure:
    """Over layers, keys and values of layers on the left, KV heads on the right: measured KL when
    one part alone is removed, when it alone is disturbed, and, below, its sparsity."""
    title = "What each part is worth: measured KL when it alone is damaged"
    spaces: Spaces = {"gap": (1.0, 0.55), "right": 1.25, "sharex": "col"}
    fig, axes = figure(title, about, (15, 11), 3, 2, **spaces)
    for row, damage in zip(axes, DAMAGE_NAMES, strict=False):
        rows = table[table["damage"] == damage]
        done = "removed"
        if damage == "noise":
            done = f"disturbed by noise of {rows['noise'].max():.0%} relative error"
        for ax, part in zip(row, ("layer", "head"), strict=True):
            names = "One KV head" if part == "head" else "One layer's keys, or values"
            ax.set_title(f"{names}, {done}", loc="left")
            _costs(ax, _of_part(rows, part))
    once = table[table["damage"] == "removed"]
    for ax, part in zip(axes[-1], ("layer", "head"), strict=True):
        rows = _of_part(once, part)
        _parts(ax, rows, "sparsity")
        ax.set_title("Their sparsity, a heuristic", loc="left")
        from_zero(ax, rows["sparsity"].max())
        percent(ax.yaxis)
        ax.set_ylabel("Sparsity")
        ax.set_xlabel("Layer")
        _layers_axis(ax, table["layer"])
        whole_numbers(ax.xaxis)
    named = f"(named, as layer:head: the {NAMED} dearest and the {NAMED} cheapest)"
    axes[-1, 1].set_xlabel(f"Layer {named}")
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    _tell_heads(fig, axes[0, 1])
    return fig


def _layers_axis(ax: Axes, layers: pd.Series) -> None:
    """With room for names beside the first and the last."""
    room = max(0.8, 0.06 * (layers.max() - layers.min()))
    ax.set_xlim(layers.min() - room, layers.max() + room)


def _of_part(rows: pd.DataFrame, part: str) -> pd.DataFrame:
    return rows[(rows["part"] == "head") == (part == "head")]


def _costs(ax: Axes, rows: pd.DataFrame) -> None:
    floor = log_from(ax, rows["kl_mean_nats"], axis="y")
    rows = rows.assign(kl_mean_nats=rows["kl_mean_nats"].clip(lower=floor))
    _layers_axis(ax, rows["layer"])
    _parts(ax, rows, "kl_mean_nats")
    ax.set_ylabel("KL (nats per token)")
    if (rows["part"] == "head").all():
        _name_ends(ax, rows)


def _parts(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """A point for each part, heads of a layer side by side, or where they are many their spread."""
    if (rows["part"] == "head").all():
        n_heads = rows["head"].max() + 1
        if n_heads > CROWDED:
            _spread(ax, rows, column)
            return
        size = 26 if len(rows) <= 300 else 9
        shades = colormaps[HEAD_MAP].resampled(n_heads)
        look: Look = {"c": rows["head"], "cmap": shades, "vmin": -0.5, "vmax": n_heads - 0.5}
        ax.scatter(_places(rows), rows[column], s=size, lw=0, **look)
        return
    for kind in KINDS:
        own = rows[rows["part"] == kind]
        ax.plot(own["layer"], own[column], "o", ms=5, color=COLOURS[kind], label=NAMES[kind])


def _places(rows: pd.DataFrame) -> pd.Series:
    """Where heads are on the axis of layers."""
    n_heads = rows["head"].max() + 1
    return rows["layer"] + SIDE_BY_SIDE * ((rows["head"] + 0.5) / n_heads - 0.5)


def _spread(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """Of the heads of each layer: all, the middle half, and the median."""
    by_layer = rows.groupby("layer")[column].quantile([0, 0.25, 0.5, 0.75, 1]).unstack()
    look: Look = {"color": PART_COLOURS["head"]}
    ax.vlines(by_layer.index, by_layer[0], by_layer[1], lw=1, alpha=0.5, label="all heads", **look)
    ax.vlines(by_layer.index, by_layer[0.25], by_layer[0.75], lw=3, label="middle half", **look)
    ax.plot(by_layer.index, by_layer[0.5], "_", ms=5, color="black", label="median")


def _name_ends(ax: Axes, rows: pd.DataFrame) -> None:
    """The dearest heads and the cheapest."""
    by_cost = rows.sort_values("kl_mean_nats", ascending=False).index
    ends = rows.loc[list(dict.fromkeys([*by_cost[:NAMED], *by_cost[-NAMED:]]))]
    at = list(zip(_places(rows)[ends.index], ends["kl_mean_nats"], strict=True))
    crowded = rows["head"].max() >= CROWDED
    if crowded:
        ax.plot(*zip(*at, strict=True), "o", ms=3, color="#222222")
    which = zip(ends["layer"], ends["head"], at, strict=True)
    names = [Name(f"{layer}:{head}", *point, "#222222") for layer, head, point in which]
    others = [] if crowded else zip(_places(rows), rows["kl_mean_nats"], strict=True)
    missing = name_points(ax, names, others)
    if missing:
        ax.set_title(f"{ax.get_title(loc='left')} ({missing} unnamed)", loc="left")


def _tell_heads(fig: Figure, ax: Axes) -> None:
    """The colours of heads, or what is drawn of many; nothing of one."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    elif ax.collections[0].cmap.N > 1:
        bar = beside(fig, ax, ax.collections[0])
        bar.set_label("KV head")
        whole_numbers(bar.ax.yaxis)
