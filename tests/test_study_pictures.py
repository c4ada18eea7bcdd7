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
    noise = np.where(table["damage"] == "noise", 0.3, np.nan)
    return table.assign(kl_mean_nats=kl, noise=noise, sparsity=np.linspace(0, 1, len(table)))


def ways(unrotated=(False, True)) -> pd.DataFrame:
    methods = ("merged_dims", "dropped_dims", "embedding_factor", "pca", "calibrated_pca")
    rows = list(itertools.product(unrotated, methods, (0.75, 0.5, 0.25)))
    table = pd.DataFrame(rows, columns=["unrotated_keys", "method", "keep"])
    table["bits_per_value"] = 16 * table["keep"]
    table["kl_mean_nats"] = np.linspace(0.5, 0.001, len(table))
    table["delta_perplexity_percent"] = 100 * table["kl_mean_nats"]
    spreads = {"kl_mean_nats_se": 0.01, "delta_perplexity_percent_se": 1.0}
    return table.assign(perplexity_full=10.0, **spreads)


def heads_of(ax) -> np.ndarray:
    """(heads, 2) where they are drawn."""
    return ax.collections[0].get_offsets().data


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
    "costs of many heads": ("pruning/cost_of_each_part", lambda: costs(80, 64)),
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


def test_a_few_percent_saved_fill_the_panel():
    table = impact(3).assign(ratio=[1 / (1 - 0.02 * i) for i in range(1, 4) for _ in range(4)])
    left, _ = PICTURES["pruning/pruning_impact"](table, ABOUT).axes
    assert left.get_xlim() == pytest.approx((0, 1.25 * 0.06))
    worse = impact(2).assign(ratio=0.9)  # masks take more than is saved
    left, _ = PICTURES["pruning/pruning_impact"](worse, ABOUT).axes
    assert left.get_xlim()[0] < 1 - 1 / 0.9


def test_costs_of_heads_stand_by_layer_and_head_and_the_dearest_and_the_cheapest_are_named():
    table = costs(30, 3)
    table["kl_mean_nats"] = np.random.default_rng(0).permutation(table["kl_mean_nats"])
    figure = PICTURES["pruning/cost_of_each_part"](table, ABOUT)
    ax = figure.axes[1]
    rows = table[(table["part"] == "head") & (table["damage"] == "removed")]
    points = heads_of(ax)
    np.testing.assert_allclose(points[:, 1], rows["kl_mean_nats"])
    assert (points[:, 0].round() == rows["layer"]).all()  # beside each other, in their layer
    assert len(set(points[:, 0])) == len(rows)
    named = [text.get_text() for text in ax.texts]
    by_cost = [f"{row.layer}:{row.head}" for row in rows.sort_values("kl_mean_nats").itertuples()]
    assert sorted(named) == sorted(by_cost[:4] + by_cost[-4:])
    assert "30% relative error" in figure.axes[3].get_title("left")


def test_many_heads_are_drawn_as_the_spread_of_each_layer():
    table = costs(5, 40)
    figure = PICTURES["pruning/cost_of_each_part"](table, ABOUT)
    ax = figure.axes[1]
    rows = table[(table["part"] == "head") & (table["damage"] == "removed")]
    by_layer = rows.groupby("layer")["kl_mean_nats"]
    spans = np.array([line[:, 1] for line in ax.collections[0].get_segments()])
    np.testing.assert_allclose(spans, np.stack([by_layer.min(), by_layer.max()], axis=1))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), by_layer.median())
    assert len(ax.texts) == 8 and len(figure.axes) == 6


def test_sparsity_has_a_panel_of_its_own():
    table = costs(5, 2)
    figure = PICTURES["pruning/cost_of_each_part"](table, ABOUT)
    rows = table[(table["part"] == "head") & (table["damage"] == "removed")]
    np.testing.assert_allclose(heads_of(figure.axes[5])[:, 1], rows["sparsity"])
    assert len(figure.axes) == 7  # with the colours of heads, and no second axis in any panel


def test_each_point_of_fewer_dimensions_has_its_share_and_16_bits_have_a_line():
    table = ways((False,))
    for ax in PICTURES["embeddings/dimension_compression"](table, ABOUT).axes:
        named = [text.get_text() for text in ax.texts]
        assert all(named.count(share) == 5 for share in ("75%", "50%", "25%"))
        assert [16, 16] in [list(line.get_xdata()) for line in ax.lines]
        low, high = np.log(ax.get_xlim())
        assert (np.log(16) - np.log(4)) / (high - low) > 0.7  # what is measured fills the panel


def test_a_panel_without_groups_says_so():
    table = groups("alike").assign(group_size=1, group_share=1.0)
    deep = pd.concat([table.assign(layer=i) for i in range(80)])
    assert PICTURES["similarity/embedding_dimension_groups"](deep, ABOUT).get_figheight() < 6
    for ax in PICTURES["similarity/embedding_dimension_groups"](table, ABOUT).axes[:2]:
        assert "none is merged" in ax.texts[0].get_text()
        assert "0.00% go together, 100.0% would be stored" in ax.get_title("left")
    for ax in PICTURES["similarity/embedding_dimension_groups"](groups("alike"), ABOUT).axes[:2]:
        assert not ax.texts


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
