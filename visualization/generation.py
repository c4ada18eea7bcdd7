"""Picture of the generation stages."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from visualization.bands import GREY, errors, highest, n_texts, note, spread
from visualization.style import ACCENT, COLOURS, NAMES, Look, by_kind, figure, percent, styled


@styled
def generation_stages_comparison(table: pd.DataFrame, about: str) -> Figure:
    """Sparsity of the cache at each stage, and of the newly generated tokens alone in red."""
    several = n_texts(table) > 1
    title = "Sparsity at the stages of generation"
    spaces: Look = {"gap": (0.3, 0), "sharey": True, "bottom": 0.95}
    fig, axes = figure(title, about, (12, 5.8), 1, 2, **spaces)
    top = max(highest(table, "sparsity"), highest(table, "sparsity_new_tokens"))
    for ax, (kind, rows) in zip(axes, by_kind(table), strict=True):
        names = [f"{row.stage}\n{_tokens(row, rows)}" for _, row in rows.iterrows()]
        label = "all tokens of the bar"
        bars = ax.bar(names, rows["sparsity"], color=COLOURS[kind], label=label, width=0.6)
        shares = [spread(row, "sparsity", ".2%").replace(" ±", "\n±") for _, row in rows.iterrows()]
        high = rows["sparsity"] > 0.12 * top
        inside, above = (np.where(where, shares, "") for where in (high, ~high))
        ax.bar_label(bars, inside, label_type="center", color="white", fontsize=10)
        ax.bar_label(bars, above, padding=2, color="#333333", fontsize=10)
        new = rows["sparsity_new_tokens"]
        if new.notna().any():
            label = "its generated tokens alone"
            ax.plot(names, new, "o-", color=ACCENT, lw=1.5, label=label)
        if several:
            look: Look = {"ls": "none", "capsize": 3}
            beside = np.arange(len(rows)) - 0.15  # where the new tokens have none
            ax.errorbar(beside, rows["sparsity"], errors(rows, "sparsity"), color=GREY, **look)
            ax.errorbar(names, new, errors(rows, "sparsity_new_tokens"), color=ACCENT, **look)
        ax.set_title(NAMES[kind], loc="left")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes[0].set_ylim(0, 1.15 * max(top, 0.001))
    axes[0].set_ylabel("Sparsity" + note(table, "bars: "))
    percent(axes[0].yaxis)
    return fig


def _tokens(row: pd.Series, stages: pd.DataFrame) -> str:
    """Which tokens a bar is of: those of the text, and those generated after it."""
    of_text = stages["n_tokens"].min()
    new = row["n_tokens"] - of_text
    mean = "mean " if row.get("n_tokens_se", 0) > 0 else ""
    read = f"{mean}{of_text:.0f} of the text"
    return f"{read}\n+ {new:.0f} generated" if new > 0 else f"{read}\n"
