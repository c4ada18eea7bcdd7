"""Pictures of tasks, by their artists and values."""

import itertools

import numpy as np
import pandas as pd
import pytest

from data.tasks.catalogue import TASKS
from tests.drawn import is_within, texts_of
from visualization.catalogue import PICTURES

ABOUT = "tiny (random) · test text #0: $a_b$ · 10 tokens"
LABELS = ("none", "coded 1.0e-04", "coded 2.0e-04", "kvtc 16", "kivi-4", "kivi-2", "snapkv 0.5")


def accuracies(tasks=tuple(TASKS), labels=LABELS, exams=4) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(itertools.product(tasks, labels), columns=["task", "label"])
    full = dict(zip(tasks, rng.uniform(0, 1, len(tasks)), strict=True))
    table["accuracy_full"] = table["task"].map(full)
    table["accuracy"] = (table["accuracy_full"] * rng.uniform(0.3, 1, len(table))).round(2)
    table["difference_se"] = np.nan if exams == 1 else 0.05
    table["bits_per_value"] = rng.uniform(0.3, 8, len(table))
    table["engaged"] = table["label"] != "kivi-4"
    return table.assign(counted=table["accuracy_full"] >= 0.2)


def went_on(lengths=(64, 256), labels=LABELS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(itertools.product(lengths, labels), columns=["tokens", "label"])
    some = (table["label"] != "none").astype(float)
    table["bits_per_value"] = rng.uniform(0.3, 8, len(table))
    table["equal_share"] = 1 - some * rng.uniform(0, 1, len(table))
    for i, name in enumerate(("p50", "p99", "max")):
        table[f"kl_{name}_nats"] = some * 10.0 ** (i - 4) * rng.uniform(1, 2, len(table))
    return table


TABLES = {
    "all tasks": ("tasks/accuracy", accuracies),
    "one exam each": ("tasks/accuracy", lambda: accuracies(exams=1)),
    "one task": ("tasks/accuracy", lambda: accuracies(("niah_single_1",))),
    "five tasks, one setting": ("tasks/accuracy", lambda: accuracies(tuple(TASKS)[:5], LABELS[:2])),
    "going on": ("tasks/going_on", went_on),
    "going on, one length": ("tasks/going_on", lambda: went_on((64,), LABELS[:2])),
    "nothing lost": ("tasks/going_on", lambda: went_on().assign(kl_p99_nats=0.0)),
}


@pytest.mark.parametrize("name", TABLES)
def test_nothing_written_leaves_the_figure(name):
    stem, table = TABLES[name]
    assert is_within(PICTURES[stem](table(), ABOUT))


def test_a_panel_shows_its_task_and_the_untouched_cache_as_a_line():
    table = accuracies()
    figure = PICTURES["tasks/accuracy"](table, ABOUT)
    panels = {ax.get_title().split(" ")[0]: ax for ax in figure.axes if ax.get_visible()}
    assert set(panels) == set(TASKS)
    for task, ax in panels.items():
        rows = table[(table["task"] == task) & (table["label"] != "none")]
        drawn = {
            (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6))
            for line in ax.lines
            if len(line.get_xdata()) == 1
        }
        points = zip(rows["bits_per_value"], rows["accuracy"], strict=True)
        assert {(round(x, 6), round(y, 6)) for x, y in points} <= drawn
        dotted = [
            line for line in ax.lines if line.get_linestyle() == ":" and len(line.get_ydata())
        ]
        assert float(dotted[0].get_ydata()[0]) == pytest.approx(rows["accuracy_full"].iloc[0])


def test_tasks_that_are_not_averaged_say_so_and_come_last():
    table = accuracies()
    titles = [ax.get_title() for ax in PICTURES["tasks/accuracy"](table, ABOUT).axes]
    apart = [title.endswith("(not averaged)") for title in titles if title]
    n_apart = table.drop_duplicates("task")["counted"].eq(False).sum()
    assert sum(apart) == n_apart > 0 and apart == sorted(apart)


def test_what_did_not_engage_is_hollow():
    figure = PICTURES["tasks/accuracy"](accuracies(("niah_single_1",)), ABOUT)
    hollow = [x for x in figure.axes[0].lines if x.get_markerfacecolor() == "none"]
    assert len(hollow) == 1


def test_each_setting_has_its_own_look_that_the_legend_names():
    for stem, table in (("tasks/accuracy", accuracies()), ("tasks/going_on", went_on())):
        figure = PICTURES[stem](table, ABOUT)
        assert set(LABELS[1:]) <= set(texts_of(figure))
        (legend,) = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
        looks = {(h.get_color(), h.get_marker()) for h in legend.legend_handles}
        assert len(looks) == len(legend.legend_handles)
