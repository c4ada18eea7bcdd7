"""Pictures of the comparison, by their artists and values."""

import itertools

import numpy as np
import pandas as pd
import pytest

from compression.studies import presets
from compression.studies.frontier import with_frontier
from tests.drawn import is_within
from visualization.catalogue import PICTURES

FAMILIES = presets.families()
ABOUT = "tiny (random) · test text #0 · 10 tokens"


def compared(families=tuple(FAMILIES), texts: int = 4) -> pd.DataFrame:
    names = [(f, label) for f in families for label in FAMILIES[f]]
    table = pd.DataFrame(names, columns=["family", "label"])
    rng = np.random.default_rng(0)
    table["bits_per_value"] = rng.uniform(0.8, 15, len(table))
    table["kl_mean_nats"] = np.where(table["family"] == "none", 0, rng.uniform(1e-4, 2, len(table)))
    table["delta_perplexity_percent"] = 100 * table["kl_mean_nats"] - 1
    spread = np.nan if texts == 1 else 0.01
    spreads = {"kl_mean_nats_se": spread, "delta_perplexity_percent_se": spread}
    return with_frontier(table.assign(perplexity_full=9.5, **spreads))


def found(labels: int, depths=(0.1, 0.5, 0.9)) -> pd.DataFrame:
    rows = itertools.product((f"setting {i} of a family" for i in range(labels)), depths)
    table = pd.DataFrame(rows, columns=["label", "depth"])
    share = np.linspace(0, 1, len(table))
    return table.assign(probability=share, right=share > 0.4)


TABLES = {
    "everything": ("compare/pareto", compared),
    "one text": ("compare/pareto", lambda: compared(texts=1)),
    "one family": ("compare/pareto", lambda: compared(("none", "int8"))),
    "perplexity": ("compare/perplexity", compared),
    "perplexity of one family": ("compare/perplexity", lambda: compared(("none", "int8"))),
    "needles": ("compare/needle", lambda: found(45)),
    "two needles": ("compare/needle", lambda: found(2, (0.5,))),
}


@pytest.mark.parametrize("name", TABLES)
def test_nothing_written_leaves_the_figure(name):
    stem, table = TABLES[name]
    assert is_within(PICTURES[stem](table(), ABOUT))


def test_each_family_has_its_own_look_and_dominated_settings_are_faint():
    table = compared()
    (ax,) = PICTURES["compare/pareto"](table, ABOUT).axes
    families = [f for f in dict.fromkeys(table["family"]) if f != "none"]
    handles, labels = ax.get_legend_handles_labels()
    looks = [
        (h.get_color(), h.get_marker())
        for h, name in zip(handles, labels, strict=True)
        if name in families
    ]
    assert len(set(looks)) == len(families) == len(looks)
    marks = {c[0].get_alpha() for c in ax.containers}
    assert marks == {1.0, 0.35}
    shown = sum(len(c[0].get_xdata()) for c in ax.containers)
    assert shown == (table["family"] != "none").sum()


def test_the_frontier_is_drawn_through_its_settings():
    table = compared()
    (ax,) = PICTURES["compare/pareto"](table, ABOUT).axes
    (line,) = [x for x in ax.lines if x.get_label() == "frontier"]
    on_it = table[table["frontier"] & (table["kl_mean_nats"] > 0)]
    assert list(line.get_xdata()) == list(on_it["bits_per_value"])
    assert list(line.get_ydata()) == list(on_it["kl_mean_nats"])


def test_the_legend_names_nothing_that_is_not_drawn():
    only = compared(("none", "fp8")).assign(bits_per_value=16.0)
    only["kl_mean_nats"] = np.where(only["family"] == "none", 0, 1e-4)
    (ax,) = PICTURES["compare/pareto"](with_frontier(only), ABOUT).axes
    assert ax.get_legend_handles_labels()[1] == ["fp8"]
    only["kl_mean_nats"] *= 80
    only["bits_per_value"] = np.where(only["family"] == "none", 16, 8)
    (ax,) = PICTURES["compare/pareto"](with_frontier(only), ABOUT).axes
    assert ax.get_legend_handles_labels()[1] == ["fp8", "frontier", "0.01 nats"]


def test_wrong_answers_are_crosses():
    table = found(4)
    (ax,) = PICTURES["compare/needle"](table, ABOUT).axes
    drawn = {"o": 0, "x": 0}
    for line in ax.lines:
        drawn[line.get_marker()] += len(line.get_xdata())
    assert drawn == {"o": table["right"].sum(), "x": (~table["right"]).sum()}
