"""How much tokens weigh: powers of attention or of age and of other traits, fitted to gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from compression.coded.calibration import calibrate
from compression.coded.token_weights import fitted, mean_keys, traits_in_chunks, traits_of_keys
from compression.coded.transform import read, refuse_misfit
from data.cache import KINDS, wide
from data.sensitivity import Sensitivity
from tests import caches


def of_length(n):
    return caches.cache(*(caches.layer(i, 2, n, (8, 8)) for i in range(3)))


def sized(cache, size, seed=0):
    """Gradients of so large entries at each token."""
    generator = torch.Generator().manual_seed(seed)
    gradients = tuple(
        {k: torch.randn(x.keys.shape, generator=generator) * size[:, None] for k in KINDS}
        for x in cache.layers
    )
    return Sensitivity(cache, gradients, n_scored=1)


def test_where_attention_is_not_shown_weights_follow_a_power_of_the_age():
    n = 1024
    gradients = sized(of_length(n), torch.arange(n, 0, -1).float() ** -0.4)
    side = read(calibrate([gradients], "gradients"))
    assert not side.watched and abs(side.weights[1] - 0.8) < 0.03
    for length in (1, 64, 5000):  # at every length
        levels = side.levels(of_length(length)).numpy() / 4  # log2 of the weights
        expected = side.weights[0] / np.log(2) - 0.8 * np.log2(np.arange(length, 0, -1))
        assert levels.shape == (length,) and np.abs(levels - expected).max() < 0.6


def test_weights_follow_a_power_of_the_attention_of_the_last_queries():
    cache = caches.watched(of_length(500))
    seen = torch.stack([layer.recent_attention for layer in cache.layers]).mean((0, 1))
    side = read(calibrate([sized(cache, seen**0.7, seed) for seed in range(2)], "gradients"))
    assert side.watched and abs(side.weights[1] - 1.4) < 0.05
    log_weight = side.levels(cache).numpy() / 4
    of_tokens = np.stack([np.log(seen.numpy()), side.traits(cache)[:, 1]], axis=1)
    expected = (side.weights[0] + of_tokens @ side.weights[1:]) / np.log(2)
    assert np.abs(log_weight - expected).max() < 0.13  # an eighth, rounded


def test_weights_cost_no_more_bits_than_those_of_any_other_exponents():
    generator = np.random.default_rng(0)
    traits = generator.normal(size=(300, 2)) * [1, 0.01] + [0, 5]
    energies = generator.exponential(size=300) * np.exp(traits @ [0.5, -40])
    log_c, *b = fitted(traits, energies)
    assert np.isclose(np.mean(energies / np.exp(log_c + traits @ b)), 1)

    def bits(log_weight):  # at an equal loss
        return np.log(np.mean(energies / np.exp(log_weight))) + np.mean(log_weight)

    best = bits(traits @ b)
    for one in np.arange(-1, 2, 0.05):
        assert all(best <= bits(traits @ [one, two]) + 2e-3 for two in np.arange(-100, 100, 2.5))


@pytest.mark.parametrize("energies", [np.ones(9), np.eye(9)[0], np.arange(9.0)])
def test_weights_are_finite_where_a_trait_tells_nothing_or_all(energies):
    traits = np.stack([np.full(9, -3.7), np.eye(9)[0]], axis=1)
    log_c, *b = fitted(traits, energies)
    assert b[0] == 0 and abs(b[1]) < 100 and np.isfinite(log_c)


def with_outliers(n, places):
    """Keys around a mean of their own, but for those of these tokens, which point elsewhere."""
    layers = []
    for i in range(3):
        layer = caches.layer(i, 2, n, (8, 8))
        keys = layer.unrotated_keys() / 4 + torch.tensor([3.0, 0, 0, 0, 0, 0, 0, 0])
        keys[:, places] = torch.tensor([0.0, 3, 0, 0, 0, 0, 0, 0])
        keys = layer.rotary.rotated(keys, layer.positions)
        layers.append(layer.with_tensor("key", keys))
    return caches.cache(*layers)


def test_traits_of_keys_are_those_of_each_unrotated_key():
    cache = caches.mixed()
    means = mean_keys(cache.layers)
    queries = {
        i: torch.randn(layer.n_heads, 3, layer.keys.shape[2])
        for i, layer in enumerate(cache.layers)
    }
    del queries[1]  # of which nothing is known
    measured = traits_of_keys(cache.layers, means, queries, range(10))
    for t in range(10):
        unlike, shares = [], []
        for i, (layer, mean) in enumerate(zip(cache.layers, means, strict=True)):
            held = (layer.positions == t).nonzero()
            if not len(held):
                continue
            for h, keys in enumerate(layer.unrotated_keys()):
                key = keys[int(held)]
                unlike.append((i, 1 - float(key @ mean[h] / (key.norm() * mean[h].norm()))))
                for query in queries[i][h] if i in queries else ():
                    scores = (keys @ query).exp()
                    shares.append((i, float(scores[int(held)] / scores.mean())))
        assert np.isclose(measured[t, 1], mean_by_layer(unlike), atol=1e-5)
        if shares:
            assert np.isclose(measured[t, 0], np.log(mean_by_layer(shares)), atol=1e-4)


def mean_by_layer(pairs):
    layers = {i for i, _ in pairs}
    return np.mean([np.mean([x for i, x in pairs if i == layer]) for layer in layers])


def test_chunks_do_not_know_of_each_other():
    cache = caches.mixed()
    means = mean_keys(cache.layers)
    queries = {0: torch.randn(cache.layers[0].n_heads, 2, cache.layers[0].keys.shape[2])}
    size = 4
    whole = traits_in_chunks(cache, means, queries, size)
    for start in range(0, cache.n_tokens, size):
        end = min(start + size, cache.n_tokens)
        layers = [
            layer.between(slice(*torch.searchsorted(layer.positions, torch.tensor([start, end]))))
            for layer in cache.layers
        ]
        assert np.allclose(
            whole[start:end], traits_of_keys(layers, means, queries, range(start, end))
        )


def test_without_queries_tokens_whose_keys_are_like_no_others_are_finer():
    places = torch.tensor([40, 77, 130])
    size = torch.ones(200)
    size[places] = 8.0
    cache = with_outliers(200, places)
    side = read(calibrate([sized(cache, size, seed) for seed in range(2)], "gradients"))
    levels = side.levels_without_queries(cache.layers, 200)
    usual = torch.ones(200, dtype=torch.bool)
    usual[places] = False
    assert (levels[places][:, None] > levels[usual]).all()
    chunk = [layer.between(slice(64, 128)) for layer in cache.layers]  # alone, it is told the same
    assert torch.equal(side.levels_without_queries(chunk, 64), levels[64:128])


def test_where_all_tokens_depend_alike_on_errors_they_weigh_alike_without_queries():
    cache = with_outliers(200, torch.tensor([40, 77]))
    side = read(calibrate([sized(cache, torch.ones(200))], "gradients"))
    levels = side.levels_without_queries(cache.layers, 200)
    assert levels.max() - levels.min() <= 4  # half an octave


def test_without_queries_tokens_that_those_to_be_expected_look_at_are_finer():
    """Of keys that are as unlike the mean key as others."""
    cache = of_length(512)
    generator = torch.Generator().manual_seed(0)
    queries = {i: torch.randn(2, 3, 8, generator=generator) / 2 for i in range(3)}
    means = mean_keys(cache.layers)
    looked_at = torch.from_numpy(traits_in_chunks(cache, means, queries)[:, 0]).float()
    draws = [sized(cache, (looked_at / 2).exp(), seed) for seed in range(2)]
    transform = read(calibrate([replace(draw, queries=queries) for draw in draws], "gradients"))
    assert abs(transform.weights_without_queries[1] - 1) < 0.05
    levels = transform.levels_without_queries(cache.before(256).layers, 256).numpy() / 4
    expected = looked_at[:256].numpy() / np.log(2)
    assert np.corrcoef(levels, expected)[0, 1] > 0.99


def test_queries_of_none_are_refused():
    cache = caches.alike()
    draw = replace(sized(cache, torch.ones(cache.n_tokens)), queries={0: torch.randn(3, 2, 8)})
    tensors = calibrate([draw], "gradients").tensors
    widths = {(i, k): wide(x.tensor(k)).shape[1] for i, x in enumerate(cache.layers) for k in KINDS}
    refuse_misfit(tensors, widths)
    with pytest.raises(ValueError, match=r"queries\.0 holds"):
        refuse_misfit(tensors | {"queries.0": tensors["queries.0"][:0]}, widths)
