"""Pictures of the comparison: what every setting stores, and what it costs."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from visualization.style import SAFE, Look, figure, log_from, plain_log, styled

PALETTE = (
    "#c0392b", "#2f6db3", "#d9822b", "#17a589", "#6b4c9a", "#7b7d7d", "#b7950b", "#2e8b57",
    "#d35490", "#1b4f72", "#8d6e63", "#00838f", "#9e9d24", "#5d4037", "#3949ab", "#ad1457",
)  # fmt: skip
MARKERS = "osD^vPX<>ph*dH8"  # one less than colours, so that no look repeats
FAINT = 0.35


@styled
def pareto(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against measured KL, both logarithmic; the frontier as a line."""
    fig, ax = figure("What every setting stores and costs", about, (13, 8), right=3.1)
    _settings(ax, table, "kl_mean_nats")
    log_from(ax, table["kl_mean_nats"], axis="y")
    frontier = table[table["frontier"] & (table["kl_mean_nats"] > 0)]
    if len(frontier):
        ax.step(
            frontier["bits_per_value"], frontier["kl_mean_nats"], where="post", color="black",
            lw=1.2, zorder=1, label="frontier",
        )  # fmt: skip
    cheap, (low, high) = config.ACCEPTABLE_KL, ax.get_ylim()
    if low <= cheap <= high:
        ax.axhline(cheap, color=SAFE, ls=":", lw=1.3, label=f"{cheap:g} nats")
    ax.set_ylabel("Measured KL (nats per token; bars: standard error over texts)")
    _finish(ax)
    return fig


@styled
def perplexity(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against the change of perplexity."""
    fig, ax = figure("What every setting stores, and perplexity", about, (13, 8), right=3.1)
    _settings(ax, table, "delta_perplexity_percent")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_yticks([-1, 0, 1, 3, 10, 30, 100, 300, 1000])
    ax.yaxis.set_major_formatter("{x:g} %")
    low, high = table["delta_perplexity_percent"].agg(["min", "max"])
    ax.set_ylim(min(low, 0) - 1, max(1.5 * high, 3))
    full = table["perplexity_full"].iloc[0]
    ax.axhline(0, color="#555555", ls=":", lw=1.3, label=f"untouched: {full:.2f}")
    ax.set_ylabel("Change of perplexity (bars: standard error over texts)")
    _finish(ax)
    return fig


def _settings(ax: Axes, table: pd.DataFrame, column: str) -> None:
    """One colour and marker for each family; dominated settings faint."""
    shown = table[table["family"] != "none"]
    for i, (family, rows) in enumerate(shown.groupby("family", sort=False)):
        look: Look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        look |= {"ls": "none", "capsize": 2, "ms": 6.5, "elinewidth": 1}
        for on_it, part in rows.groupby("frontier"):
            spread = part[f"{column}_se"].fillna(0)
            alpha = 1.0 if on_it else FAINT
            ax.errorbar(part["bits_per_value"], part[column], yerr=spread, alpha=alpha, **look)
        ax.plot([], [], label=family, **{k: look[k] for k in ("color", "marker", "ls")})


def _finish(ax: Axes) -> None:
    ax.set_xscale("log")
    plain_log(ax.xaxis, steps=(1.0, 2.0, 3.0, 5.0))
    ax.set_xlim(None, 17)
    ax.set_xlabel("Stored bits per value (16: uncompressed)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), title="faint: dominated")


@styled
def needle(table: pd.DataFrame, about: str) -> Figure:
    """Probability of the right answer to a fact hidden at several depths, by setting: a row each,
    the untouched cache first."""
    labels = list(dict.fromkeys(table["label"]))
    depths = sorted(table["depth"].unique())
    size = (9.5, 1.9 + 0.27 * len(labels))
    fig, ax = figure("Needle: is a fact of the context still found?", about, size, left=3.6)
    for i, depth in enumerate(depths):
        rows = table[table["depth"] == depth].set_index("label").loc[labels]
        shades = ("#9ecae1", "#4292c6", "#084594", "#041f4a")
        right = rows["right"].to_numpy()
        places = pd.Series(range(len(labels))) + 0.18 * (i - (len(depths) - 1) / 2)
        look: Look = {"color": shades[i % 4], "ls": "none", "ms": 6}
        share = rows["probability"].to_numpy()
        ax.plot(share[right], places[right], marker="o", label=f"at {depth:.0%}", **look)
        ax.plot(share[~right], places[~right], marker="x", **look)
    ax.plot([], [], "x", color="#555555", ls="none", label="wrong answer")
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("Probability of the right answer (all its tokens)")
    ax.legend(ncols=5, loc="lower right", bbox_to_anchor=(1, 1))
    return fig
