"""Going on from a restored cache as the model itself would."""

import pytest
import torch

from compression.base import Uncompressed
from compression.methods.pruning import EvictedParts
from config import UsageError
from data.extraction import prefill
from data.resume import as_past, greedy, side_by_side
from tests import families


@pytest.mark.parametrize("name", families.SETTINGS)
@torch.no_grad()
def test_logits_after_a_restored_cache_are_those_after_the_models_own(name):
    loaded, ids = families.loaded(name), families.token_ids(44)
    start = prefill(loaded, ids[:40])
    if name in families.MORE_THAN_KEYS_AND_VALUES:
        with pytest.raises(UsageError, match="keeps more than keys and values"):
            as_past(loaded, start.cache)
        return
    pasts = (as_past(loaded, start.cache), start.past)
    for fed in (ids[None, 40:41], ids[None, 41:]):  # several steps, of one token and of more
        ours, own = (loaded.model(fed, past_key_values=p, use_cache=True).logits for p in pasts)
        torch.testing.assert_close(ours, own)


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
    found = greedy(loaded, as_past(loaded, restored), int(ids[-1]), 6)
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
