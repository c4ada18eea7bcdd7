"""One study on several models in one picture."""

import pandas as pd
from matplotlib.figure import Figure

from visualization import families
from visualization.costs import bits_axis, cheap_line
from visualization.naming import Name, left_out, name_points
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
        words = [_named(row) for _, row in line.iterrows()]
        every = zip(words, bits, cost, strict=True)
        names += [Name(word, x, y, look["color"]) for word, x, y in every]
    cheap_line(ax)
    points = zip(
        compressed["bits_per_value"], compressed["kl_mean_nats"].clip(lower=floor), strict=True
    )
    missing = left_out(name_points(ax, names, points))
    ax.set_ylabel("Measured KL (nats per token; bars: standard error over texts)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title=missing or None)
    return fig


def _named(row: pd.Series) -> str:
    """A setting by its method, and as much of what is set as there is room for."""
    whole = f"{row['method']} {row['settings']}".strip()
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"


def _frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The settings, smallest first, that cost less than all smaller ones."""
    ordered = rows[rows["kl_mean_nats"] > 0].sort_values(["bits_per_value", "kl_mean_nats"])
    return ordered[ordered["kl_mean_nats"] < ordered["kl_mean_nats"].cummin().shift(fill_value=9e9)]
