"""How much tokens weigh: powers of attention or of age, fitted to gradients."""

import numpy as np
import torch

from compression.coded.calibration import calibrate
from compression.coded.token_weights import fitted, mean_keys, unlikeness
from compression.coded.transform import read
from data.cache import KINDS
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
    expected = (side.weights[0] + side.weights[1] * np.log(seen.numpy())) / np.log(2)
    assert np.abs(log_weight - expected).max() < 0.13  # an eighth, rounded


def test_weights_cost_no_more_bits_than_those_of_any_other_exponent():
    generator = np.random.default_rng(0)
    traits, energies = generator.normal(size=300), generator.exponential(size=300)
    log_c, b = fitted(traits, energies * np.exp(0.5 * traits))
    energies = energies * np.exp(0.5 * traits)
    assert np.isclose(np.mean(energies / np.exp(log_c + b * traits)), 1)

    def bits(log_weight):  # at an equal loss
        return np.log(np.mean(energies / np.exp(log_weight))) + np.mean(log_weight)

    best = bits(log_c + b * traits)
    assert all(best <= bits(other * traits) + 1e-12 for other in np.arange(0, 2, 0.01))


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


def test_unlikeness_is_that_of_each_unrotated_key_with_the_mean_one():
    cache = caches.mixed()
    means = mean_keys(cache.layers)
    found = unlikeness(cache.layers, means, 10)
    for t in range(10):
        by_layer = []
        for layer, mean in zip(cache.layers, means, strict=True):
            held = (layer.positions == t).nonzero()
            if len(held):
                keys = layer.unrotated_keys()[:, int(held)]
                each = [
                    float(k @ m / (k.norm() * m.norm())) for k, m in zip(keys, mean, strict=True)
                ]
                by_layer.append(1 - np.mean(each))
        assert np.isclose(found[t], np.mean(by_layer), atol=1e-5)


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
