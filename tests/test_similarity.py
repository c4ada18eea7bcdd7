"""Similarities against brute force in numpy, their invariances, and what becomes a group."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import clusters, geometry, similarity
from data.cache import KVCache
from data.rotary import NOT_ROTATED
from tests import caches
from tests.bruteforce import cka, cosine, entries, joined

KINDS = similarity.KINDS
every_shape = pytest.mark.parametrize("name", caches.SHAPES)
RANK = 3


def positions_of(cache: KVCache) -> torch.Tensor:
    return similarity.shared_positions(cache, 8)


def overlap(x, y, rank) -> float:
    if len(x) == 1:
        return math.nan
    left = [np.linalg.svd(z - z.mean(0))[0] for z in (x, y)]
    r = min(rank, *(np.linalg.matrix_rank(z - z.mean(0), rtol=1e-5) for z in (x, y)))
    return (np.linalg.svd(left[0][:, :r].T @ left[1][:, :r])[1] ** 2).mean()


def of_layers(cache) -> pd.DataFrame:
    return similarity.layer_similarity(cache, KINDS, positions_of(cache), RANK)


def of_kind(table, kind):
    return table[table["kind"] == kind]


def pivot(table, kind, measure) -> pd.DataFrame:
    return of_kind(table, kind).pivot(index="layer_a", columns="layer_b", values=measure)


def with_values(values) -> KVCache:
    """Layers alike but for their values, each (kv_heads, tokens, dim)."""
    cache = caches.cache(*(caches.layer(i, 3, 10, (8, 8)) for i in range(len(values))))
    pairs = zip(cache.layers, values, strict=True)
    return replace(cache, layers=tuple(replace(layer, values=v) for layer, v in pairs))


def noise(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_shared_positions_are_evenly_spread_over_what_every_layer_holds():
    assert similarity.shared_positions(caches.mixed(), 99).tolist() == [4, 5, 6, 7, 8, 9]
    assert similarity.shared_positions(caches.alike(), 4).tolist() == [0, 3, 6, 9]
    assert similarity.shared_positions(caches.alike(), 1).tolist() == [0]


def test_positions_that_a_head_has_lost_are_not_shared():
    cache = caches.alike()
    keep = torch.ones(3, 10, dtype=torch.bool)
    keep[1, 5] = False
    layers = (replace(cache.layers[0], keep=keep), *cache.layers[1:])
    shared = similarity.shared_positions(replace(cache, layers=layers), 99)
    assert shared.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_layer_that_lacks_a_position_is_an_error_not_another_position():
    with pytest.raises(ValueError, match="layer 0 does not hold all of the 10 positions"):
        similarity.layer_similarity(caches.mixed(), ("key",), torch.arange(10), RANK)


def test_unrotated_keys_are_compared_where_it_is_known_what_rotated_them():
    cache = caches.alike()
    assert similarity.comparable_kinds(cache) == KINDS
    unknown = (replace(cache.layers[0], rotary=None), *cache.layers[1:])
    assert similarity.comparable_kinds(replace(cache, layers=unknown)) == ("key", "value")
    never = tuple(replace(layer, rotary=NOT_ROTATED) for layer in cache.layers)
    assert similarity.comparable_kinds(replace(cache, layers=never)) == ("key", "value")
    some = (replace(cache.layers[0], rotary=NOT_ROTATED), *cache.layers[1:])
    mixed = replace(cache, layers=some)
    assert similarity.comparable_kinds(mixed) == KINDS
    assert len(of_layers(mixed)) == 3 * 4 * 4


@every_shape
def test_layers_equal_brute_force_both_ways(name):
    cache = caches.SHAPES[name]()
    positions, table = positions_of(cache), of_layers(cache)
    assert len(table) == len(KINDS) * cache.n_layers**2
    assert set(table["n_positions"]) == {len(positions)}
    layers = {layer.index: layer for layer in cache.layers}
    for row in table.itertuples():
        x, y = (entries(layers[i], row.kind, positions) for i in (row.layer_a, row.layer_b))
        assert row.cosine == pytest.approx(cosine(x, y), abs=1e-5, nan_ok=True)
        x, y = joined(x), joined(y)
        assert row.cka == pytest.approx(cka(x, y), abs=1e-5, nan_ok=True)
        assert row.subspace == pytest.approx(overlap(x, y, RANK), abs=1e-4, nan_ok=True)


@every_shape
def test_heads_equal_brute_force_and_each_pair_stands_once(name):
    cache = caches.SHAPES[name]()
    positions = positions_of(cache)
    table = similarity.head_similarity(cache, KINDS, positions)
    n = sum(layer.n_heads for layer in cache.layers)
    assert len(table) == len(KINDS) * n * (n + 1) // 2
    layers = {layer.index: layer for layer in cache.layers}
    for row in table.itertuples():
        x = entries(layers[row.layer_a], row.kind, positions)[row.head_a]
        y = entries(layers[row.layer_b], row.kind, positions)[row.head_b]
        assert (row.layer_a, row.head_a) <= (row.layer_b, row.head_b)
        assert row.cosine == pytest.approx(cosine(x, y), abs=1e-5, nan_ok=True)
        assert row.cka == pytest.approx(cka(x, y), abs=1e-5, nan_ok=True)


def test_kernels_in_blocks_are_the_same(monkeypatch):
    cache = caches.mixed()
    whole = similarity.head_similarity(cache, KINDS, positions_of(cache))
    monkeypatch.setattr(geometry, "MOST_FLOATS", 1)
    blocks = similarity.head_similarity(cache, KINDS, positions_of(cache))
    pd.testing.assert_frame_equal(whole, blocks, rtol=1e-5)


def test_cosine_asks_for_multiples_and_cka_for_rotations():
    x = noise(3, 10, 8)
    turn = torch.linalg.qr(noise(8, 8, seed=1))[0]
    table = of_layers(with_values([x, -2 * x, 0.5 * x @ turn + 7, noise(3, 10, 8, seed=2)]))
    assert pivot(table, "value", "cosine").loc[0, 1] == pytest.approx(-1)
    assert abs(pivot(table, "value", "cosine").loc[0, 2]) < 0.5
    for measure in ("cka", "subspace"):
        found = pivot(table, "value", measure)
        assert found.loc[0, 1] == pytest.approx(1, abs=1e-5)
        assert found.loc[0, 2] == pytest.approx(1, abs=1e-5)
        assert found.loc[0, 3] < 0.95
        np.testing.assert_allclose(np.diag(found), 1, atol=1e-5)


def test_layers_that_vary_over_other_tokens_have_nothing_in_common():
    values = [torch.zeros(3, 10, 8), torch.zeros(3, 10, 8)]
    values[0][:, :2, 0] = values[1][:, 2:4, 0] = torch.tensor([1.0, -1])  # of mean 0
    table = similarity.layer_similarity(with_values(values), KINDS, torch.arange(10), RANK)
    for measure in ("cosine", "cka", "subspace"):
        np.testing.assert_allclose(pivot(table, "value", measure), np.eye(2), atol=1e-6)


def test_the_order_of_layers_orders_the_matrix():
    cache = caches.alike()
    turned = replace(cache, layers=cache.layers[::-1])
    a, b = (of_layers(c).set_index(["layer_a", "layer_b", "kind"]) for c in (cache, turned))
    pd.testing.assert_frame_equal(a, b.loc[a.index], rtol=1e-4, atol=1e-6)


def test_a_common_rotary_embedding_leaves_cosines_of_layers_as_they_are():
    table = of_layers(caches.alike())
    keys, unrotated = (of_kind(table, kind)["cosine"] for kind in ("key", "unrotated_key"))
    np.testing.assert_allclose(keys, unrotated, atol=1e-6)


def test_constant_entries_have_cosines_and_no_arrangement():
    x = torch.full((3, 10, 8), 0.1)
    table = of_layers(with_values([x, x, noise(3, 10, 8)]))
    assert pivot(table, "value", "cosine").loc[0, 1] == pytest.approx(1)
    for measure in ("cka", "subspace"):
        found = pivot(table, "value", measure).isna()
        assert found.loc[0].all() and found[1].all() and not found.loc[2, 2]


def test_chance_is_the_mean_over_orders_of_tokens():
    x, y = noise(6, 4), noise(6, 2, seed=1)
    found = geometry.linear_cka([geometry.centred(z[None]) for z in (x, y)])[1]
    orders = [list(order) for order in itertools.permutations(range(6))]
    expected = np.mean([cka(x.double().numpy(), y.double().numpy()[order]) for order in orders])
    assert found[0, 1] == pytest.approx(expected, abs=1e-5)
    wide = noise(2, 200, 40)
    overlaps, by_chance = geometry.subspace_overlaps(list(geometry.centred(wide)), 8)
    assert by_chance[0, 1] == pytest.approx(8 / 199)
    assert overlaps[0, 1] == pytest.approx(8 / 199, abs=0.02)


def test_leading_directions_are_found_in_wide_and_tall_matrices():
    wide = [noise(200, 300, seed=i) * 0.97 ** torch.arange(300) for i in range(2)]
    tall = [noise(200, 150, seed=i) * 0.97 ** torch.arange(150) for i in (2, 3)]
    centred = [x - x.mean(0) for x in (*wide, *tall)]
    found = geometry.subspace_overlaps(centred, 16)[0]
    for a, b in itertools.product(range(4), repeat=2):
        expected = overlap(centred[a].double().numpy(), centred[b].double().numpy(), 16)
        assert found[a, b] == pytest.approx(expected, abs=2e-3)


@every_shape
def test_tokens_equal_brute_force_in_the_mean_and_layer_by_layer(name):
    cache = caches.SHAPES[name]()
    positions = positions_of(cache)
    n, layers = len(positions), {layer.index: layer for layer in cache.layers}
    chosen = similarity.chosen_layers(cache, 4)
    table = similarity.token_similarity(cache, KINDS, positions)
    apart = similarity.token_kv_similarity(cache, KINDS, positions, chosen)
    assert len(table) == len(KINDS) * n * (n + 1) // 2
    assert len(apart) == len(table) * len(chosen)

    def expected(row, layer):
        x = entries(layer, row.kind, positions)
        a, b = (positions.tolist().index(p) for p in (row.position_a, row.position_b))
        return cosine(x[:, a], x[:, b])

    for row in table.itertuples():
        mean = np.mean([expected(row, layer) for layer in cache.layers])
        assert row.cosine == pytest.approx(mean, abs=1e-5)
    for row in apart.itertuples():
        assert row.cosine == pytest.approx(expected(row, layers[row.layer]), abs=1e-5)


def test_tokens_are_averaged_over_the_layers_that_hold_them():
    cache, early = caches.mixed(), torch.tensor([0, 2])
    longer = replace(cache, layers=cache.layers[1:])
    found, same = (similarity.token_similarity(c, KINDS, early) for c in (cache, longer))
    pd.testing.assert_frame_equal(found, same)
    with pytest.raises(ValueError, match="no layer holds"):
        similarity.token_similarity(cache, ("value",), torch.tensor([0, 11]))


@every_shape
def test_patterns_are_means_over_the_heads_that_have_the_dimension(name):
    cache = caches.SHAPES[name]()
    positions = positions_of(cache)
    table = similarity.token_embedding_patterns(cache, positions)
    for kind in ("key", "value"):
        all_entries = [np.abs(entries(layer, kind, positions)) for layer in cache.layers]
        rows = of_kind(table, kind)
        assert len(rows) == len(positions) * max(x.shape[2] for x in all_entries)
        for row in rows.itertuples():
            at = positions.tolist().index(row.position)
            heads = np.concatenate([x[:, at, row.dim] for x in all_entries if row.dim < x.shape[2]])
            assert row.mean_abs == pytest.approx(heads.mean(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's own correlation of constants
@pytest.mark.parametrize("all_tokens", [True, False])
@every_shape
def test_dimension_correlations_are_mean_magnitudes_of_pearsons(name, all_tokens):
    cache = caches.SHAPES[name]()
    positions = None if all_tokens else positions_of(cache)
    table = similarity.dimension_correlations(cache, KINDS, positions)
    for row in table.itertuples():
        found = []
        for layer in cache.layers:
            x = entries(layer, row.kind, layer.positions if all_tokens else positions)
            if row.dim_b < x.shape[2] and x.shape[1] > 1:
                found += [
                    abs(np.corrcoef(head[:, row.dim_a], head[:, row.dim_b])[0, 1]) for head in x
                ]
        mean = np.mean(found) if found else math.nan
        assert row.mean_abs_correlation == pytest.approx(mean, abs=1e-5, nan_ok=True)


def test_constant_dimensions_are_skipped_head_by_head():
    x = noise(3, 10, 8)
    x[0, :, 1] = 0.3
    x[:, :, 2] = -1
    table = similarity.dimension_correlations(with_values([x]), ("value",))
    found = clusters.similarity_matrix(table, "dimensions", "value")[1]
    expected = [abs(np.corrcoef(head[:, 0], head[:, 1])[0, 1]) for head in x[1:].numpy()]
    assert found[0, 1] == pytest.approx(np.mean(expected), abs=1e-5)
    assert np.isnan(found[2]).all()


def test_the_cache_is_left_alone():
    cache, untouched = caches.mixed(), caches.mixed()
    of_layers(cache)
    similarity.head_similarity(cache, KINDS, positions_of(cache))
    similarity.dimension_correlations(cache, KINDS)
    for layer, same in zip(cache.layers, untouched.layers, strict=True):
        assert all(torch.equal(layer.tensor(kind), same.tensor(kind)) for kind in ("key", "value"))
