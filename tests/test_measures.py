import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis import measures
from analysis.blocks import SPAN
from analysis.head_sums import is_counted
from analysis.magnitude_bins import magnitude_edges
from analysis.measures import (
    below_per_token,
    hoyer_sparsity,
    kurtosis,
    peaks,
    sparsity,
    sweep,
    thresholds,
)
from analysis.walk import COUNTED
from data.cache import KINDS, KVCache
from tests import bruteforce, caches
from tests.bruteforce import hoyer

PERCENTAGE = 5.0
every_shape = pytest.mark.parametrize("name", caches.SHAPES)


def array(layer, kind) -> np.ndarray:
    return layer.tensor(kind).double().numpy()


def changed(cache: KVCache, change) -> KVCache:
    layers = tuple(
        replace(layer, keys=change(layer.keys), values=change(layer.values))
        for layer in cache.layers
    )
    return replace(cache, layers=layers)


@every_shape
def test_thresholds_are_a_percentage_of_the_maximum_over_the_whole_cache(name):
    cache = caches.SHAPES[name]()
    for kind in KINDS:
        peak = max(np.abs(array(layer, kind)).max() for layer in cache.layers)
        assert thresholds(cache, PERCENTAGE)[kind] == pytest.approx(peak * PERCENTAGE / 100)


@every_shape
@pytest.mark.parametrize("kind", KINDS)
def test_every_sum_equals_brute_force(name, kind):
    cache = caches.SHAPES[name]()
    swept = sweep(cache, PERCENTAGE)
    t = np.float32(swept.thresholds[kind])
    for layer, sums in zip(cache.layers, swept.sums[kind], strict=True):
        x = array(layer, kind)
        below = np.abs(x.astype(np.float32)) < t
        assert sums.n_entries == x.size
        assert sums.sparsity == pytest.approx(below.mean())
        assert sums.mean_abs == pytest.approx(np.abs(x).mean(), rel=1e-6)
        assert sums.std == pytest.approx(x.std(), rel=1e-6)
        assert sums.kurtosis == pytest.approx(bruteforce.kurtosis(x), rel=1e-6)
        assert sums.hoyer_sparsity == pytest.approx(hoyer(x), abs=1e-6, nan_ok=True)
        assert sums.rms == pytest.approx(np.sqrt((x**2).mean()), rel=1e-6)
        np.testing.assert_array_equal(sums.below_head_dim, below.sum(1))
        np.testing.assert_allclose(sums.abs_head, np.abs(x).sum((1, 2)), rtol=1e-6)
        np.testing.assert_allclose(sums.square_head, (x**2).sum((1, 2)), rtol=1e-6)
        kurtosis_head = [bruteforce.kurtosis(head) for head in x]
        np.testing.assert_allclose(sums.kurtosis_head, kurtosis_head, rtol=1e-6)
        np.testing.assert_allclose(sums.sparsity_head, below.mean((1, 2)))
        np.testing.assert_allclose(sums.mean_abs_head, np.abs(x).mean((1, 2)), rtol=1e-6)
        np.testing.assert_allclose(sums.rms_head, np.sqrt((x**2).mean((1, 2))), rtol=1e-6)
        np.testing.assert_allclose(sums.hoyer_sparsity_head, [hoyer(head) for head in x], atol=1e-6)


@every_shape
def test_correlation_is_pearsons_and_empty_where_shapes_differ(name):
    cache = caches.SHAPES[name]()
    for layer, found in zip(cache.layers, sweep(cache, PERCENTAGE).kv_correlation, strict=True):
        keys, values = array(layer, "key"), array(layer, "value")
        if keys.shape != values.shape:
            assert math.isnan(found)
        else:
            expected = np.corrcoef(keys.flatten(), values.flatten())[0, 1]
            assert found == pytest.approx(expected, abs=1e-7)


@every_shape
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentage", [1.0, 7.3, 100.0])
def test_magnitude_bins_count_every_entry_and_split_at_the_threshold(name, kind, percentage):
    cache = caches.SHAPES[name]()
    swept = sweep(cache, percentage)
    t = swept.thresholds[kind]
    edges = magnitude_edges(t, percentage).numpy()
    counts = sum(sums.magnitude_counts for sums in swept.sums[kind]).numpy()
    magnitudes = np.concatenate([np.abs(array(layer, kind)).flatten() for layer in cache.layers])
    assert counts.sum() == magnitudes.size
    assert edges[-1] > magnitudes.max()
    below = sum(sums.below_head_dim.sum().item() for sums in swept.sums[kind])
    assert counts[edges[1:] <= t].sum() == below  # exactly the sparse entries lie to its left
    if name != "half precision":  # whose values can lie on edges to the last bit
        np.testing.assert_array_equal(counts, np.histogram(magnitudes, edges)[0])


def test_edges_rise_by_nearly_equal_factors():
    edges = magnitude_edges(3.0, 1.0).numpy()
    factors = edges[2:] / edges[1:-1]
    assert (np.diff(edges) > 0).all() and 3.0 in edges
    assert factors.min() > 1.17 and factors.max() < 1.21


def test_the_order_of_tokens_does_not_matter_to_a_layer():
    cache = caches.alike()
    order = torch.randperm(cache.n_tokens)
    shuffled = changed(cache, lambda x: x[:, order])
    for kind in KINDS:
        for a, b in zip(sweep(cache, 1.0).sums[kind], sweep(shuffled, 1.0).sums[kind], strict=True):
            assert a.sparsity == b.sparsity
            assert a.kurtosis == pytest.approx(b.kurtosis)
            assert torch.equal(a.magnitude_counts, b.magnitude_counts)


def test_a_common_scale_changes_neither_sparsity_nor_the_scale_free_measures():
    cache = caches.alike()
    scaled = changed(cache, lambda x: 8 * x)
    for kind in KINDS:
        for a, b in zip(sweep(cache, 1.0).sums[kind], sweep(scaled, 1.0).sums[kind], strict=True):
            assert a.sparsity == b.sparsity
            assert a.hoyer_sparsity == pytest.approx(b.hoyer_sparsity)
            assert a.kurtosis == pytest.approx(b.kurtosis)
            assert b.std == pytest.approx(8 * a.std)


def test_hoyer_sparsity_is_0_for_equal_magnitudes_and_1_for_a_single_one():
    flat = changed(caches.alike(), lambda x: torch.full_like(x, -2.0))
    assert sweep(flat, 1.0).sums["key"][0].hoyer_sparsity == pytest.approx(0, abs=1e-6)
    single = torch.zeros(3, 10, 8)
    single[1, 2, 3] = 5
    peaked = changed(caches.alike(), lambda _: single)
    assert sweep(peaked, 1.0).sums["key"][0].hoyer_sparsity == pytest.approx(1, abs=1e-6)


def test_a_measure_is_the_same_of_numbers_and_of_tensors():
    many = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    for measure in (sparsity, kurtosis, lambda l1, l2: hoyer_sparsity(9, l1, l2)):
        alone = [measure(x, x + 1).item() for x in many.tolist()]
        assert measure(many, many + 1).tolist() == alone
    undefined = sparsity(0, 0), kurtosis(0.0, 0.0), hoyer_sparsity(9, 0.0, 0.0)
    assert torch.stack([*undefined, hoyer_sparsity(1, 0.1, 0.1)]).isnan().all()


def test_a_zero_cache_is_sparse_and_breaks_nothing():
    swept = sweep(changed(caches.alike(), torch.zeros_like), 1.0)
    for sums in swept.sums["value"]:
        assert sums.sparsity == 1.0 and sums.std == 0 and math.isnan(sums.kurtosis)
        assert sums.magnitude_counts[0] == sums.n_entries


def test_a_far_mean_does_not_spoil_the_moments():
    # E[x^2] - E[x]^2 would lose every digit of this
    far = changed(caches.alike(), lambda x: x + 1000)
    x = array(far.layers[0], "value")
    assert sweep(far, 1.0).sums["value"][0].std == pytest.approx(x.std(), rel=1e-3)


def test_the_sweep_leaves_the_cache_alone():
    cache, untouched = caches.mixed(), caches.mixed()
    sweep(cache, 1.0)
    for layer, same in zip(cache.layers, untouched.layers, strict=True):
        assert all(torch.equal(layer.tensor(kind), same.tensor(kind)) for kind in KINDS)


@every_shape
def test_sparse_entries_per_token_equal_brute_force(name):
    cache = caches.SHAPES[name]()
    limits = thresholds(cache, PERCENTAGE)
    for kind in KINDS:
        for layer in cache.layers:
            below = np.abs(array(layer, kind).astype(np.float32)) < np.float32(limits[kind])
            found = below_per_token(layer.tensor(kind), limits[kind])
            np.testing.assert_array_equal(found, below.sum((0, 2)))


@pytest.mark.parametrize("off", [1.0, 0.5, 3.0])
def test_maxima_that_are_believed_are_held_against_the_true_ones(monkeypatch, off):
    cache = caches.mixed()
    plain, true = sweep(cache, PERCENTAGE), peaks(cache)
    monkeypatch.setattr(measures, "peaks", lambda cache: pytest.fail("a pass too many"))
    told = sweep(cache, PERCENTAGE, {kind: off * peak for kind, peak in true.items()})
    assert told.thresholds == plain.thresholds
    for kind in KINDS:
        for a, b in zip(plain.sums[kind], told.sums[kind], strict=True):
            assert torch.equal(a.below_head_dim, b.below_head_dim)
            assert torch.equal(a.magnitude_counts, b.magnitude_counts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_that_are_counted_give_the_sums_of_their_float32(dtype):
    """Of more tokens than are counted at once, signed zeros among them."""
    n_tokens = COUNTED + SPAN // 2 + 1
    long = caches.cache(*(caches.layer(i, 2, n_tokens, (4, 4)) for i in range(2)))
    halves = changed(long, lambda x: torch.where(x.abs() < 0.1, -0.0, x).to(dtype))
    plain = changed(halves, torch.Tensor.float)
    assert is_counted(halves.layers[0].keys) and not is_counted(plain.layers[0].keys)
    counted, summed = sweep(halves, PERCENTAGE), sweep(plain, PERCENTAGE)
    assert counted.thresholds == summed.thresholds
    np.testing.assert_allclose(counted.kv_correlation, summed.kv_correlation, rtol=1e-5)
    for kind in KINDS:
        for a, b in zip(counted.sums[kind], summed.sums[kind], strict=True):
            assert torch.equal(a.below_head_dim, b.below_head_dim)
            assert torch.equal(a.magnitude_counts, b.magnitude_counts)
            assert a.variance == pytest.approx(b.variance, rel=1e-6)
            assert a.fourth == pytest.approx(b.fourth, rel=1e-6)
            for name in ("abs_head", "square_head", "variance_head", "fourth_head"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-6)
