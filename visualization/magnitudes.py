"""Picture of how large the entries are."""

import pandas as pd
from matplotlib.figure import Figure

from visualization.style import ACCENT, COLOURS, NAMES, by_kind, figure, plain_log, styled


@styled
def weight_magnitude_distribution(table: pd.DataFrame, about: str) -> Figure:
    """Histograms of |key| and |value| on logarithmic axes, the sparsity threshold in red."""
    title = "Distribution of entry magnitudes"
    fig, axes = figure(title, about, (12, 5.5), 1, 2, gap=(0.3, 0), head=0.45, sharey=True)
    for ax, (kind, rows) in zip(axes, by_kind(table), strict=True):
        threshold = rows["threshold"].iloc[0]
        edges = [rows["bin_right"].iloc[0] / 2, *rows["bin_right"]]  # a log axis has no 0
        ax.stairs(rows["count"], edges, fill=True, color=COLOURS[kind])
        below = rows.loc[rows["bin_right"] <= threshold, "count"].sum()
        share = below / rows["count"].sum()
        label = f"threshold {threshold:.3g}: {share:.1%} lie to its left"
        ax.axvline(threshold, color=ACCENT, lw=1.5, label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        plain_log(ax.xaxis)
        plain_log(ax.yaxis)
        ax.set_title(NAMES[kind], loc="left")
        ax.set_xlabel(f"|{kind}| (4 bins to each factor of 2; the leftmost holds all smaller ones)")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    axes[0].set_ylabel("Entries per bin")
    return fig
