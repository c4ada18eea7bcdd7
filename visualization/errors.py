"""The picture of settings whose cost to the model is not known: what they store and are off by."""

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization import families
from visualization.costs import bits_axis
from visualization.naming import Name, left_out, name_points
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
    n_left_out = 0
    for ax, kind, column in zip(axes, KINDS, columns, strict=True):
        lowest = f" (lowest: {floor:.1g} or less)" if (shown[column] < floor).any() else ""
        ax.set_title(NAMES[kind] + lowest, loc="left")
        bits_axis(ax, shown["bits_per_value"])
        n_left_out += _points(ax, shown.assign(error=shown[column].clip(lower=floor)))
    axes[0].set_ylabel("Relative error (Frobenius; evicted entries count as zeros)")
    evicted = "hollow: entries are evicted" if shown["evicts"].any() else ""
    said = "\n".join(filter(None, (evicted, left_out(n_left_out))))
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title=said or None)
    return fig


def _points(ax: Axes, table: pd.DataFrame) -> int:
    """Returns how many names there is no room for."""
    names: list[Name] = []
    for i, (family, rows) in enumerate(table.groupby("family", sort=False)):
        look: Look = {**families.look(i), "ms": 6.5}
        for evicts, part in rows.groupby("evicts"):
            fill: Look = {"mfc": "none"} if evicts else {}
            ax.plot(part["bits_per_value"], part["error"], **look, **fill)
        fill = {"mfc": "none"} if rows["evicts"].all() else {}
        ax.plot([], [], label=textwrap.fill(str(family), LEGEND), **look, **fill)
        short = [families.short(label, str(family)) for label in rows["label"]]
        every = zip(short, rows["bits_per_value"], rows["error"], strict=True)
        names += [Name(name, x, y, look["color"]) for name, x, y in every if len(name) <= LONGEST]
    points = zip(table["bits_per_value"], table["error"], strict=True)
    return name_points(ax, names, points)
