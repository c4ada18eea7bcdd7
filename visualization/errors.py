"""The picture of settings whose cost to the model is not known: what they store and are off by."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization.compare import MARKERS, PALETTE
from visualization.style import KINDS, NAMES, Look, figure, log_from, plain_log, styled

LEGEND = 40  # characters of a line
LONGEST = 24  # characters of a name beside its point
DECADES = 1000  # times below the largest error, from where all is the same


@styled
def bits_and_errors(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against the relative error of keys and of values, both logarithmic: a
    colour for each family, hollow where entries are evicted; points are named by their setting."""
    title = "What every setting stores and is off by (its cost to the model is not known)"
    fig, axes = figure(title, about, (17, 8), 1, 2, right=3.7, sharey=True)
    shown = table[table["method"] != "none"]
    columns = [f"{kind}_error" for kind in KINDS]
    every = pd.Series(shown[columns].to_numpy().flatten())
    floor = log_from(axes[0], every.clip(lower=every.max() / DECADES), axis="y")
    plain_log(axes[0].yaxis, steps=(1.0, 2.0, 5.0))
    for ax, kind, column in zip(axes, KINDS, columns, strict=True):
        lowest = f" (lowest: {floor:.1g} or less)" if (shown[column] < floor).any() else ""
        ax.set_title(NAMES[kind] + lowest)
        bits = shown["bits_per_value"]
        ax.set_xscale("log")
        plain_log(ax.xaxis, steps=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
        ax.set_xlim(bits.min() / 1.2, 1.15 * max(16, bits.max()))
        ax.set_xlabel("Stored bits per value (16: uncompressed)")
        _points(ax, shown.assign(error=shown[column].clip(lower=floor)))
    axes[0].set_ylabel("Relative error (Frobenius; evicted entries count as zeros)")
    evicted = "hollow: entries are evicted" if shown["evicts"].any() else None
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title=evicted)
    return fig


def _points(ax: Axes, table: pd.DataFrame) -> None:
    middle = table["bits_per_value"].min() ** 0.5 * 4
    said = set()
    for i, (family, rows) in enumerate(table.groupby("family", sort=False)):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        look: Look = {"color": colour, "marker": marker, "ls": "none", "ms": 6.5}
        for evicts, part in rows.groupby("evicts"):
            fill: Look = {"mfc": "none"} if evicts else {}
            ax.plot(part["bits_per_value"], part["error"], **look, **fill)
        fill = {"mfc": "none"} if rows["evicts"].all() else {}
        ax.plot([], [], label=textwrap.fill(str(family), LEGEND), **look, **fill)
        for label, x, y in zip(rows["label"], rows["bits_per_value"], rows["error"], strict=True):
            name = label.removeprefix(str(family)).strip(" -,")
            near = (name, round(12 * np.log(x)), round(6 * np.log(y)))
            if near in said or len(name) > LONGEST:
                continue
            said.add(near)
            right: Look = {"xytext": (5, 4), "ha": "left"}
            left: Look = {"xytext": (-5, 4), "ha": "right"}
            side = right if x < middle else left
            ax.annotate(name, (x, y), textcoords="offset points", fontsize=7, color=colour, **side)
