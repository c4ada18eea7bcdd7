"""Pictures of the comparison, by their artists and values."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from compression.studies import presets
from compression.studies.frontier import with_frontier
from tests.drawn import is_within
from visualization import families
from visualization.catalogue import PICTURES
from visualization.compare import FAINT

FAMILIES = presets.families()
ABOUT = "tiny (random) · test text #0 · 10 tokens"


def compared(chosen=tuple(FAMILIES), texts: int = 4) -> pd.DataFrame:
    names = [(f, label) for f in chosen for label in FAMILIES[f]]
    table = pd.DataFrame(names, columns=["family", "label"])
    rng = np.random.default_rng(0)
    table["bits_per_value"] = rng.uniform(0.8, 15, len(table))
    table["kl_mean_nats"] = np.where(table["family"] == "none", 0, rng.uniform(1e-4, 2, len(table)))
    table["delta_perplexity_percent"] = 100 * table["kl_mean_nats"] - 1
    spread = np.nan if texts == 1 else 0.01
    once = table["family"].isin(["coded", "coded_fixed"])
    table["per_model_bytes"] = np.where(once, 3 * 2**20, 0)
    table["pays_from_tokens"] = np.where(once, 1000.0 + table.index, np.nan)
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


def families_in_legend(ax) -> dict[str, object]:
    """The first line of each entry -> its handle."""
    handles, labels = ax.get_legend_handles_labels()
    return {label.splitlines()[0]: handle for handle, label in zip(handles, labels, strict=True)}


def test_each_family_has_its_own_look_and_dominated_settings_are_faint():
    table = compared()
    (ax,) = PICTURES["compare/pareto"](table, ABOUT).axes
    entries = families_in_legend(ax)
    families = [f for f in dict.fromkeys(table["family"]) if f != "none"]
    looks = [(entries[f].get_color(), entries[f].get_marker()) for f in families]
    assert len(set(looks)) == len(families)
    marks = {c[0].get_alpha() for c in ax.containers}
    assert marks == {1.0, FAINT}
    shown = sum(len(c[0].get_xdata()) for c in ax.containers)
    assert shown == (table["family"] != "none").sum()


def test_no_two_families_have_colours_that_are_taken_for_each_other():
    compared_families = len(FAMILIES) - 1
    looks = [families.look(i) for i in range(compared_families)]
    lab = np.array([as_seen(look["color"]) for look in looks])
    apart = np.linalg.norm(lab[:, None] - lab, axis=2) + 1000 * np.eye(len(lab))
    assert apart.min() > 15  # of CIELAB: 2 are told apart side by side
    alike = np.argwhere(apart < 30)
    assert all(looks[i]["marker"] != looks[j]["marker"] for i, j in alike)


def as_seen(colour: str) -> np.ndarray:
    """CIELAB of a colour of sRGB."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1, 1.089] + 1e-9)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("picture", ["pareto", "perplexity"])
def test_every_setting_is_named_once_or_counted_as_left_out(picture):
    table = compared()
    (ax,) = PICTURES[f"compare/{picture}"](table, ABOUT).axes
    named = Counter(text.get_text() for text in ax.texts)
    shown = table[table["family"] != "none"]
    expected = Counter(
        row.label if row.frontier else families.short(row.label, row.family)
        for row in shown.itertuples()
    )
    missing = expected - named
    said = ax.get_legend().get_title().get_text()
    assert ("left out" in said) == bool(missing)
    assert not missing or f"{missing.total()} name" in said
    assert all(label in named for label in shown.loc[shown["frontier"], "label"])


def test_the_legend_says_what_is_stored_once_for_the_model_and_from_where_it_pays():
    table = compared()
    (ax,) = PICTURES["compare/pareto"](table, ABOUT).axes
    labels = ax.get_legend_handles_labels()[1]
    (coded,) = [label for label in labels if label.startswith("coded\n")]
    pays = table.loc[table["family"] == "coded", "pays_from_tokens"]
    assert f"3 MiB once per model,\n   pays from {pays.min():,.0f}–{pays.max():,.0f}" in coded
    assert sum("once per model" in label for label in labels) == 2
    never = families.once_per_model(table[table["family"] == "coded"].assign(pays_from_tokens=-5.0))
    assert never.endswith("never paid back")


@pytest.mark.parametrize("error", [0.5, 60.0])
def test_no_error_bar_of_the_perplexity_is_cut_off_and_the_scale_is_said(error):
    table = compared().assign(delta_perplexity_percent_se=error)
    (ax,) = PICTURES["compare/perplexity"](table, ABOUT).axes
    change = table.loc[table["family"] != "none", "delta_perplexity_percent"]
    low, high = ax.get_ylim()
    assert low < change.min() - error and change.max() + error < high
    assert "even between -1 and +1 %, logarithmic beyond" in ax.get_ylabel()
    assert {"0 %", "+10 %", "+100 %"} <= {tick.get_text() for tick in ax.get_yticklabels()}


def test_what_stores_more_than_16_bits_is_in_sight_beside_their_line():
    table = compared().assign(bits_per_value=lambda t: t["bits_per_value"] * 3)
    (ax,) = PICTURES["compare/pareto"](table, ABOUT).axes
    assert ax.get_xlim()[1] > table["bits_per_value"].max() > 16
    assert [16, 16] in [list(line.get_xdata()) for line in ax.lines]


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
    assert ax.get_legend_handles_labels()[1] == ["0.01 nats: called cheap", "frontier", "fp8"]


def test_wrong_answers_are_crosses():
    table = found(4)
    (ax,) = PICTURES["compare/needle"](table, ABOUT).axes
    drawn = {"o": 0, "x": 0}
    for line in ax.lines:
        drawn[line.get_marker()] += len(line.get_xdata())
    assert drawn == {"o": table["right"].sum(), "x": (~table["right"]).sum()}
    assert "share of the context's length" in ax.get_legend().get_title().get_text()
