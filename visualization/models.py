"""One study on several models in one picture."""

import pandas as pd
from matplotlib.figure import Figure

import config
from visualization.compare import MARKERS, PALETTE
from visualization.style import SAFE, figure, log_from, plain_log, shown, styled


@styled
def models(table: pd.DataFrame, about: str) -> Figure:
    """Stored bits per value against measured KL, both logarithmic, a colour for each model; the
    line joins those settings of a model than which none is as small and costs less."""
    fig, ax = figure("What every setting stores and costs, by model", about, (13, 8), right=3.6)
    compressed = table[table["method"] != "none"]
    for i, (name, rows) in enumerate(compressed.groupby("model", sort=False)):
        color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        label = shown(str(name))
        ax.errorbar(
            rows["bits_per_value"], rows["kl_mean_nats"], yerr=rows["kl_mean_nats_se"].fillna(0),
            color=color, marker=marker, ls="none", capsize=2, ms=6, elinewidth=1, label=label,
        )  # fmt: skip
        line = _frontier(rows)
        ax.step(line["bits_per_value"], line["kl_mean_nats"], where="post", color=color, lw=1.2)
    log_from(ax, compressed["kl_mean_nats"], axis="y")
    low, high = ax.get_ylim()
    if low <= config.ACCEPTABLE_KL <= high:
        cheap = f"{config.ACCEPTABLE_KL:g} nats"
        ax.axhline(config.ACCEPTABLE_KL, color=SAFE, ls=":", lw=1.3, label=cheap)
    ax.set_xscale("log")
    plain_log(ax.xaxis, steps=(1.0, 1.2, 1.6, 2.0, 3.0, 4.0, 6.0, 8.0))  # of a narrow range too
    ax.set_xlim(None, 17)
    ax.set_xlabel("Stored bits per value (16: uncompressed)")
    ax.set_ylabel("Measured KL (nats per token; bars: standard error over texts)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return fig


def _frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The settings, smallest first, that cost less than all smaller ones."""
    ordered = rows[rows["kl_mean_nats"] > 0].sort_values(["bits_per_value", "kl_mean_nats"])
    return ordered[ordered["kl_mean_nats"] < ordered["kl_mean_nats"].cummin().shift(fill_value=9e9)]
