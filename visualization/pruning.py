"""Pictures of what pruning costs, and of the heuristics on trial."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from visualization.style import (
    ACCENT,
    COLOURS,
    NAMES,
    SAFE,
    Look,
    Spaces,
    figure,
    from_zero,
    log_from,
    percent,
    plain_log,
    styled,
    whole_numbers,
)

CONTROL = "#8a8a8a"
PART_NAMES = {"key": "keys of a layer", "value": "values of a layer", "head": "KV heads"}
PART_COLOURS = {**COLOURS, "head": "#6b4c9a"}
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
    left.set_xlim(min(0, (1 - 1 / chosen["ratio"]).min()), 1)
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
    """Measured KL when one part alone is removed (above) or disturbed (below), over layers: keys
    and values of layers on the left, KV heads on the right; their sparsity as a thin line."""
    title = "What each part is worth: measured KL when it alone is damaged"
    fig, axes = figure(title, about, (15, 8.5), 2, 2, gap=(1.5, 1.0), right=0.9)
    for row, (damage, words) in zip(axes, DAMAGE_NAMES.items(), strict=True):
        rows = table[table["damage"] == damage]
        for ax, parts in zip(row, (("key", "value"), ("head",)), strict=True):
            _costs(ax, rows[rows["part"].isin(parts)], parts)
            names = "One layer's keys, or values" if len(parts) == 2 else "One KV head"
            ax.set_title(f"{names}, {words.split(' of ')[0]}", loc="left")
    return fig


def _costs(ax: Axes, rows: pd.DataFrame, parts: tuple[str, ...]) -> None:
    floor = log_from(ax, rows["kl_mean_nats"], axis="y")
    beside = ax.twinx()
    for part in parts:
        own = rows[rows["part"] == part]
        name = {**NAMES, "head": "KV heads"}[part]
        colour = PART_COLOURS[part]
        ax.plot(
            own["layer"], own["kl_mean_nats"].clip(lower=floor), "o", ms=5, color=colour, label=name
        )
        mean = own.groupby("layer")["sparsity"].mean()
        beside.plot(mean.index, mean, "-", lw=1, alpha=0.6, color=colour)
    beside.grid(False)
    beside.set_ylabel("Sparsity (thin line)")
    from_zero(beside, rows["sparsity"].max())
    percent(beside.yaxis)
    ax.set_xlabel("Layer")
    ax.set_ylabel("KL (nats per token)")
    whole_numbers(ax.xaxis)
    plain_log(ax.yaxis)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 1.1), ncols=2)
