"""What is evicted is neither stored nor seen; small entries read as zero."""

import pytest
import torch

from compression.costs import relative_errors
from compression.evaluate import Judge
from compression.methods.evictions import Recent
from compression.methods.pruning import EvictedParts, ZeroedEntries
from config import UsageError
from data.cache import KINDS
from data.extraction import prefill
from data.scoring import Continuation
from tests import caches, families


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


def test_a_threshold_beyond_all_entries_is_refused():
    with pytest.raises(UsageError, match="A threshold of 101 % was given: 0 to 100"):
        ZeroedEntries(101)


def test_nothing_pruned_costs_nothing_and_errors_are_those_of_what_is_gone():
    _, _, start, continuation = families.scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    row = judge.score(EvictedParts())
    assert row["kl_mean_nats"] == 0 and row["key_error"] == 0 and row["ratio"] < 1  # the mask
    row = judge.score(EvictedParts(layers=(0,)))
    assert row["kl_mean_nats"] > 0
    half = EvictedParts(layers=(0,)).compress(judge.cache)
    assert half.shape.nbytes > 1.9 * half.nbytes
    errors = relative_errors(judge.cache, EvictedParts((0,)).compress(judge.cache).restore())
    assert list(errors["relative_error"]) == [1, 1, 0, 0]


@pytest.mark.parametrize("name", sorted(families.SETTINGS.keys() - families.UNHIDDEN))
def test_every_family_can_be_scored_without_half_of_its_tokens(name):
    _, _, start, continuation = families.scored(name)
    cache = start.cache.in_16_bits()
    gone = Recent(0.5, sink_tokens=1).compress(cache).restore()
    full, found = (continuation.log_probabilities(x) for x in (cache, gone))
    assert not torch.equal(full, found) and found.isfinite().all()


def test_layers_that_share_a_cache_share_its_evictions():
    # Gemma 4: layers 2 and 3 read what 0 and 1 have stored. With nothing to see in any layer, all
    # that the next tokens know is themselves, whatever the context was.
    found = []
    for seed in (0, 1):
        loaded = families.loaded("gemma4")
        ids = torch.cat([families.token_ids(40, seed), families.token_ids(7, 5)])
        start = prefill(loaded, ids[:40])
        gone = EvictedParts(layers=(0, 1)).compress(start.cache.in_16_bits()).restore()
        found.append(Continuation(loaded, start.past, ids[40:]).log_probabilities(gone))
    torch.testing.assert_close(found[0], found[1])
