"""The tables of layers, heads, magnitudes, tokens, dimensions and stages, against brute force."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.embeddings import embedding_consistency, position_patterns, position_variance
from analysis.heads import (
    head_pruning_potential,
    head_sparsity,
    key_sparsity_by_layer_and_head,
)
from analysis.layers import layer_pruning_potential, layer_statistics
from analysis.magnitudes import magnitude_distribution
from analysis.measures import sweep
from data.cache import KINDS
from tests import caches
from tests.caches import PERCENTAGE, below


def test_layer_statistics_has_a_row_for_each_layer_and_kind_under_the_models_own_numbers():
    cache = caches.mixed()
    table = layer_statistics(sweep(cache, PERCENTAGE))
    assert list(table.columns) == [
        "layer",
        "kind",
        "sparsity",
        "std",
        "mean_abs",
        "kv_correlation",
        "hoyer_sparsity",
        "kurtosis",
        "threshold",
    ]
    limits = sweep(cache, PERCENTAGE).thresholds
    assert table.groupby("kind")["threshold"].unique().str[0].to_dict() == limits
    assert list(table["layer"]) == [0, 2, 3, 5] * 2
    for kind in KINDS:
        shares = [b.mean() for b in below(cache, kind)]
        assert list(table.loc[table["kind"] == kind, "sparsity"]) == pytest.approx(shares)
    assert table.loc[table["layer"] == 3, "kv_correlation"].isna().all()


def test_layer_potential_carries_the_mean_over_layers():
    table = layer_pruning_potential(layer_statistics(sweep(caches.mixed(), PERCENTAGE)))
    for _, rows in table.groupby("kind"):
        assert list(rows["mean_sparsity"]) == pytest.approx([rows["sparsity"].mean()] * len(rows))


def test_head_sparsity_equals_brute_force_per_head():
    cache = caches.mixed()
    table = head_sparsity(sweep(cache, PERCENTAGE)).set_index(["layer", "head", "kind"])
    assert len(table) == 2 * (2 + 3 + 1 + 1)
    for kind in KINDS:
        for layer, sparse in zip(cache.layers, below(cache, kind), strict=True):
            for head in range(layer.n_heads):
                row = table.loc[(layer.index, head, kind)]
                assert row["sparsity"] == pytest.approx(sparse[head].mean())
                magnitude = layer.tensor(kind)[head].abs().mean().item()
                assert row["mean_abs"] == pytest.approx(magnitude, rel=1e-6)


@pytest.mark.parametrize("name", caches.SHAPES)
def test_head_potential_is_mean_and_population_deviation_over_the_layers_that_have_it(name):
    cache = caches.SHAPES[name]()
    heads = head_sparsity(sweep(cache, PERCENTAGE))
    potential = head_pruning_potential(heads)
    assert len(potential) == len(KINDS) * cache.n_heads
    for row in potential.itertuples():
        of_head = heads[(heads["head"] == row.head) & (heads["kind"] == row.kind)]["sparsity"]
        assert row.sparsity_mean == pytest.approx(of_head.mean())
        assert row.sparsity_std == pytest.approx(np.std(of_head))


def test_the_key_heat_map_holds_the_keys_rows_of_the_head_table():
    heads = head_sparsity(sweep(caches.mixed(), PERCENTAGE))
    keys = key_sparsity_by_layer_and_head(heads)
    assert list(keys.columns) == ["layer", "head", "sparsity"]
    expected = heads.loc[heads["kind"] == "key", ["layer", "head", "sparsity"]]
    pd.testing.assert_frame_equal(keys, expected.reset_index(drop=True))


def test_magnitudes_left_of_the_threshold_are_the_sparse_share():
    cache = caches.mixed()
    table = magnitude_distribution(sweep(cache, PERCENTAGE))
    for kind, rows in table.groupby("kind"):
        left = rows.loc[rows["bin_right"] <= rows["threshold"], "count"].sum()
        assert left == sum(b.sum() for b in below(cache, kind))
        np.testing.assert_array_equal(rows["bin_left"].iloc[1:], rows["bin_right"].iloc[:-1])


def test_dimension_sparsity_counts_a_dimension_where_layers_have_it():
    cache = caches.mixed()
    table = embedding_consistency(sweep(cache, PERCENTAGE))
    for kind in KINDS:
        rows = table[table["kind"] == kind]
        sparse = below(cache, kind)
        assert len(rows) == max(b.shape[2] for b in sparse)
        for dim, share in zip(rows["dim"], rows["sparsity"], strict=True):
            having = [b[:, :, dim].flatten() for b in sparse if b.shape[2] > dim]
            assert share == pytest.approx(np.concatenate(having).mean())


def test_counts_beyond_what_a_float32_holds_are_exact():
    cache = caches.alike()
    swept = sweep(cache, PERCENTAGE)
    many = torch.tensor([[2**24 + 1, 2**24 + 3, 2**24 + 2, 1]])
    layer = replace(swept.sums["key"][0], n_entries=4 * (2**24 + 3), below_head_dim=many)
    huge = replace(swept, sums={kind: [layer] * 3 for kind in KINDS})
    shares = embedding_consistency(huge).query("kind == 'key'")["sparsity"]
    assert list(shares) == [n / (2**24 + 3) for n in many[0].tolist()]


def test_position_variance_is_that_of_the_mean_magnitude_over_layers_and_heads():
    cache = caches.alike()
    table = position_variance(sweep(cache, PERCENTAGE))
    for kind in KINDS:
        stack = np.concatenate([layer.tensor(kind).abs().numpy() for layer in cache.layers])
        by_position = stack.mean(0)  # (tokens, dim)
        rows = table[table["kind"] == kind]
        np.testing.assert_allclose(rows["variance"], by_position.var(0), rtol=1e-5)
        np.testing.assert_allclose(rows["mean_abs"], by_position.mean(0), rtol=1e-5)


def test_patterns_show_the_most_and_the_least_varying_dimensions():
    swept = sweep(caches.alike(), PERCENTAGE)
    variance = position_variance(swept)
    table = position_patterns(swept, variance, n_dims=2)
    for kind in KINDS:
        ranked = variance[variance["kind"] == kind].sort_values("variance")["dim"].tolist()
        rows = table[table["kind"] == kind]
        sensitive = rows[rows["pattern"] == "sensitive"]["dim"].unique().tolist()
        invariant = rows[rows["pattern"] == "invariant"]["dim"].unique().tolist()
        assert sensitive == ranked[-1:-3:-1] and invariant == ranked[:2]
        for _, line in rows.groupby(["pattern", "dim"]):
            assert line["mean_abs"].var(ddof=0) == pytest.approx(line["variance"].iloc[0], rel=1e-5)
