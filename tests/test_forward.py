"""Every call of a model says where its tokens stand; what comes of it, against no cache at all."""

import inspect

import pytest
import torch

from data.extraction import generate, prefill
from data.forward import forward
from data.resume import greedy
from data.scoring import Continuation
from data.sensitivity import draws
from tests import families
from tests.families import CONTEXT, SCORED

every_family = pytest.mark.parametrize("name", families.SETTINGS)


@torch.no_grad()
def at_once(loaded, ids) -> torch.Tensor:
    """(tokens, vocabulary) log-probabilities of one pass over the whole text, without a cache."""
    return torch.log_softmax(loaded.model(ids[None], use_cache=False).logits[0].float(), -1)


@every_family
def test_predictions_on_top_of_a_cache_are_those_without_any(name):
    loaded, ids = families.sharp(name), families.token_ids(CONTEXT + SCORED + 1)
    whole = at_once(loaded, ids)
    assert whole.std() > 1  # such that a wrong position shows
    start = prefill(loaded, ids[:CONTEXT])
    assert int(start.next_token) == int(whole[CONTEXT - 1].argmax())
    found = Continuation(loaded, start.past, ids[CONTEXT:]).log_probabilities(start.cache)
    torch.testing.assert_close(found, whole[CONTEXT:-1], atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        steps = [
            forward(loaded, ids[i : i + 1], start.past, i).logits[0, 0] for i in range(CONTEXT, 46)
        ]
    stepwise = torch.log_softmax(torch.stack(steps).float(), -1)
    torch.testing.assert_close(stepwise, whole[CONTEXT:-1], atol=1e-3, rtol=1e-3)


@every_family
def test_what_is_generated_is_what_is_most_likely_without_a_cache(name):
    loaded, ids = families.sharp(name), families.token_ids(CONTEXT + 1)
    chosen = greedy(loaded, prefill(loaded, ids[:-1]).past, CONTEXT, int(ids[-1]), 4)
    whole = torch.cat([ids, torch.tensor(chosen)])
    assert at_once(loaded, whole)[CONTEXT:-1].argmax(-1).tolist() == chosen
    grown = generate(loaded, prefill(loaded, ids), 4)
    assert grown.token_ids.tolist() == whole.tolist()


def test_every_call_of_the_toolkit_says_its_positions(monkeypatch):
    loaded, ids = families.loaded("llama_gqa"), families.token_ids(20)
    prefill(loaded, ids)  # after which its cache is not tried any more
    told, run = [], loaded.model.forward

    def spy(input_ids, position_ids=None, cache_position=None, **rest):
        told.append((input_ids.shape[1], position_ids.tolist(), cache_position.tolist()))
        return run(input_ids, position_ids=position_ids, **rest)

    monkeypatch.setattr(loaded.model, "forward", spy)
    start = prefill(loaded, ids[:12])
    continuation = Continuation(loaded, start.past, ids[12:])
    continuation.log_probabilities(start.cache)
    continuation.greedy(start.cache, 2)
    draws(loaded, ids, 12)
    generate(loaded, start, 2)
    one_text = [x for x in told if len(x[1]) == 1]  # several where rotations are looked for
    assert one_text == [
        (n, [list(range(at, at + n))], list(range(at, at + n)))
        for at, n in [(0, 12), (12, 7), (12, 1), (13, 1), (0, 12), (12, 7), (12, 1), (13, 1)]
    ]


def test_a_model_that_is_told_no_positions_is_run_all_the_same():
    loaded = families.fresh("llama_gqa")
    assert "position_ids" in inspect.signature(loaded.model.forward).parameters
    run = loaded.model.forward
    loaded.model.forward = lambda input_ids, past_key_values=None, use_cache=None: run(
        input_ids, past_key_values=past_key_values, use_cache=use_cache
    )
    with torch.no_grad():
        assert forward(loaded, families.token_ids(5)).logits.shape == (1, 5, families.VOCABULARY)
