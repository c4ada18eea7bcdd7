from dataclasses import replace
from functools import cache as once

import pytest
import torch
from transformers.cache_utils import Cache

from data.extraction import prefill
from data.probe import RECENT_QUERIES, AttentionProbe
from data.softmax_sums import softmax_sums
from tests import families
from tests.caches import equal

PROBED = sorted(set(families.SETTINGS) - families.WITHOUT_PROBE)
N = 40  # beyond the window, so that sliding layers have forgotten something
# All of whose layers attend to all that stands before, by no more than keys and queries
LOOKED_AT = ["falcon_h1", "gpt2", "gpt_neox", "llama_gqa", "llama_mqa", "phi", "qwen3", "stablelm"]


@once
def probed(name: str):
    return prefill(families.loaded(name), families.token_ids(N), probe=True)


def attention_of(result) -> list:
    return [layer.attention for layer in result.cache.layers]


def eager_weights(name: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """Attention weights (heads, N, N) of each attending layer as transformers itself shows them."""
    model = families.model(name, attn_implementation="eager")
    with torch.no_grad():
        attentions = model(ids[None], output_attentions=True).attentions
    return [weights[0, :, :, :N] for weights in attentions if weights is not None]


def mean_received(weights: torch.Tensor, visible: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Brute force: per key, the mean weight over the queries that see it, per KV head."""
    received = torch.zeros(len(weights), N)
    for head in range(len(weights)):
        for key in range(N):
            queries = visible[:, key]
            received[head, key] = weights[head, queries, key].mean()
    return received.unflatten(0, (n_heads, -1)).mean(1)


def visible_pairs(window: int | None) -> torch.Tensor:
    query, key = torch.arange(N)[:, None], torch.arange(N)[None]
    return (key <= query) & (key > query - window if window else torch.tensor(True))


def same_chunk(size: int) -> torch.Tensor:
    query, key = torch.arange(N)[:, None], torch.arange(N)[None]
    return (key <= query) & (key // size == query // size)


@pytest.mark.parametrize("name", sorted(set(PROBED) - families.SHARED_CACHE - families.COMPRESSED))
def test_attention_received_is_the_mean_of_the_models_own_weights(name):
    result = probed(name)
    every_layer = eager_weights(name, families.token_ids(N))
    # Layers without attention return no weights: the attending ones come in the cache's order.
    for layer, received, weights in zip(
        result.cache.layers, attention_of(result), every_layer, strict=True
    ):
        sees = visible_pairs(families.WINDOW if layer.kind == "sliding" else None)
        if name in families.CHUNKED and layer.kind == "sliding":
            sees = same_chunk(families.WINDOW)
        expected = mean_received(weights, sees, layer.n_heads)[:, layer.positions]
        torch.testing.assert_close(received, expected, atol=1e-6, rtol=1e-5)
        sees[:-RECENT_QUERIES] = False  # what none of the last sees gets nothing
        lately = mean_received(weights, sees, layer.n_heads).nan_to_num(0)[:, layer.positions]
        torch.testing.assert_close(layer.recent_attention, lately, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk", [None, 9])
@pytest.mark.parametrize("name", sorted(set(PROBED) - families.SHARED_CACHE - families.COMPRESSED))
def test_who_looks_at_a_token_is_who_weighs_it_most_in_the_models_own_weights(name, chunk):
    loaded = replace(families.loaded(name), prefill_chunk=chunk)
    result = prefill(loaded, families.token_ids(N), probe=True)
    every_layer = eager_weights(name, families.token_ids(N))
    attention = result.attention
    assert attention.layers == tuple(layer.index for layer in result.cache.layers)
    for place, (layer, weights) in enumerate(zip(result.cache.layers, every_layer, strict=True)):
        assert_watched(weights.mean(0), attention.watcher[place], attention.watcher_weight[place])
        held = attention.received[place, : layer.n_heads, layer.positions]
        torch.testing.assert_close(held, layer.attention.half(), atol=1e-4, rtol=1e-3)
        assert attention.received[place, layer.n_heads :].isnan().all()


def assert_watched(weights, watcher, watcher_weight):
    """Brute force on the mean (N, N) over heads, token by token."""
    for token in range(N):
        later = {query: weights[query, token].item() for query in range(token + 1, N)}
        most = max(later.values(), default=0)
        if most == 0:
            assert watcher[token] == -1 and watcher_weight[token] == 0
        else:
            assert watcher[token] > token
            assert later[int(watcher[token])] == pytest.approx(most, rel=1e-5)
            assert watcher_weight[token].item() == pytest.approx(most, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("name", PROBED)
def test_the_probe_changes_nothing_and_steps_back(name):
    loaded = families.loaded(name)
    plain, _, again = (
        prefill(loaded, families.token_ids(N), probe=p) for p in (False, True, False)
    )
    for other in (probed(name), again):
        assert equal(plain.cache, other.cache)
    assert attention_of(again) == attention_of(plain) == [None] * again.cache.n_layers
    assert again.attention is plain.attention is None


@pytest.mark.parametrize("name", PROBED)
def test_the_last_queries_alone_show_the_same_of_themselves(name):
    lately = prefill(families.loaded(name), families.token_ids(N), probe=True, recent_only=True)
    for a, b in zip(probed(name).cache.layers, lately.cache.layers, strict=True):
        assert lately.attention is b.attention is None and torch.equal(a.keys, b.keys)
        assert (a.recent_attention is None) == (b.recent_attention is None)
        if a.recent_attention is not None:
            assert torch.equal(a.recent_attention, b.recent_attention)


@pytest.mark.parametrize("name", LOOKED_AT)
def test_the_last_queries_look_at_keys_as_they_have(name):
    lately = prefill(families.loaded(name), families.token_ids(N), probe=True, recent_only=True)
    for layer, queries in zip(lately.cache.layers, lately.last_queries, strict=True):
        n_queries = queries.shape[2]
        sums = torch.zeros(layer.keys.shape[:2])
        for of_head in queries.unbind(1):  # of each KV head
            scores = of_head @ layer.keys.transpose(1, 2)
            later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(N - n_queries + 1)
            sums += scores.masked_fill(later, -torch.inf).softmax(2).sum(1)
        seen_by = (N - torch.arange(N)).clamp(max=n_queries)
        mean = sums / queries.shape[1] / seen_by
        torch.testing.assert_close(mean, layer.recent_attention, atol=1e-5, rtol=1e-4)


def test_queries_that_look_at_what_is_made_of_a_latent_are_not_of_its_keys():
    loaded = families.loaded("deepseek_v2")
    lately = prefill(loaded, families.token_ids(N), probe=True, recent_only=True)
    assert lately.last_queries == (None,) * lately.cache.n_layers


def test_full_attention_rows_sum_to_the_number_of_queries():
    query, key = torch.randn(6, 11, 8), torch.randn(2, 11, 8)
    torch.testing.assert_close(softmax_sums(query, key).sum(-1), torch.full((2,), 11.0))


@pytest.mark.parametrize("block", [1, 64, 10**9])
@pytest.mark.parametrize("kind", ["causal", "bool", "float", "per head"])
def test_softmax_sums_equal_plain_attention_in_any_block_size(monkeypatch, block, kind):
    monkeypatch.setattr("data.softmax_sums.BLOCK_SCORES", block)
    query, key = torch.randn(4, 5, 8), torch.randn(2, 9, 8)
    causal = torch.ones(5, 9, dtype=torch.bool).tril(4)
    heads = causal.expand(4, 5, 9).clone()
    heads[1, :, 2] = False
    masks = {
        "causal": None,
        "bool": causal[None, None],
        "float": torch.where(causal, 0.0, torch.finfo(torch.float32).min)[None, None],
        "per head": heads[None],
    }
    visible = heads if kind == "per head" else causal.expand(4, 5, 9)
    scores = query @ key.repeat_interleave(2, 0).transpose(1, 2) * 0.3
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
    expected = weights.sum(1).unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(softmax_sums(query, key, masks[kind], 0.3), expected)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "gemma2"])
def test_blocks_of_queries_do_not_change_what_is_measured(monkeypatch, name):
    whole = probed(name)
    monkeypatch.setattr("data.softmax_sums.BLOCK_SCORES", 3 * 4 * N)  # three queries at a time
    blocks = prefill(families.loaded(name), families.token_ids(N), probe=True)
    for a, b in zip(attention_of(whole), attention_of(blocks), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(whole.attention.watcher, blocks.attention.watcher)
    for a, b in zip(whole.cache.layers, blocks.cache.layers, strict=True):
        torch.testing.assert_close(a.keys, b.keys)


def test_layers_that_read_another_layers_cache_count_for_its_owner():
    # Gemma 4: layers 2 and 3 attend to what layers 0 and 1 have stored.
    ids = families.token_ids(12)
    result = prefill(families.loaded("gemma4"), ids, probe=True)
    assert [layer.index for layer in result.cache.layers] == [0, 1]
    assert all(received is not None for received in attention_of(result))
    probe, model = AttentionProbe(12), families.model("gemma4")
    with torch.no_grad(), probe.watching(model):
        model(ids[None], use_cache=True)  # all logits: all queries of all layers
    owned = probe.received({layer.index: layer.keys for layer in result.cache.layers})
    eager = families.model("gemma4", attn_implementation="eager")
    with torch.no_grad():
        weights = eager(ids[None], output_attentions=True).attentions
    seen = torch.arange(12, 0, -1)
    for layer in (0, 1):
        sums = weights[layer][0].sum(1) + weights[layer + 2][0].sum(1)  # (heads, tokens)
        mean = sums.unflatten(0, (owned[layer][0].shape[0], -1)).mean(1) / (2 * seen)
        torch.testing.assert_close(owned[layer][0], mean)
        both = torch.maximum(*(weights[i][0].mean(0) for i in (layer, layer + 2)))
        watched = probe.of_tokens({x.index: x.keys for x in result.cache.layers})
        for token in range(11):
            by = int(watched.watcher[layer, token])
            assert both[by, token] == pytest.approx(both[token + 1 :, token].max().item())


def test_the_look_up_is_put_back_when_the_model_fails():
    model = families.model("llama_gqa")
    update = Cache.update
    registry = __import__("sys").modules[type(model).__module__].ALL_ATTENTION_FUNCTIONS
    with pytest.raises(RuntimeError), AttentionProbe(4).watching(model):
        assert "get_interface" in vars(registry)
        assert Cache.update is not update
        raise RuntimeError
    assert "get_interface" not in vars(registry)
    assert Cache.update is update


@pytest.mark.parametrize("name", sorted(families.WITHOUT_PROBE))
def test_a_model_without_the_interface_yields_no_attention_and_says_so(name, caplog):
    result = prefill(families.loaded(name), families.token_ids(N), probe=True)
    assert attention_of(result) == [None, None] and result.attention is None
    assert "attention columns are empty" in caplog.text
