"""Pictures of the comparison: what every setting stores, and what it costs."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization import families
from visualization.costs import bits_axis, cheap_line, perplexity_axis
from visualization.naming import error_bars, left_out, name_points
from visualization.style import Look, figure, log_from, styled

FAINT = 0.4
SIZE, RIGHT = (15, 9), 3.4
SHADES = ("#9ecae1", "#4292c6", "#084594", "#041f4a")  # of depths, darker is nearer to the end


@styled
def pareto(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against measured KL, both logarithmic; the frontier as a line."""
    fig, ax = figure("What every setting stores and costs", about, SIZE, right=RIGHT)
    shown = _compressed(table)
    floor = log_from(ax, shown["kl_mean_nats"], axis="y")
    shown = shown.assign(kl_mean_nats=shown["kl_mean_nats"].clip(lower=floor))
    bits_axis(ax, shown["bits_per_value"])
    cheap_line(ax)
    frontier = table[table["frontier"] & (table["kl_mean_nats"] > 0)]
    if len(frontier):
        ax.step(
            frontier["bits_per_value"], frontier["kl_mean_nats"], where="post", color="black",
            lw=1.2, zorder=1, label="frontier",
        )  # fmt: skip
    ax.set_ylabel("Measured KL (nats per token; bars: standard error over texts)")
    _settings(ax, shown, "kl_mean_nats")
    return fig


@styled
def perplexity(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against the change of perplexity."""
    fig, ax = figure("What every setting stores, and perplexity", about, SIZE, right=RIGHT)
    shown = _compressed(table)
    perplexity_axis(ax, shown)
    bits_axis(ax, shown["bits_per_value"])
    _settings(ax, shown, "delta_perplexity_percent")
    return fig


def _compressed(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["family"] != "none"]


def _settings(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """One colour and marker for each family, dominated settings faint, all named; and the legend.
    Axes are final."""
    looks = {family: families.look(i) for i, family in enumerate(table["family"].unique())}
    for family, rows in table.groupby("family", sort=False):
        look: Look = {**looks[family], "capsize": 2, "ms": 6.5, "elinewidth": 1}
        for on_it, part in rows.groupby("frontier"):
            spread = part[f"{column}_se"].fillna(0)
            alpha = 1.0 if on_it else FAINT
            ax.errorbar(part["bits_per_value"], part[column], yerr=spread, alpha=alpha, **look)
        ax.plot([], [], label=f"{family}{families.once_per_model(rows)}", **looks[family])
    colours = {family: look["color"] for family, look in looks.items()}
    bars = error_bars(table["bits_per_value"], table[column], table[f"{column}_se"].fillna(0))
    missing = left_out(name_points(ax, families.names(table, column, colours), lines=bars))
    title = "faint: dominated" + f"\n{missing}" * bool(missing)
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title=title)


@styled
def needle(table: pd.DataFrame, about: str) -> Figure:
    """Probability of the right answer to a fact hidden at several depths, by setting: a row each,
    the untouched cache first."""
    labels = list(dict.fromkeys(table["label"]))
    depths = sorted(table["depth"].unique())
    size = (11, 2.1 + 0.27 * len(labels))
    title = "Needle: is a fact of the context still found?"
    fig, ax = figure(title, about, size, left=3.6, head=0.6)
    for i, depth in enumerate(depths):
        rows = table[table["depth"] == depth].set_index("label").loc[labels]
        right = rows["right"].to_numpy()
        places = pd.Series(range(len(labels))) + 0.18 * (i - (len(depths) - 1) / 2)
        look: Look = {"color": SHADES[i % len(SHADES)], "ls": "none", "ms": 6}
        share = rows["probability"].to_numpy()
        ax.plot(share[right], places[right], marker="o", label=f"{depth:.0%}", **look)
        ax.plot(share[~right], places[~right], marker="x", **look)
    ax.plot([], [], "x", color="#555555", ls="none", label="wrong answer")
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.set_ylim(len(labels) - 0.4, -0.6)  # the first above
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("Probability of the right answer (all its tokens)")
    where = "Where the fact stands, as a share of the context's length from its start"
    ax.legend(ncols=5, loc="lower right", bbox_to_anchor=(1, 1), title=where)
    return fig
