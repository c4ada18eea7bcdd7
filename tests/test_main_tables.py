"""The table that a run ends with: the numbers of its tables, and no more rows than one reads."""

import numpy as np
import pandas as pd
import pytest

from tests import drawn
from visualization import main_tables
from visualization.catalogue import PICTURES
from visualization.table_choices import CHOICES, ROWS, Column


def compared(n: int) -> pd.DataFrame:
    """Of n settings every third is on the frontier; others cost the more, the larger they are."""
    place = np.arange(n)
    return pd.DataFrame(
        {
            "label": [f"setting {i}" for i in place],
            "bits_per_value": 1.0 + place,
            "ratio": 16 / (1.0 + place),
            "bytes_per_token": 1000.0 * (1 + place),
            "kl_mean_nats": 0.001 * (place + 1),
            "kl_mean_nats_se": 0.0002,
            "delta_perplexity_percent": -1e-9,
            "frontier": place % 3 == 0,
        }
    )


def of(stem: str, table: pd.DataFrame) -> main_tables.MainTable:
    found = main_tables.of({"cache_inventory": pd.DataFrame({"a": [1]}), stem: table})
    assert found is not None
    return found


def test_a_setting_is_a_row_with_its_errors_and_the_frontier_marked():
    table = of("compare/compare", compared(4))
    assert table.cells[:2] == [
        ["* setting 0", "1.00", "16.00", "1,000", "0.0010 ± 0.0002", "0.00"],
        ["  setting 1", "2.00", "8.00", "2,000", "0.0020 ± 0.0002", "0.00"],
    ]
    assert table.strong == [True, False, False, True] and table.n_left_out == 0
    assert table.are_numbers == [False, *[True] * 5]
    assert "*: no other is smaller" in table.title


def test_too_many_settings_leave_out_those_that_cost_most_beside_the_frontier():
    table = of("compare/compare", compared(50))
    kept = list(table.shown["label"])
    frontier = [f"setting {i}" for i in range(0, 50, 3)]
    assert len(kept) == ROWS and table.n_left_out == 30 and set(frontier) <= set(kept)
    assert set(kept) - set(frontier) == {"setting 1", "setting 2", "setting 4"}
    assert kept == sorted(kept, key=lambda label: int(label.split()[1]))
    assert [row["label"] for row in table.facts["rows"]] == list(table.rows["label"])
    assert table.facts["rows"][1]["frontier"] is False


@pytest.mark.parametrize("n_layers", [1, 20, 21, 30, 80])
def test_layers_are_shown_over_the_whole_depth(n_layers):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"layer": [*range(n_layers)] * 2, "kind": ["key"] * n_layers + ["value"] * n_layers}
    ).assign(sparsity=rng.random(2 * n_layers), mean_abs=1.0, kv_correlation=float("nan"))
    found = of("layers/layer_statistics", table)
    layers = list(found.shown["layer"])
    assert len(layers) == min(n_layers, ROWS) and {0, n_layers - 1} <= set(layers)
    gaps = np.diff(layers)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    own = table.set_index(["kind", "layer"])["sparsity"]
    for cells in found.cells:
        layer = int(cells[0])
        assert cells[1:3] == [f"{100 * own[kind, layer]:.1f}" for kind in ("key", "value")]
    assert len(found.columns) == 5  # what was not measured has no column


def test_what_was_pruned_stands_beside_the_mean_of_as_much_at_random():
    table = pd.DataFrame(
        {
            "choice": ["a", "a", "a", "b"],
            "role": ["chosen", "control", "control", "chosen"],
            "ratio": [2.0, 2.0, 2.0, 1.25],
            "kl_mean_nats": [0.1, 0.2, 0.4, 0.5],
            "delta_perplexity_percent": [1.0, 2.0, 3.0, 4.0],
        }
    )
    assert of("pruning/pruning_impact", table).cells == [
        ["a", "50.0", "0.1000", "+1.00", "0.3000"],
        ["b", "20.0", "0.5000", "+4.00", ""],
    ]


def test_of_each_model_the_smallest_cheap_setting_or_else_the_dearest_is_left(monkeypatch):
    monkeypatch.setattr("config.ACCEPTABLE_KL", 0.01)
    rows = [
        ("one", "none", 1.0, 0.0),
        ("one", "int8", 1.8, 0.001),
        ("one", "kivi", 3.0, 0.009),
        ("one", "svd", 4.0, 0.02),
        ("other", "kivi", 3.0, 0.09),
        ("other", "svd", 4.0, 0.05),
    ]
    table = pd.DataFrame(rows, columns=["model", "method", "ratio", "kl_mean_nats"])
    table = table.assign(settings="", bits_per_value=1.0, delta_perplexity_percent=0.0)
    found = of("models/models", table)
    assert [cells[:2] for cells in found.cells] == [["one", "kivi"], ["other", "svd"]]


def test_of_each_share_that_is_kept_the_best_ways_are_shown():
    rng = np.random.default_rng(1)
    keeps = np.repeat([0.25, 0.5, 0.75], 12)
    table = pd.DataFrame({"keep": keeps, "kl_mean_nats": rng.random(36)}).assign(
        method="pca",
        settings=["unrotated_keys=True", ""] * 18,
        bits_per_value=8.0,
        ratio=2.0,
        delta_perplexity_percent=0.0,
    )
    shown = of("embeddings/dimension_compression", table).shown
    assert list(shown["keep"]) == sorted(shown["keep"], reverse=True)
    for keep, rows in shown.groupby("keep"):
        best = table[table["keep"] == keep].nsmallest(len(rows), "kl_mean_nats")
        assert len(rows) in (6, 7) and list(rows["kl_mean_nats"]) == list(best["kl_mean_nats"])
        unrotated = best["settings"] != ""
        assert list(rows["keys"] == "unrotated") == list(unrotated)


def test_numbers_have_no_minus_zero_and_missing_ones_are_empty():
    column = Column("x", "x", "+.2f", 100)
    assert [column.cell({"x": x}) for x in (-1e-9, 0.0, 0.001, -0.5, float("nan"))] == [
        *("0.00", "0.00", "+0.10", "-50.00", ""),
    ]
    assert column.cell({"x": 0.5, "x_se": 0.01}) == "+50.00 ± 1.00"
    assert column.cell({"x": 0.5, "x_se": float("nan")}) == "+50.00"


def test_every_focus_of_an_analysis_has_a_main_table_of_its_own():
    tables = drawn.made(drawn.usual())
    stems = {choice.stem for choice in CHOICES}
    own = [stem for stem in tables if stem in stems]
    assert {stem.split("/")[0] for stem in own} == {"layers", "heads", "tokens", "embeddings"}
    for stem in own:
        found = of(stem, tables[stem])
        assert 0 < len(found.cells) <= ROWS
        assert all(len(cells) == len(found.columns) for cells in found.cells)
    assert main_tables.of(tables).choice.stem == "layers/layer_statistics"
    assert main_tables.of({}) is None


def test_what_a_picture_is_drawn_from_is_named_as_the_catalogue_has_it():
    files_alone = {"compare/compare", "tucker/summary", "similarity/potential_savings"}
    assert {choice.stem for choice in CHOICES} - files_alone - {"spectrum/ranks"} <= set(PICTURES)
