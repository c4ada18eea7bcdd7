"""Picture of the generation stages."""

import pandas as pd
from matplotlib.figure import Figure

from visualization.style import ACCENT, COLOURS, NAMES, by_kind, figure, percent, styled


@styled
def generation_stages_comparison(table: pd.DataFrame, about: str) -> Figure:
    """Sparsity of the cache at each stage, and of the newly generated tokens alone in red."""
    title = "Sparsity at the stages of generation"
    fig, axes = figure(title, about, (12, 5.5), 1, 2, gap=(0.3, 0), sharey=True)
    for ax, (kind, rows) in zip(axes, by_kind(table), strict=True):
        names = [f"{row.stage}\n{row.n_tokens} tokens" for row in rows.itertuples()]
        bars = ax.bar(names, rows["sparsity"], color=COLOURS[kind], label="whole cache", width=0.6)
        shares = [f"{share:.2%}" for share in rows["sparsity"]]
        ax.bar_label(bars, shares, label_type="center", color="white", fontsize=10)
        new = rows["sparsity_new_tokens"]
        ax.plot(names, new, "o-", color=ACCENT, lw=1.5, label="new tokens only")
        ax.set_title(NAMES[kind], loc="left")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    highest = table[["sparsity", "sparsity_new_tokens"]].max().max()
    axes[0].set_ylim(0, 1.15 * max(highest, 0.001))
    axes[0].set_ylabel("Sparsity")
    percent(axes[0].yaxis)
    return fig
