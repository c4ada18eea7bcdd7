"""Evictions in models that choose by an index which tokens they attend to."""

from dataclasses import replace

import pytest
import torch

from compression.methods.evictions import Recent
from config import UsageError
from data.extraction import prefill
from tests import families


def without(cache, gone):
    """`cache` with the tokens of `gone`, one (tokens,) per layer, evicted from every head."""
    layers = [
        replace(layer, keep=(~each).expand(layer.n_heads, -1))
        for layer, each in zip(cache.layers, gone, strict=True)
    ]
    return replace(cache, layers=tuple(layers))


def some(seed: int = 0) -> torch.Tensor:
    """(tokens,): about half, evicted."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(families.CONTEXT, generator=generator) < 0.5


def watched(model) -> list[torch.Tensor]:
    """Collects the places (queries, top-k) that each index of a model chooses from here on."""
    places: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith(".indexer"):
            module.register_forward_hook(lambda *given: places.append(given[-1][0]))
    return places


@pytest.mark.parametrize("name", families.INDEXED)
def test_an_evicted_token_takes_no_place_of_an_index(name):
    """The index chooses as many kept tokens as it would have chosen of any."""
    loaded, _, start, continuation = families.scored(name, families.fresh)
    chosen = watched(loaded.model)
    gone = some()
    continuation.log_probabilities(without(start.cache, [gone] * 2))
    assert chosen
    for places in chosen:
        cached = places[places < families.CONTEXT]
        assert places.shape[-1] == 8 and not gone[cached.long()].any()


@pytest.mark.parametrize("name", families.INDEXED)
def test_evicting_from_an_index_is_scoring_its_tokens_at_minus_infinity(name, monkeypatch):
    """By another way: every top-k over as many scores as there are keys is handed scores in which
    the evicted ones have been overwritten, and the model's own functions do the rest."""
    _, _, start, continuation = families.scored(name)
    gone = some()
    n_keys, topk = families.CONTEXT + families.SCORED, torch.Tensor.topk

    def blind(scores, k, **named):
        if scores.shape[-1] == n_keys:
            scores = scores.clone()
            scores[..., : families.CONTEXT][..., gone] = -torch.inf
        return topk(scores, k, **named)

    def evicted(ways):
        with monkeypatch.context() as patch:
            for way in ways:
                patch.setattr(*way)
            return continuation.log_probabilities(without(start.cache, [gone] * 2))

    unhidden = ("data.sparse_index._indexes", lambda model: [])
    found, expected = evicted([]), evicted([unhidden, (torch.Tensor, "topk", blind)])
    taking, usual = evicted([unhidden]), continuation.log_probabilities(start.cache)
    assert torch.equal(found, expected)
    assert (found - taking).abs().max() > 0.01 and (found - usual).abs().max() > 0.01


def test_an_index_that_serves_two_layers_hides_what_both_have_evicted():
    loaded, _, start, continuation = families.scored("glm_moe_dsa", families.fresh)
    chosen = watched(loaded.model)
    one, two = some(1), some(2)
    continuation.log_probabilities(without(start.cache, [one, two]))
    (places,) = chosen
    cached = places[places < families.CONTEXT].long()
    assert not (one & two)[cached].any() and (one ^ two)[cached].any()


def test_the_hooks_are_gone_afterwards():
    loaded, _, start, continuation = families.scored("deepseek_v32")
    before = continuation.log_probabilities(start.cache)
    continuation.log_probabilities(without(start.cache, [some()] * 2))
    assert torch.equal(before, continuation.log_probabilities(start.cache))
    assert not any(m._forward_pre_hooks for m in loaded.model.modules())


def test_compressed_entries_are_no_tokens():
    """DeepSeek-V4 attends to entries that stand for several tokens, after those of its window:
    what tokens receive is not known, and what is evicted would still be seen."""
    loaded, ids, start, continuation = families.scored("deepseek_v4")
    first, second, plain = prefill(loaded, ids[: families.CONTEXT], probe=True).cache.layers
    assert first.attention is second.attention is None
    assert first.recent_attention is second.recent_attention is None
    assert plain.attention is not None
    evicted = Recent(keep=0.5).compress(start.cache).restore()
    with pytest.raises(UsageError, match="Layer 0 of deepseek_v4 attends to other entries"):
        continuation.log_probabilities(evicted)


def test_an_index_that_is_given_no_mask_is_refused():
    """MiniMax-M3 takes blocks of places by an index of its own making."""
    _, _, start, continuation = families.scored("minimax_m3")
    evicted = Recent(keep=0.5).compress(start.cache).restore()
    with pytest.raises(UsageError, match=r"minimax_m3 chooses the tokens .* cannot be hidden"):
        continuation.log_probabilities(evicted)


def test_an_index_of_blocks_takes_none_of_what_is_evicted():
    loaded, _, start, continuation = families.scored("qwen4", families.fresh)
    chosen, gone = watched(loaded.model), some()
    continuation.log_probabilities(without(start.cache, [gone] * 2))
    assert chosen and not any(mask[0, :, : families.CONTEXT][:, gone].any() for mask in chosen)
    assert any(mask[0, :, : families.CONTEXT][:, ~gone].any() for mask in chosen)
