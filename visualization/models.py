"""One study on several models in one picture."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from visualization import families
from visualization.costs import bits_axis, cheap_line
from visualization.naming import Name, Points, left_out, name_points
from visualization.style import figure, log_from, shown, styled

LONGEST = 32  # characters of a name beside its point


@styled
def models(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against measured KL, both logarithmic, a colour for each model; the
    line joins those settings of a model than which none is as small and costs less, and these are
    named."""
    title = "What every setting stores and costs, by model"
    fig, ax = figure(title, about, (15, 9), right=3.6)
    compressed = table[table["method"] != "none"]
    floor = log_from(ax, compressed["kl_mean_nats"], axis="y")
    bits_axis(ax, compressed["bits_per_value"])
    names: list[Name] = []
    lines: list[Points] = []
    for i, (name, rows) in enumerate(compressed.groupby("model", sort=False)):
        look = families.look(i)
        ax.errorbar(
            rows["bits_per_value"], rows["kl_mean_nats"].clip(lower=floor),
            yerr=rows["kl_mean_nats_se"].fillna(0), capsize=2, ms=6, elinewidth=1,
            label=shown(str(name)), **look,
        )  # fmt: skip
        line = _frontier(rows)
        bits, cost = line["bits_per_value"], line["kl_mean_nats"]
        ax.step(bits, cost, where="post", color=look["color"], lw=1.2)
        every = zip(_named(rows)[line.index], bits, cost, strict=True)
        names += [Name(word, x, y, look["color"]) for word, x, y in every]
        steps = zip(np.repeat(bits, 2)[1:], np.repeat(cost, 2)[:-1], strict=True)
        lines += [list(steps)] if len(line) else []
    cheap_line(ax)
    points = zip(
        compressed["bits_per_value"], compressed["kl_mean_nats"].clip(lower=floor), strict=True
    )
    missing = left_out(name_points(ax, names, points, lines))
    ax.set_ylabel("Measured KL (nats per token; bars: standard error over texts)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title=missing or None)
    return fig


def _named(rows: pd.DataFrame) -> pd.Series:
    """Each setting by its label, or else its method and what tells it from the method's others."""
    if "label" in rows:
        return rows["label"].str.slice(0, LONGEST)
    told = rows["settings"].fillna("").str.split().map(set)
    common = {method: set.intersection(*told[own.index]) for method, own in rows.groupby("method")}
    words = [
        " ".join([method, *(x for x in str(settings).split() if x not in common[method])])
        for method, settings in zip(rows["method"], rows["settings"].fillna(""), strict=True)
    ]
    return pd.Series(words, index=rows.index).str.slice(0, LONGEST)


def _frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The settings, smallest first, that cost less than all smaller ones."""
    ordered = rows[rows["kl_mean_nats"] > 0].sort_values(["bits_per_value", "kl_mean_nats"])
    return ordered[ordered["kl_mean_nats"] < ordered["kl_mean_nats"].cummin().shift(fill_value=9e9)]
