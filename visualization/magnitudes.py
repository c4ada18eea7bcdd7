"""Picture of how large the entries are."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization.bands import n_texts
from visualization.style import ACCENT, COLOURS, NAMES, by_kind, figure, plain_log, styled


@styled
def weight_magnitude_distribution(table: pd.DataFrame, about: str) -> Figure:
    """Histograms of |key| and |value| on logarithmic axes, the sparsity threshold in red. The
    entries of several texts are counted together, each in multiples of its text's threshold."""
    if n_texts(table) > 1:
        return _of_several(table, about)
    title = "Distribution of entry magnitudes"
    fig, axes = figure(title, about, (12, 5.5), 1, 2, gap=(0.3, 0), head=0.45, sharey=True)
    for ax, (kind, rows) in zip(axes, by_kind(table), strict=True):
        threshold = rows["threshold"].iloc[0]
        _histogram(ax, rows["bin_right"], rows["count"], kind)
        _smaller(ax, rows)
        label = f"threshold {threshold:.3g}: {_share_left(rows, threshold):.1%} lie to its left"
        ax.axvline(threshold, color=ACCENT, lw=1.5, label=label)
        ax.set_xlabel(f"|{kind}| (4 bins to each factor of 2)")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    axes[0].set_ylabel("Entries per bin")
    return fig


def _of_several(table: pd.DataFrame, about: str) -> Figure:
    n = n_texts(table)
    title = f"Distribution of entry magnitudes, all entries of {n} texts"
    fig, axes = figure(title, about, (12, 5.5), 1, 2, gap=(0.3, 0), head=0.45, sharey=True)
    for ax, (kind, rows) in zip(axes, by_kind(table), strict=True):
        threshold, error = rows["threshold"].iloc[0], rows["threshold_se"].iloc[0]
        _histogram(ax, rows["bin_right"] / threshold, rows["count"], kind)
        _smaller(ax, rows)
        label = (
            f"threshold, mean {threshold:.3g} ± {error:.2g}: "
            f"{_share_left(rows, threshold):.1%} lie to its left"
        )
        ax.axvline(1, color=ACCENT, lw=1.5, label=label)
        ax.set_xlabel(f"|{kind}| / threshold of its text (4 bins to each factor of 2)")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    axes[0].set_ylabel("Entries per bin, over all texts")
    return fig


def _histogram(ax: Axes, right_edges: pd.Series, counts: pd.Series, kind: str) -> None:
    """Without the first bin, which reaches down to 0 and would stand out as none of the others."""
    ax.stairs(counts.iloc[1:], right_edges.to_numpy(), fill=True, color=COLOURS[kind])
    ax.set_xscale("log")
    plain_log(ax.xaxis)
    if (counts.iloc[1:] > 0).any():  # of zeros alone there is no logarithm
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    ax.set_title(NAMES[kind], loc="left")


def _smaller(ax: Axes, rows: pd.DataFrame) -> None:
    """How many entries lie left of the bars, down to 0."""
    n = int(rows["count"].iloc[0])
    if not n:
        return
    note = f"\u2190 {n:,} ({n / rows['count'].sum():.2%}) are smaller"
    ax.text(0.01, 0.98, note, transform=ax.transAxes, va="top", fontsize=9, color="#555555")


def _share_left(rows: pd.DataFrame, threshold: float) -> float:
    """Of all entries; edges of several texts are means, and so are rounded."""
    left = rows["bin_right"] <= threshold * (1 + 1e-9)
    return float(rows.loc[left, "count"].sum() / rows["count"].sum())
