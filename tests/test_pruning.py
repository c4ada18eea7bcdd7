"""What is evicted is neither stored nor seen; small entries read as zero."""

import pytest
import torch

from compression.bits import packed, unpacked
from compression.evaluate import Judge, relative_errors
from compression.pruning import EvictedParts, EvictedTokens, ZeroedEntries
from config import UsageError
from data.cache import KINDS
from tests import caches, families
from tests.test_scoring import scored


@pytest.mark.parametrize("shape", [(1,), (8,), (9,), (3, 5), (2, 3, 7), (0,)])
def test_bits_are_an_eighth_of_bytes_and_come_back(shape):
    flags = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    stored = packed(flags)
    assert stored.dtype == torch.uint8 and len(stored) == -(-flags.numel() // 8)
    assert torch.equal(unpacked(stored, shape), flags)


def test_layers_and_heads_are_gone_and_the_rest_is_bit_for_bit():
    cache = caches.alike().in_16_bits()
    back = EvictedParts(layers=(1,), heads=((2, 0), (3, 2))).compress(cache).restore()
    assert back.layers[0].keep is None
    assert not back.layers[1].keep.any()
    assert back.layers[2].keep.any(1).tolist() == [False, True, True]
    assert back.layers[3].keep.any(1).tolist() == [True, True, False]
    for before, after in zip(cache.layers, back.layers, strict=True):
        kept = torch.ones(3, 10, dtype=torch.bool) if after.keep is None else after.keep
        for kind in KINDS:
            assert torch.equal(before.tensor(kind)[kept], after.tensor(kind)[kept])


def test_stored_bytes_are_survivors_and_a_bit_per_head_and_token():
    cache = caches.alike().in_16_bits()
    n = EvictedTokens(keep=0.4, score="recent", sink_tokens=1).compress(cache).nbytes
    # 4 layers: 3 heads x 4 of 10 tokens x (8 + 8) entries of 2 bytes, and 30 bits
    assert n == 4 * (3 * 4 * 16 * 2 + 4)


def kept(**settings):
    cache = caches.alike().in_16_bits()
    cache = caches.with_attention(cache, caches.random_attention(cache))
    back = EvictedTokens(**settings).compress(cache).restore()
    return cache, [layer.keep for layer in back.layers]


@pytest.mark.parametrize("score", ["recent", "key_norm", "attention", "importance", "random"])
def test_first_tokens_stay_and_as_many_as_were_asked_for(score):
    _, keeps = kept(keep=0.5, score=score, sink_tokens=2)
    for keep in keeps:
        assert keep[:, :2].all() and (keep.sum(1) == 5).all()


def test_each_score_keeps_what_it_says():
    cache, keeps = kept(keep=0.3, score="recent", sink_tokens=1)
    assert keeps[0][0].nonzero().flatten().tolist() == [0, 8, 9]
    cache, keeps = kept(keep=0.3, score="key_norm", sink_tokens=0)
    for layer, keep in zip(cache.layers, keeps, strict=True):
        norms = layer.keys.float().norm(dim=-1)
        for head in range(3):
            assert norms[head][keep[head]].max() <= norms[head][~keep[head]].min()
    cache, keeps = kept(keep=0.3, score="attention", sink_tokens=0)
    for layer, keep in zip(cache.layers, keeps, strict=True):
        for head in range(3):
            received = layer.attention[head]
            assert received[keep[head]].min() >= received[~keep[head]].max()


def test_random_draws_differ_by_seed_and_layer_and_repeat():
    _, one = kept(keep=0.5, score="random", seed=1)
    _, same = kept(keep=0.5, score="random", seed=1)
    _, other = kept(keep=0.5, score="random", seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])


def test_attention_that_was_not_measured_is_asked_for():
    with pytest.raises(UsageError, match="does not show its attention"):
        EvictedTokens(score="attention").compress(caches.alike())
    with pytest.raises(UsageError, match="--token_score is loud"):
        EvictedTokens(score="loud")
    with pytest.raises(UsageError, match="--keep_tokens is 0"):
        EvictedTokens(keep=0.0)


def test_small_entries_are_zero_and_large_ones_exact():
    cache = caches.alike().in_16_bits()
    small = ZeroedEntries(percentage=10.0).compress(cache)
    back = small.restore()
    n_stay = 0
    for kind in KINDS:
        limit = max(x.tensor(kind).abs().max().item() for x in cache.layers) / 10
        for before, after in zip(cache.layers, back.layers, strict=True):
            x, y = before.tensor(kind), after.tensor(kind)
            stays = x.abs() >= limit
            n_stay += int(stays.sum())
            assert torch.equal(y, torch.where(stays, x, 0.0)) and after.keep is None
    assert small.nbytes == 2 * n_stay + cache.n_entries // 8


def test_nothing_pruned_costs_nothing_and_errors_are_those_of_what_is_gone():
    _, _, start, continuation = scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    row = judge.score(EvictedParts())
    assert row["kl_mean_nats"] == 0 and row["key_error"] == 0 and row["ratio"] < 1  # the mask
    row = judge.score(EvictedParts(layers=(0,)))
    assert row["kl_mean_nats"] > 0 and row["ratio"] > 1.9
    errors = relative_errors(judge.cache, EvictedParts((0,)).compress(judge.cache).restore())
    assert list(errors["relative_error"]) == [1, 1, 0, 0]


@pytest.mark.parametrize("name", sorted(set(families.SETTINGS) - families.WITHOUT_PROBE))
def test_every_family_can_be_scored_without_half_of_its_tokens(name):
    _, _, start, continuation = scored(name)
    verdict = Judge(start.cache, continuation).score(EvictedTokens(0.5, "recent", 1))
    assert verdict["kl_mean_nats"] > 0


def test_layers_that_share_a_cache_share_its_evictions():
    # Gemma 4: layers 2 and 3 read what 0 and 1 have stored. With nothing to see in any layer, all
    # that the next tokens know is themselves, whatever the context was.
    found = []
    for seed in (0, 1):
        loaded = families.loaded("gemma4")
        ids = torch.cat([families.token_ids(40, seed), families.token_ids(7, 5)])
        from data.extraction import prefill
        from data.scoring import Continuation

        start = prefill(loaded, ids[:40])
        gone = EvictedParts(layers=(0, 1)).compress(start.cache.in_16_bits()).restore()
        found.append(Continuation(loaded, start.past, ids[40:]).log_probabilities(gone))
    torch.testing.assert_close(found[0], found[1])
