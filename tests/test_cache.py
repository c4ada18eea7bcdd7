import pytest
import torch

from data.cache import KVCache, LayerKV, by_head, wide
from tests import caches


def test_original_bytes_are_two_for_each_entry_of_kv_heads():
    # 2 layers of 2 KV heads x 5 tokens x (8 + 4) dims, whatever the dtype of the run
    cache = caches.cache(*(caches.layer(i, 2, 5, (8, 4)) for i in range(2)))
    assert cache.nbytes == 2 * 2 * 2 * 5 * (8 + 4)


def test_bytes_add_up_over_unequal_layers():
    cache = caches.mixed()
    assert cache.nbytes == 2 * (2 * 6 * 16 + 3 * 10 * 32 + 1 * 10 * 32 + 1 * 10 * 16)
    assert cache.n_heads == 3


def test_before_gives_the_tokens_ahead_of_a_position_and_copies_nothing():
    cache = caches.mixed()
    early = cache.before(7)
    assert [layer.n_tokens for layer in early.layers] == [3, 7, 7, 7]
    assert early.n_tokens == 7 and early.n_prompt == 7
    for part, whole in zip(early.layers, cache.layers, strict=True):
        n = part.n_tokens
        assert torch.equal(part.keys, whole.keys[:, :n])
        assert part.keys.data_ptr() == whole.keys.data_ptr()
        assert (part.positions < 7).all()


def test_before_the_end_is_the_whole():
    cache = caches.alike()
    whole = cache.before(cache.n_tokens)
    assert all(
        torch.equal(a.values, b.values) for a, b in zip(whole.layers, cache.layers, strict=True)
    )


@pytest.mark.parametrize("position", [0, 11])
def test_before_a_position_outside_is_an_error_with_the_numbers(position):
    with pytest.raises(ValueError, match=f"position {position} in a cache of 10 tokens"):
        caches.alike().before(position)


@pytest.mark.parametrize(
    ("keys", "values", "positions", "law"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 2, "are \\(kv_heads, tokens, dim\\)"),
        ((2, 5, 4), (3, 5, 4), 5, "share kv_heads and tokens"),
        ((2, 5, 4), (2, 6, 4), 5, "share kv_heads and tokens"),
        ((2, 5, 4), (2, 5, 7), 4, "positions for 5 tokens"),
    ],
)
def test_a_layer_that_does_not_fit_together_is_refused(keys, values, positions, law):
    with pytest.raises(ValueError, match=law):
        LayerKV(torch.zeros(keys), torch.zeros(values), torch.arange(positions), 0)


def test_an_empty_cache_and_an_impossible_prompt_are_refused():
    layer = caches.layer(0, 1, 3, (2, 2))
    with pytest.raises(ValueError, match="at least one layer"):
        KVCache((), torch.arange(3), 3, "m")
    with pytest.raises(ValueError, match="n_prompt 4 of 3 tokens"):
        KVCache((layer,), torch.arange(3), 4, "m")


def test_heads_side_by_side_and_back():
    x = caches.layer(0, 3, 5, (4, 2)).keys
    joined = wide(x)
    for head, token in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        assert torch.equal(joined[token, 4 * head : 4 * (head + 1)], x[head, token])
    assert torch.equal(by_head(joined, 3), x)
