"""Picture of what each token contributes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import config
from analysis.sinks import sinks
from visualization.bands import GREY, band, band_entry, errors, n_texts
from visualization.style import (
    ACCENT,
    COLOURS,
    NAMES,
    Look,
    Spaces,
    bin_width,
    binned,
    figure,
    per_bin,
    styled,
    whole_numbers,
)
from visualization.token_marks import SINK_COLOUR, alone, mark, named, shade, sink_label

MOST_BARS = 1024
MOST_POINTS = 256
RANKED = 10  # tokens whose importance is taken apart
NORMS = {"key": "key_norm", "value": "value_norm"}
PARTS = {
    "key": ("key norm", COLOURS["key"]),
    "value": ("value norm", COLOURS["value"]),
    "energy": ("attention energy", "#2a9d8f"),
}
SIZE, RANKING_WIDTH, RANKING_LABELS = (16, 8.5), 3.0, 2.1  # inches


@styled
def token_position_importance(table: pd.DataFrame, about: str) -> Figure:
    """Importance over positions as bars from its median above, the norms below, and beside them
    the tokens that rank highest, and the sinks, each by what its importance is made of."""
    right = RANKING_WIDTH + RANKING_LABELS + 0.3
    spaces: Spaces = {"gap": (0, 0.8), "right": right, "head": 0.4, "sharex": True}
    fig, (above, below) = figure("Importance of each token position", about, SIZE, 2, 1, **spaces)
    _over_positions(above, table)
    _norms(below, table)
    _ranking(fig, above, below, table)
    return fig


def _sinks(table: pd.DataFrame) -> pd.DataFrame:
    return sinks(table, "attention_received")


def _over_positions(ax: Axes, table: pd.DataFrame) -> None:
    positions, values = table["position"].to_numpy(), table["importance"].to_numpy()
    span = positions.max() + 1
    width = bin_width(span, MOST_BARS)
    median = float(np.median(values))
    middles, high = binned(positions, values, width, "max")
    low = binned(positions, values, width, "min")[1]
    edges = np.append(middles - width / 2, middles[-1] + width / 2)
    label = f"importance from its median {median:.2f}{per_bin(width, 'lowest and highest')}"
    for ends, limit in ((high, np.maximum), (low, np.minimum)):
        look: Look = {"fill": True, "color": "#98a3b0", "label": label}
        ax.stairs(limit(ends, median), edges, baseline=median, **look)
        label = ""
    highest = table.loc[table.groupby(positions // width)["importance"].idxmax()]
    band(ax, middles, high, errors(highest, "importance"), step="mid", color=GREY, alpha=0.4)
    ranked, many = _highest(table, config.TOP_TOKENS), _sinks(table)
    mark(ax, ranked, "importance", "v", ACCENT, f"the {len(ranked)} highest")
    mark(ax, many, "importance", "D", SINK_COLOUR, sink_label(len(many)))
    shade(ax, table)
    ax.axhline(median, color="#555555", lw=0.8)
    ax.set_xlim(-0.5 - 0.01 * span, span - 0.5 + 0.01 * span)
    ax.set_ylabel("Importance (terms as shares of their maxima)")
    ax.tick_params(labelbottom=True)
    ax.legend(loc="lower right", ncols=5, bbox_to_anchor=(1, 1), fontsize=8, columnspacing=1)


def _highest(table: pd.DataFrame, n: int) -> pd.DataFrame:
    return table[table["well_seen"]].nlargest(n, "importance", keep="first")


def _norms(ax: Axes, table: pd.DataFrame) -> None:
    """As shares of their maxima; where they are means of neighbours, the sinks' own are marked."""
    positions = table["position"].to_numpy()
    width = bin_width(positions.max() + 1, MOST_POINTS)
    many = _sinks(table)
    for kind, name in NORMS.items():
        largest = table[name].max() or 1  # of zeros no token has a share
        middles, line = binned(positions, table[name].to_numpy() / largest, width, "mean")
        text = f"{NAMES[kind][:-1]} norm{per_bin(width, 'mean')}"
        ax.plot(middles, line, "-" + alone(line), color=COLOURS[kind], lw=1.2, label=text)
        error = binned(positions, errors(table, name) / largest, width, "mean")[1]
        band(ax, middles, line, error, color=COLOURS[kind])
        own = many.assign(share=many[name] / largest)
        mark(ax, own, "share", "D", COLOURS[kind], "sinks' own" if kind == "key" else "")
    band_entry(ax, table)
    ax.set_xlabel("Token position")
    ax.set_ylabel("Norm (share of its maximum)")
    whole_numbers(ax.xaxis)
    ax.legend(loc="lower right", ncols=5, bbox_to_anchor=(1, 1), fontsize=8, columnspacing=1)


def _ranking(fig: Figure, above: Axes, below: Axes, table: pd.DataFrame) -> None:
    """Bars of the parts of importance: the highest tokens, and below a gap the sinks."""
    width = fig.get_figwidth()
    top, foot = above.get_position(), below.get_position()
    left = top.x1 + RANKING_LABELS / width
    ax = fig.add_axes((left, foot.y0, RANKING_WIDTH / width, top.y1 - foot.y0))
    ranked = _highest(table, RANKED)
    others = _sinks(table).drop(ranked.index, errors="ignore")[: config.TOP_TOKENS]
    rows = pd.concat([ranked, others])
    places = np.arange(len(rows)) + (np.arange(len(rows)) >= len(ranked)) * 0.8
    start = np.zeros(len(rows))
    for part, (name, colour) in PARTS.items():
        lengths = rows[f"importance_{part}"].to_numpy(dtype=float)
        if np.isnan(lengths).all():
            continue
        ax.barh(places, lengths, left=start, color=colour, height=0.7, label=name)
        start = start + lengths
    if n_texts(table) > 1:
        look: Look = {"ls": "none", "capsize": 2, "color": GREY}
        ax.errorbar(rows["importance"], places, xerr=errors(rows, "importance"), **look)
    of_rank = table.loc[table["well_seen"], "importance"].rank(ascending=False, method="min")
    labels = [f"{named(row)}  #{of_rank[i]:.0f}" for i, row in rows.iterrows()]
    ax.set_yticks(places, labels)
    for label in ax.get_yticklabels()[len(ranked) :]:
        label.set_color(SINK_COLOUR)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"Importance (rank # of {len(of_rank)})")
    what = "Highest, and the sinks" if len(others) else "Highest"
    ax.set_title(f"{what}: position, token, rank", fontsize=10, pad=22)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8, columnspacing=1)
