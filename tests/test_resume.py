"""Going on from a restored cache as the model itself would."""

import pytest
import torch

from compression.base import Uncompressed
from compression.methods.pruning import EvictedParts
from config import UsageError
from data.extraction import prefill
from data.inventory import leaves
from data.own_cache import states_of
from data.resume import as_past, greedy, side_by_side
from tests import families

EVERY = families.SETTINGS | families.KEEPS_MORE


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [3, 40])
@torch.no_grad()
def test_logits_after_a_restored_cache_are_exactly_those_after_the_models_own(name, n):
    loaded, ids = families.loaded(name), families.token_ids(n + 4)
    start = prefill(loaded, ids[:n])
    states = states_of(start.past)
    assert bool(states) == (name in families.WITH_STATES)
    pasts = (as_past(loaded, start.cache, states), start.past)
    for fed in (ids[None, n : n + 1], ids[None, n + 1 :]):  # steps of one token and of more
        ours, own = (loaded.model(fed, past_key_values=p, use_cache=True).logits for p in pasts)
        assert torch.equal(ours, own)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 33])
def test_all_that_a_cache_object_holds_is_restored(name, n):
    loaded = families.loaded(name)
    start = prefill(loaded, families.token_ids(n))
    past = as_past(loaded, start.cache, states_of(start.past))
    assert type(past) is type(start.past) and past is not start.past
    restored, own = dict(leaves(past)), dict(leaves(start.past))
    assert restored.keys() == own.keys()
    for path, x in own.items():
        same = torch.equal(x, restored[path]) if torch.is_tensor(x) else x == restored[path]
        assert same, path


@pytest.mark.parametrize("name", families.WITH_STATES)
def test_states_that_are_not_given_or_not_the_models_are_refused(name):
    loaded = families.loaded(name)
    start = prefill(loaded, families.token_ids(20))
    states = states_of(start.past)
    first = min(states)
    for wrong in (
        {},
        {path: x for path, x in states.items() if path != first},
        states | {"layers.0.more": torch.zeros(1)},
        states | {first: states[first].double()},
        states | {first: states[first][None]},
        states | {first: states[first][..., :-1]},
    ):
        with pytest.raises(UsageError, match="keeps more than keys and values"):
            as_past(loaded, start.cache, wrong)


def test_states_stay_as_they_were_given():
    loaded = families.loaded("falcon_h1")
    start = prefill(loaded, families.token_ids(20))
    states = states_of(start.past)
    before = {path: x.clone() for path, x in states.items()}
    greedy(loaded, as_past(loaded, start.cache, states), 20, 5, 3)
    assert all(torch.equal(states[path], x) for path, x in before.items())


CONTINUES = ["gpt2", "llama_gqa", "mistral", "gemma3", "qwen3", "deepseek_v3", "phi3", "gemma4"]


@pytest.mark.parametrize("name", CONTINUES)
def test_generate_takes_a_restored_cache(name):
    loaded, ids = families.loaded(name), families.token_ids(41)
    restored = Uncompressed().compress(prefill(loaded, ids[:40]).cache).restore()
    with torch.no_grad():
        direct = loaded.model.generate(
            ids[None], max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        resumed = loaded.model.generate(
            ids[None],
            past_key_values=as_past(loaded, restored),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert direct.tolist() == resumed.tolist()
    found = greedy(loaded, as_past(loaded, restored), 40, int(ids[-1]), 6)
    assert found == direct[0, 41:].tolist()


def test_evicted_entries_cannot_be_gone_on_from():
    loaded = families.loaded("llama_gqa")
    cache = prefill(loaded, families.token_ids(20)).cache
    with pytest.raises(UsageError, match="evicted entries"):
        as_past(loaded, EvictedParts((0,)).compress(cache).restore())


def test_two_continuations_are_marked_where_they_part():
    loaded = families.loaded("llama_gqa")
    letters = loaded.tokenizer("abcdef")["input_ids"]
    (_, one), (title, two) = side_by_side(loaded, letters[:4], [*letters[:2], *letters[4:]], "x")
    assert (one, two) == ("ab >> cd", "ab >> ef") and "differs at token 3" in title
    (_, one), (title, two) = side_by_side(loaded, letters, letters, "x")
    assert one == two == "abcdef" and "the same throughout" in title
