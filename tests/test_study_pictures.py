"""Pictures of pruning and of fewer dimensions, by their artists and values, at awkward sizes."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analysis.heuristics import SPARES
from compression.methods.dim_groups import dimension_groups
from tests import caches
from tests.drawn import is_within
from visualization.catalogue import PICTURES

ABOUT = "tiny (random) · test text #0 · 10 tokens"


def impact(n_choices: int, controls: int = 3, zero: bool = False) -> pd.DataFrame:
    rows = []
    for i in range(n_choices):
        for role in ["chosen"] + ["control"] * controls:
            kl = 0.0 if zero else 0.01 * (i + 1) * (2 if role == "control" else 1)
            what = f"choice {i} of some length, which says what was pruned and why (as asked)"
            scores = {"ratio": 1 + i / 2, "kl_mean_nats": kl, "kl_mean_nats_se": np.nan}
            rows.append({"choice": what, "level": "layer", "role": role} | scores)
    return pd.DataFrame(rows)


def correlations(parts=("key", "value", "head")) -> pd.DataFrame:
    rows = itertools.product(parts, ("removed", "noise"), SPARES)
    table = pd.DataFrame(rows, columns=["part", "damage", "heuristic"]).assign(parts=30)
    table["spearman"] = np.linspace(-0.9, 0.9, len(table))
    return table.assign(low=table["spearman"] - 0.1, high=table["spearman"] + 0.1)


def costs(n_layers: int, n_heads: int) -> pd.DataFrame:
    parts = [("key", -1), ("value", -1), *(("head", h) for h in range(n_heads))]
    rows = itertools.product(range(n_layers), parts, ("removed", "noise"))
    table = pd.DataFrame([{"layer": i, "part": p, "head": h, "damage": d} for i, (p, h), d in rows])
    kl = np.geomspace(1e-7, 1, len(table))
    return table.assign(kl_mean_nats=kl, sparsity=np.linspace(0, 1, len(table)))


def ways(unrotated=(False, True)) -> pd.DataFrame:
    methods = ("merged_dims", "dropped_dims", "embedding_factor", "pca", "calibrated_pca")
    rows = list(itertools.product(unrotated, methods, (0.75, 0.5, 0.25)))
    table = pd.DataFrame(rows, columns=["unrotated_keys", "method", "keep"])
    table["bits_per_value"] = 16 * table["keep"]
    table["kl_mean_nats"] = np.linspace(0.5, 0.001, len(table))
    table["delta_perplexity_percent"] = 100 * table["kl_mean_nats"]
    spreads = {"kl_mean_nats_se": 0.01, "delta_perplexity_percent_se": 1.0}
    return table.assign(perplexity_full=10.0, **spreads)


def groups(shape: str) -> pd.DataFrame:
    return dimension_groups(caches.SHAPES[shape](), 0.4, 8)


TABLES = {
    "one choice": ("pruning/pruning_impact", lambda: impact(1)),
    "many choices": ("pruning/pruning_impact", lambda: impact(9)),
    "choices without cost or control": ("pruning/pruning_impact", lambda: impact(2, 0, True)),
    "trial": ("pruning/heuristics_on_trial", correlations),
    "trial of heads alone": ("pruning/heuristics_on_trial", lambda: correlations(("head",))),
    "costs": ("pruning/cost_of_each_part", lambda: costs(30, 3)),
    "costs of many": ("pruning/cost_of_each_part", lambda: costs(80, 8)),
    "costs of one layer": ("pruning/cost_of_each_part", lambda: costs(1, 1)),
    "ways": ("embeddings/dimension_compression", ways),
    "ways of rotated keys": ("embeddings/dimension_compression", lambda: ways((False,))),
    "groups": ("similarity/embedding_dimension_groups", lambda: groups("alike")),
    "groups of unequal layers": ("similarity/embedding_dimension_groups", lambda: groups("mixed")),
    "groups of one dim": (
        "similarity/embedding_dimension_groups",
        lambda: groups("one entry a head"),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_nothing_written_leaves_the_figure(name):
    stem, table = TABLES[name]
    assert is_within(PICTURES[stem](table(), ABOUT))


def test_saved_bytes_and_costs_stand_on_the_row_of_their_choice():
    table = impact(3)
    left, right = PICTURES["pruning/pruning_impact"](table, ABOUT).axes
    chosen = table[table["role"] == "chosen"]
    assert [bar.get_width() for bar in left.patches] == pytest.approx(1 - 1 / chosen["ratio"])
    points = right.collections[0].get_offsets()
    controls = table[table["role"] == "control"]
    np.testing.assert_allclose(points[:, 0], controls["kl_mean_nats"])
    assert points[:, 1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    (marks, _, _) = right.containers[0]
    assert list(marks.get_xdata()) == list(chosen["kl_mean_nats"])


def test_correlations_are_on_the_line_of_their_heuristic():
    table = correlations()
    left, right = PICTURES["pruning/heuristics_on_trial"](table, ABOUT).axes
    names = [text.get_text() for text in left.get_yticklabels()]
    for ax, damage in ((left, "removed"), (right, "noise")):
        for part, container in zip(("key", "value", "head"), ax.containers, strict=True):
            rows = table[(table["part"] == part) & (table["damage"] == damage)]
            marks = container[0]
            assert list(marks.get_xdata()) == list(rows["spearman"])
            lines = [names[round(y)] for y in marks.get_ydata()]
            assert lines == [name.replace("_", " ") for name in rows["heuristic"]]


def test_groups_are_means_over_heads_on_one_scale():
    table = groups("alike")
    keys, values = PICTURES["similarity/embedding_dimension_groups"](table, ABOUT).axes[:2]
    for ax, kind in ((keys, "key"), (values, "value")):
        rows = table[table["kind"] == kind]
        means = rows.groupby(["layer", "dim"])["group_size"].mean().unstack()
        np.testing.assert_allclose(ax.images[0].get_array(), means)
    assert keys.images[0].get_clim() == values.images[0].get_clim()
