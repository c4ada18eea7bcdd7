from dataclasses import replace

import pandas as pd
import pytest
import torch

from compression.base import Uncompressed
from compression.evaluate import MEASURES, Judge, relative_errors, summary
from compression.tucker import Tucker
from config import RunConfig, UsageError
from data import texts
from data.cache import KVCache
from data.extraction import prefill
from data.scoring import Continuation, long_enough
from data.texts import Sample
from tests import families

CONTEXT, SCORED = 40, 6
every_family = pytest.mark.parametrize("name", families.SETTINGS)


def scored(name: str):
    """A family's model, the prefill of a context, and the continuation after it."""
    loaded = families.loaded(name)
    ids = families.token_ids(CONTEXT + SCORED + 1)
    start = prefill(loaded, ids[:CONTEXT])
    return loaded, ids, start, Continuation(loaded, start.past, ids[CONTEXT:])


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


@every_family
def test_none_costs_nothing_at_all(name):
    _, _, start, continuation = scored(name)
    row = Judge(start.cache, continuation).score(Uncompressed())
    assert row["kl_mean_nats"] == 0 and row["kl_p99_nats"] == 0
    assert row["top1_agreement"] == 1 and row["delta_perplexity_percent"] == 0
    assert row["key_error"] == 0 and row["value_error"] == 0
    assert row["ratio"] == 1 and row["bits_per_value"] == 16
    assert row["stored_bytes"] == row["original_bytes"] == start.cache.nbytes
    assert (row["context_tokens"], row["scored_tokens"]) == (CONTEXT, SCORED)


@every_family
def test_a_damaged_cache_costs_something(name):
    _, _, start, continuation = scored(name)
    judge = Judge(start.cache, continuation)
    row = judge.score(Tucker(1, 1))
    assert row["kl_mean_nats"] > 0 and row["key_error"] > 0.01
    assert row["stored_bytes"] < row["original_bytes"]


def test_scoring_writes_neither_to_the_models_cache_nor_to_ours():
    _, _, start, continuation = scored("qwen3_next")  # with a state beside keys and values
    kept = [layer.keys.clone() for layer in start.cache.layers]
    first = continuation.log_probabilities(start.cache)
    again = continuation.log_probabilities(start.cache)
    assert torch.equal(first, again)
    assert start.past.get_seq_length() == CONTEXT
    assert all(torch.equal(a, b.keys) for a, b in zip(kept, start.cache.layers, strict=True))


def test_results_do_not_depend_on_the_order_of_methods():
    _, _, start, continuation = scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    methods = [Uncompressed(), Tucker(2, 4), Tucker(4, 8, sink_tokens=2)]
    forward = {m: judge.score(m) for m in methods}
    backward = {m: judge.score(m) for m in reversed(methods)}
    for m in methods:
        for name in ("kl_mean_nats", "perplexity", "stored_bytes", "key_error"):
            assert forward[m][name] == backward[m][name]


def with_keep(cache: KVCache, keep: torch.Tensor) -> KVCache:
    """`cache` with what is outside `keep` (tokens,) evicted from every head and overwritten."""
    layers = []
    for layer in cache.layers:
        mask = keep[layer.positions].expand(layer.n_heads, -1).clone()
        noise = 100 * (~mask[..., None])
        layers.append(
            replace(layer, keys=layer.keys + noise, values=layer.values + noise, keep=mask)
        )
    return replace(cache, layers=tuple(layers))


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma2", "mistral", "gpt_oss", "gemma4"])
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


def test_a_loss_that_is_not_finite_is_an_error():
    _, _, start, continuation = scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    broken = start.cache.in_16_bits()
    broken.layers[1].values.fill_(float("nan"))
    with pytest.raises(UsageError, match="loss on top of it is not finite"):
        judge.verdict(broken, "it")


def test_relative_errors_are_frobenius_and_an_evicted_entry_is_zero():
    cache = prefill(families.loaded("llama_gqa"), families.token_ids(8)).cache
    keep = torch.tensor([True] * 7 + [False])
    table = relative_errors(cache, with_keep(cache, keep)).set_index(["layer", "kind"])
    for layer in cache.layers:
        lost = layer.keys[:, 7].norm() / layer.keys.norm()
        assert table.loc[(layer.index, "key"), "relative_error"] == pytest.approx(lost.item())


def test_a_summary_is_the_mean_and_its_standard_error():
    row = dict.fromkeys(MEASURES, 1.0)
    rows = pd.DataFrame(
        [{"method": "m", "settings": "s", **row, "kl_mean_nats": kl} for kl in (1.0, 2.0, 6.0)]
    )
    found = summary(rows).iloc[0]
    assert found["texts"] == 3 and found["kl_mean_nats"] == 3.0
    assert found["perplexity"] == pytest.approx(1.0)
    assert found["kl_mean_nats_se"] == pytest.approx(pd.Series([1.0, 2.0, 6.0]).std() / 3**0.5)


def run_on(text: str, **flags) -> RunConfig:
    return RunConfig(prompt=text, score_tokens=6, **flags)


def test_a_text_too_short_for_context_and_score_says_how_much_is_needed():
    loaded = families.loaded("llama_gqa")
    with pytest.raises(UsageError, match=r"need a text of 47 tokens, the longest here has 46"):
        long_enough(loaded, run_on("x" * 46), 40)
    ((sample, ids),) = long_enough(loaded, run_on("x" * 50, num_samples=1), 40)
    assert len(ids) == 47 and sample.source == "prompt"


def test_a_context_beyond_the_models_positions_is_refused():
    with pytest.raises(UsageError, match="beyond the 256 positions"):
        long_enough(families.loaded("llama_gqa"), run_on("x" * 500), 250)


def test_as_many_texts_as_are_long_enough(caplog, monkeypatch):
    loaded = families.loaded("llama_gqa")
    run = RunConfig(use_wikitext=False, score_tokens=6, num_samples=3, wikitext_index=2)
    chosen = long_enough(loaded, run, 100)
    assert [sample.index for sample, _ in chosen] == [2, 3, 4]
    assert len(long_enough(loaded, RunConfig(prompt="x" * 200, score_tokens=6), 100)) == 1
    assert not caplog.text  # a prompt is one text
    monkeypatch.setattr(
        texts, "candidates", lambda run: [Sample(0, "", "", "x" * n) for n in (9, 200)]
    )
    assert len(long_enough(loaded, RunConfig(score_tokens=6), 100)) == 1
    assert "Only 1 of the 4 texts" in caplog.text
