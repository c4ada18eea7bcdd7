"""Gradients of what a model predicts by its cache, against finite differences and divergences."""

import copy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from config import UsageError
from data.cache import KINDS
from data.extraction import prefill
from data.scoring import Continuation
from data.sensitivity import draws, sensitivities, windows
from tests import families

CONTEXT, SCORED = 24, 16


@lru_cache
def tiny_model():
    return families.fresh("llama_gqa"), families.token_ids(CONTEXT + SCORED + 1)


def logs(start, cache, model=None):
    """(scored, vocabulary) on top of this cache."""
    loaded, ids = tiny_model()
    return Continuation(model or loaded, start.past, ids[CONTEXT:]).log_probabilities(cache)


def moved(cache, errors):
    """The cache with errors (heads, tokens, dim) added to unrotated keys and to values."""
    layers = []
    for layer, pair in zip(cache.layers, errors, strict=True):
        keys = layer.rotary.rotated(layer.unrotated_keys() + pair["key"], layer.positions)
        layers.append(replace(layer, keys=keys, values=layer.values + pair["value"]))
    return replace(cache, layers=tuple(layers))


def nothing(cache):
    return [
        {kind: torch.zeros(layer.tensor(kind).shape) for kind in KINDS} for layer in cache.layers
    ]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(layer, kind):
    loaded, _ = tiny_model()
    refuse_other_gradients(loaded, layer, kind, change=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", families.LINEAR_AFTER)
def test_gradients_go_through_linear_attention(name, kind):
    """transformers writes the state of the layer between two that attend over what autograd needs,
    which was an error before."""
    loaded = families.fresh(name)
    refuse_other_gradients(loaded, 0, kind, change=0.01)


def refuse_other_gradients(loaded, layer, kind, change):
    """The largest gradients by one layer are what the sum of log-probabilities changes by."""
    _, ids = tiny_model()
    start = prefill(loaded, ids[:CONTEXT])
    found = draws(loaded, ids, CONTEXT, seed=3)[0]
    generator = torch.Generator().manual_seed(3)
    drawn = torch.multinomial(logs(start, start.cache, loaded).exp(), 1, generator=generator)
    signs = 2 * torch.randint(0, 2, drawn.shape, generator=generator) - 1
    gradient = found.gradients[layer][kind]
    held = start.cache.layers[layer].tensor(kind)
    assert found.n_scored == SCORED and gradient.shape == held.shape
    for place in gradient.flatten().abs().topk(3).indices.tolist():
        sums = []
        for step in (-change, change):
            errors = nothing(start.cache)
            errors[layer][kind].view(-1)[place] = step
            log_probabilities = logs(start, moved(start.cache, errors), loaded).double()
            sums.append((log_probabilities.gather(1, drawn) * signs).sum().item())
        expected = (sums[1] - sums[0]) / (2 * change)
        assert gradient.flatten()[place].item() == pytest.approx(expected, rel=0.05, abs=2e-4)


def test_the_values_that_a_model_never_reads_are_named():
    loaded = families.fresh("deepseek_v4")
    with pytest.raises(UsageError, match="no gradients by the values of layer 0"):
        draws(loaded, families.token_ids(CONTEXT + SCORED + 1), CONTEXT)


def test_squared_gradients_tell_the_divergence_of_small_errors():
    """KL, summed over predictions, is e' F e / 2, and draws of g g' average to F."""
    loaded, ids = tiny_model()
    start = prefill(loaded, ids[:CONTEXT])
    drawn = [found.gradients for found in draws(loaded, ids, CONTEXT, n_draws=12)]
    full = logs(start, start.cache).double()
    generator = torch.Generator().manual_seed(0)
    told = happened = 0.0
    for _ in range(12):
        errors = [
            {kind: 0.2 * torch.randn(layer.keys.shape, generator=generator) for kind in KINDS}
            for layer in start.cache.layers
        ]
        now = logs(start, moved(start.cache, errors)).double()
        happened += (full.exp() * (full - now)).sum().item()
        for gradients in drawn:
            pairs = zip(gradients, errors, strict=True)
            along = sum((g[kind] * e[kind]).sum().item() for g, e in pairs for kind in KINDS)
            told += along**2 / 2 / len(drawn)
    assert 1 / 1.5 < told / happened < 1.5


def test_a_model_without_room_or_text_cannot_be_calibrated():
    loaded, _ = tiny_model()
    with pytest.raises(UsageError, match="cannot be calibrated"):
        windows(loaded, "too short")
    with pytest.raises(UsageError, match="cannot be calibrated"):
        windows(loaded, "x" * 4000, contexts=(4,))
    chosen = windows(loaded, "x" * 4000, contexts=(2048, 32))
    assert [(len(ids), n) for ids, n in chosen] == [(256, 191), (97, 32)]  # of 256 positions


def test_a_model_without_gradients_is_refused_in_a_sentence(monkeypatch):
    loaded, ids = tiny_model()
    monkeypatch.setattr(
        "data.sensitivity.filled", lambda past, cache, dtype: copy.deepcopy(past)
    )  # a cache object that keeps a copy of its own
    with pytest.raises(UsageError, match="llama_gqa cannot be calibrated"):
        draws(loaded, ids, CONTEXT)


def test_draws_of_a_context_share_its_cache_and_come_again_with_their_seed():
    loaded, ids = tiny_model()
    first, second = draws(loaded, ids, CONTEXT, n_draws=2, seed=5)
    again = draws(loaded, ids, CONTEXT, n_draws=2, seed=5)
    assert first.cache is second.cache
    assert torch.equal(second.gradients[1]["key"], again[1].gradients[1]["key"])
    assert not torch.equal(first.gradients[1]["key"], second.gradients[1]["key"])
    assert not any(p.grad is not None for p in loaded.model.parameters())


def test_sensitivities_are_the_draws_of_each_window_in_turn():
    loaded, ids = tiny_model()
    found = list(sensitivities(loaded, [(ids, CONTEXT), (ids, CONTEXT - 4)], n_draws=2))
    assert [x.cache.n_tokens for x in found] == [CONTEXT, CONTEXT, CONTEXT - 4, CONTEXT - 4]
    assert found[2].n_scored == SCORED + 4


@pytest.mark.parametrize(
    "lack", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("odd")]
)
def test_lack_of_memory_is_no_lack_of_gradients(monkeypatch, lack):
    loaded, ids = tiny_model()

    def failing(past, cache, dtype):
        raise lack

    monkeypatch.setattr("data.sensitivity.filled", failing)
    with pytest.raises(type(lack)) as raised:
        draws(loaded, ids, CONTEXT)
    assert raised.value is lack


def test_autograds_own_complaints_are_a_sentence(monkeypatch):
    loaded, ids = tiny_model()

    def failing(past, cache, dtype):
        raise NotImplementedError("the derivative for 'some_kernel' is not implemented.")

    monkeypatch.setattr("data.sensitivity.filled", failing)
    with pytest.raises(UsageError, match="give no gradients by its cache"):
        draws(loaded, ids, CONTEXT)


def test_predictions_that_are_nan_are_named(monkeypatch):
    loaded = families.fresh("llama_gqa")
    _, ids = tiny_model()
    start = prefill(loaded, ids[:CONTEXT])
    loaded.model.lm_head.weight.data[3] = torch.nan
    monkeypatch.setattr("data.sensitivity.prefill", lambda *_, **__: start)
    with pytest.raises(UsageError, match="its predictions hold NaN in float32"):
        draws(loaded, ids, CONTEXT)
