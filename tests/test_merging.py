"""Alike parts stored once."""

import pytest
import torch

from compression.methods.merging import MergedHeads, MergedTokens, leaders, leading_mix
from config import UsageError
from data.cache import KINDS
from tests import caches


def test_multiples_are_merged_without_loss_and_stored_once():
    cache = caches.alike()
    cache.layers[2].keys[:] = -0.5 * cache.layers[0].keys
    cache.layers[3].values[1] = 2 * cache.layers[1].values[0]
    cache = cache.in_16_bits()
    method = MergedHeads(
        key_groups=[[(0, h), (2, h)] for h in range(3)], value_groups=[[(3, 1), (1, 0)]]
    )
    small = method.compress(cache)
    back = small.restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        for kind in KINDS:
            torch.testing.assert_close(b.tensor(kind), a.tensor(kind), rtol=3e-3, atol=0.02)
    one_head = 10 * 8 * 2
    # of 24 heads 4 are not stored; 4 groups of 2 scales
    assert small.nbytes == (24 - 4) * one_head + 4 * 2 * 2


def test_the_mix_is_the_best_of_rank_one():
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    joint, scales = leading_mix(x)
    error = (x - scales[:, None] * joint).square().sum()
    assert error.item() == pytest.approx(torch.linalg.svdvals(x)[1:].square().sum().item())


def test_a_head_is_in_one_group_only():
    with pytest.raises(UsageError, match="in two groups"):
        MergedHeads(key_groups=[[(0, 0), (1, 0)], [(0, 0), (2, 0)]])


def test_tokens_stand_for_later_ones_that_are_as_similar():
    rows = torch.tensor([[1.0, 0], [0, 1], [2, 0.1], [0.1, 3], [1, 1]])
    assert leaders(rows, 0.95).tolist() == [0, 1, 0, 1, 4]
    assert leaders(rows, 1.0).tolist() == [0, 1, 2, 3, 4]
    many = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    found = leaders(many, 0.8)
    unit = many / many.norm(dim=1, keepdim=True)
    assert ((unit * unit[found]).sum(1) >= 0.8 - 1e-6).all()
    assert torch.equal(found[found], found) and found.unique().numel() < 60


def test_repeated_tokens_are_stored_once():
    cache = caches.alike()
    for layer in cache.layers:
        layer.values[:, 5] = 3 * layer.values[:, 2]
        layer.values[:, 7] = layer.values[:, 2]
    cache = cache.in_16_bits()
    small = MergedTokens(0.9999).compress(cache)
    assert small.stored["0.value.rows"].shape == (8, 24)
    for a, b in zip(cache.layers, small.restore().layers, strict=True):
        torch.testing.assert_close(b.values, a.values, rtol=3e-3, atol=0.02)
