"""How much tokens weigh: powers of attention or of age, fitted to gradients."""

import numpy as np
import torch

from compression.coded.calibration import calibrate
from compression.coded.token_weights import fitted
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
        levels = side.levels(of_length(length)) / 4  # log2 of the weights
        expected = side.weights[0] / np.log(2) - 0.8 * np.log2(np.arange(length, 0, -1))
        assert levels.shape == (length,) and np.abs(levels - expected).max() < 0.6


def test_weights_follow_a_power_of_the_attention_of_the_last_queries():
    cache = caches.watched(of_length(500))
    seen = torch.stack([layer.recent_attention for layer in cache.layers]).mean((0, 1))
    side = read(calibrate([sized(cache, seen**0.7, seed) for seed in range(2)], "gradients"))
    assert side.watched and abs(side.weights[1] - 1.4) < 0.05
    log_weight = side.levels(cache) / 4
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
