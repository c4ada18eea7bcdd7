"""The query that is to be expected of a head, against scores at every distance."""

import pytest
import torch

from data.cache import KVCache, LayerKV
from data.expected_queries import DISTANCES, expected_queries
from data.extraction import prefill
from data.rotary import NOT_ROTATED, Rotary
from tests import families

ROTARIES = {
    "halves": Rotary((0.9, 0.2, 0.01, 0.003)),
    "pairs, some of the dimensions, scaled": Rotary((0.5, 0.02), scaling=1.3, interleaved=True),
    "not rotated": NOT_ROTATED,
}


def cache_of(rotary, n=12):
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 3, n, 8, generator=generator)
    keys = keys if rotary is None else rotary.rotated(keys, torch.arange(n))
    layer = LayerKV(keys, values, torch.arange(n), 0, rotary=rotary)
    return KVCache((layer,), torch.arange(n), n, "a test")


@pytest.mark.parametrize("kind", ROTARIES)
def test_its_score_is_the_mean_over_queries_and_the_distances_from_a_key_to_them(kind):
    rotary = ROTARIES[kind]
    cache = cache_of(rotary)
    unrotated = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))  # of 3 x 2 heads
    last = rotary.rotated(unrotated, torch.arange(7, 12)).unflatten(0, (3, 2))
    (expected,) = expected_queries(cache, [last]).values()
    layer, mean = cache.layers[0], unrotated.mean(1)
    for place, key in enumerate(layer.keys.unbind(1)):  # (heads, dim)
        later = torch.arange(DISTANCES) + place + 1
        turned = rotary.rotated(mean[:, None].expand(-1, DISTANCES, -1), later).unflatten(0, (3, 2))
        scores = torch.einsum("hqsd,hd->hqs", turned, key).mean(2)
        told = torch.einsum("hqd,hd->hq", expected, layer.unrotated_keys()[:, place])
        torch.testing.assert_close(told, scores, atol=1e-4, rtol=1e-4)


def test_it_is_not_told_where_queries_or_what_rotates_keys_are_not_known():
    last = torch.randn(3, 2, 5, 8)
    assert expected_queries(cache_of(ROTARIES["halves"]), [None]) == {}
    assert expected_queries(cache_of(None), [last]) == {}
    assert expected_queries(cache_of(NOT_ROTATED), [last[..., :6]]) == {}  # of other keys


@pytest.mark.parametrize("name", ["gpt_oss", "gemma3", "mimo", "llama4"])
def test_of_a_model_it_fits_the_keys_of_each_layer(name):
    start = prefill(families.loaded(name), families.token_ids(40), probe=True, recent_only=True)
    expected = expected_queries(start.cache, start.last_queries)
    assert set(expected) == set(range(start.cache.n_layers))
    for i, layer in enumerate(start.cache.layers):
        heads, _, dim = expected[i].shape
        assert (heads, dim) == (layer.n_heads, layer.keys.shape[2]) and expected[i].isfinite().all()
