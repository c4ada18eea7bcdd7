"""What a model makes of a restored cache, against plain forward passes and padding masks."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from config import UsageError
from data.extraction import prefill
from data.forward import forward
from data.scoring import _evicted_hidden, filled
from tests import families
from tests.caches import with_keep
from tests.families import CONTEXT, SCORED

scored = cache(families.scored)  # what is shared here is never written to, which is a law below
every_family = pytest.mark.parametrize("name", families.SETTINGS)


@every_family
def test_an_untouched_cache_predicts_as_a_plain_forward_pass_does(name):
    loaded, ids, start, continuation = scored(name)
    found = continuation.log_probabilities(start.cache)
    with torch.no_grad():
        logits = loaded.model(ids[None], use_cache=False).logits[0].float()
    expected = torch.log_softmax(logits, -1)[CONTEXT:-1]  # queries that follow the context
    assert found.shape == (SCORED, families.VOCABULARY)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    nats = continuation.nats(found)
    picked = [-found[i, ids[CONTEXT + 1 + i]].item() for i in range(SCORED)]
    assert nats.tolist() == pytest.approx(picked)


def test_scoring_writes_neither_to_the_models_cache_nor_to_ours():
    _, _, start, continuation = scored("qwen3_next")  # with a state beside keys and values
    kept = [layer.keys.clone() for layer in start.cache.layers]
    first = continuation.log_probabilities(start.cache)
    again = continuation.log_probabilities(start.cache)
    assert torch.equal(first, again)
    assert start.past.get_seq_length() == CONTEXT
    assert all(torch.equal(a, b.keys) for a, b in zip(kept, start.cache.layers, strict=True))


EVICTED = ["llama_gqa", "gpt2", "gemma2", "mistral", "gpt_oss", "gemma4", "deepseek_v3"]
SHARED_BLOCKS = ["zamba", "zamba2", "hrm_text"]  # the cache alone knows their layers


@pytest.mark.parametrize("name", EVICTED + SHARED_BLOCKS)
def test_an_evicted_token_is_invisible_and_new_tokens_see_each_other(name):
    loaded, ids, start, continuation = scored(name)
    keep = torch.ones(CONTEXT, dtype=torch.bool)
    keep[[0, 5, 30, 33, CONTEXT - 1]] = False
    found = continuation.log_probabilities(with_keep(start.cache, keep))
    # transformers' own way to hide tokens from all queries: a padding mask, at given positions
    visible = torch.cat([keep, torch.ones(SCORED, dtype=torch.bool)]).long()[None]
    positions = torch.arange(CONTEXT, CONTEXT + SCORED)[None]
    with torch.no_grad():
        logits = loaded.model(
            ids[None, CONTEXT:-1],
            past_key_values=prefill(loaded, ids[:CONTEXT]).past,
            attention_mask=visible,
            position_ids=positions,
        ).logits[0]
    torch.testing.assert_close(found, torch.log_softmax(logits.float(), -1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "gemma2", "gemma4", "llama4", "hrm_text"])
def test_what_was_evicted_stays_hidden_token_after_token(name):
    loaded, ids, start, continuation = scored(name)
    keep = torch.ones(CONTEXT, dtype=torch.bool)
    keep[[0, 5, 30, 33, 36, CONTEXT - 1]] = False  # the window has them in other places each time
    cache = with_keep(start.cache, keep)
    past = filled(start.past, cache, loaded.torch_dtype)
    with torch.no_grad(), _evicted_hidden(loaded, cache, past):
        steps = [
            forward(loaded, ids[i : i + 1], past, i).logits[0] for i in range(CONTEXT, len(ids) - 1)
        ]
    found = torch.log_softmax(torch.cat(steps).float(), -1)
    expected = continuation.log_probabilities(cache)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_eviction_is_of_one_slot_where_a_module_fills_several():
    _, _, start, continuation = scored("hrm_text")
    full, found = continuation.log_probabilities(start.cache), []
    for i, layer in enumerate(start.cache.layers):
        mask = torch.ones(layer.n_heads, CONTEXT, dtype=torch.bool)
        mask[:, 3:30] = False
        layers = list(start.cache.layers)
        layers[i] = replace(layer, keep=mask)
        cache = replace(start.cache, layers=tuple(layers))
        found.append(continuation.log_probabilities(cache) - full)
    assert len(found) == 8
    for i, one in enumerate(found):
        assert one.abs().max() > 1e-5
        assert not any(torch.allclose(one, other, atol=1e-6) for other in found[:i])


def test_eviction_is_per_head():
    _, _, start, continuation = scored("llama_gqa")
    first = start.cache.layers[0]
    results = []
    for head in range(first.n_heads):
        mask = torch.ones(first.n_heads, CONTEXT, dtype=torch.bool)
        mask[head, 3:20] = False
        layers = (replace(first, keep=mask), *start.cache.layers[1:])
        results.append(continuation.log_probabilities(replace(start.cache, layers=layers)))
    full = continuation.log_probabilities(start.cache)
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[0], full)


def test_keeping_everything_is_no_eviction():
    _, _, start, continuation = scored("llama_gqa")
    keep = torch.ones(CONTEXT, dtype=torch.bool)
    found = continuation.log_probabilities(with_keep(start.cache, keep))
    torch.testing.assert_close(found, continuation.log_probabilities(start.cache))


def test_a_model_that_cannot_hide_entries_is_refused_for_eviction():
    _, _, start, continuation = scored("falcon")
    keep = torch.ones(CONTEXT, dtype=torch.bool)
    keep[4] = False
    with pytest.raises(UsageError, match="does not let entries of its cache be hidden"):
        continuation.log_probabilities(with_keep(start.cache, keep))
