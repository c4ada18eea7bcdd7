"""Pictures of tasks: what every setting stores, and how much the model still gets right."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visualization.families import COLOURS, MARKERS
from visualization.style import Look, figure, log_from, plain_log, styled

COLUMNS = 4


@styled
def accuracy(table: pd.DataFrame, about: str) -> Figure:
    """Accuracy against stored bits, a panel for each task; those that the model itself cannot do
    last and grey."""
    tasks = table.drop_duplicates("task").sort_values("counted", ascending=False, kind="stable")
    columns = min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = (3.4 * columns + 3.6, 2.7 * rows + 1.4)
    fig, grid = figure(
        "Tasks: what every setting stores, and what the model still gets right", about, size,
        rows, columns, right=2.4, squeeze=False, gap=(0.75, 0.75), sharex=True,
    )  # fmt: skip
    looks = _looks(table)
    panels = grid.flatten()
    for ax, (_, task) in zip(panels, tasks.iterrows(), strict=False):
        of_task = table[table["task"] == task["task"]]
        full = task["accuracy_full"]
        for label, row in of_task.set_index("label").iterrows():
            if label == "none":
                continue
            spread = row["difference_se"] if pd.notna(row["difference_se"]) else 0
            look = looks[label]
            filled = {} if row["engaged"] else {"mfc": "none"}
            ax.errorbar(row["bits_per_value"], row["accuracy"], yerr=spread, **look, **filled)
        ax.axhline(full, color="#555555", ls=":", lw=1.2)
        apart = "" if task["counted"] else " (not averaged)"
        ax.set_title(f"{task['task']}{apart}", color="black" if task["counted"] else "#888888")
        ax.set_ylim(-0.06, 1.06)
        ax.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        _bits(ax)
    for ax in panels[len(tasks) :]:
        ax.remove()
    for row in grid:
        row[0].set_ylabel("Accuracy")
    for ax in panels[max(0, len(tasks) - columns) : len(tasks)]:
        ax.set_xlabel("Stored bits per value")
        ax.tick_params(labelbottom=True)
    _legend(grid[0][-1], looks, "untouched cache")
    return fig


@styled
def going_on(table: pd.DataFrame, about: str) -> Figure:
    """How long the model says the same, and how far its predictions are off on the way."""
    lengths = sorted(table["tokens"].unique())
    size = (max(4.6 * len(lengths), 6.0) + 3.6, 7.2)
    fig, grid = figure(
        "How the model goes on from a compressed cache", about,
        size, 2, len(lengths), right=2.4, squeeze=False, gap=(0.95, 0.8),
    )  # fmt: skip
    looks = _looks(table)
    for column, n in enumerate(lengths):
        above, below = grid[0][column], grid[1][column]
        rows = table[(table["tokens"] == n) & (table["label"] != "none")].set_index("label")
        shown = rows[["kl_p50_nats", "kl_p99_nats", "kl_max_nats"]].stack()
        floor = log_from(below, shown, axis="y")
        for label, row in rows.iterrows():
            bits, look = row["bits_per_value"], looks[label]
            above.plot(bits, row["equal_share"], **look)
            low, middle, high = (
                max(row[f"kl_{each}_nats"], floor) for each in ("p50", "p99", "max")
            )
            below.plot([bits] * 2, [middle, high], color=look["color"], lw=1.2)
            below.plot(bits, middle, **look)
            below.plot(bits, low, **look | {"mfc": "none"})
        above.set_title(f"{n} tokens")
        above.set_ylim(-0.03, 1.03)
        above.yaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        below.set_title("hollow: median, full: 99th percentile, line: to the largest", fontsize=9)
        for ax in (above, below):
            _bits(ax)
            ax.set_xlabel("Stored bits per value")
    grid[0][0].set_ylabel("Share of tokens that stay the same")
    grid[1][0].set_ylabel("KL along its own words (nats)")
    _legend(grid[0][-1], looks, None)
    return fig


def _looks(table: pd.DataFrame) -> dict[str, Look]:
    """A colour for each family, a marker for each of its settings."""
    looks: dict[str, Look] = {}
    families = table["label"].map(_family)
    order = [family for family in dict.fromkeys(families) if family != "none"]
    for number, family in enumerate(order):
        labels = dict.fromkeys(table["label"][families == family])
        for i, label in enumerate(labels):
            looks[label] = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "ls": "none",
                "ms": 6,
            }
    return looks


def _family(label: str) -> str:
    return label.replace("-", " ").split(" ")[0]


def _bits(ax: Axes) -> None:
    ax.set_xscale("log")
    plain_log(ax.xaxis, steps=(1.0, 2.0, 5.0))


def _legend(ax: Axes, looks: dict[str, Look], dotted: str | None) -> None:
    for label, look in looks.items():
        ax.plot([], [], label=label, **look)
    if dotted is not None:
        ax.plot([], [], color="#555555", ls=":", lw=1.2, label=dotted)
    ax.legend(loc="upper left", bbox_to_anchor=(1.04, 1.0))
