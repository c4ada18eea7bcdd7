"""The cache itself, tokens by dimensions: entries of one layer and head, against brute force."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import blocks, cached_entries
from analysis.cached_entries import Shown
from config import UsageError
from data.rotary import NOT_ROTATED
from data.saved_layers import SavedLayer
from tests import caches
from tests.made import Made

LONG = 50


def entries(cache, shown=cached_entries.USUAL) -> dict[str, pd.DataFrame]:
    return cached_entries.cached_entries(cache, caches.words(cache), shown)


def grid(table: pd.DataFrame, kind: str) -> np.ndarray:
    return table[table["kind"] == kind].filter(regex=r"^dim_\d+$").to_numpy()


def long() -> caches.KVCache:
    return caches.cache(*(caches.layer(i, 2, LONG, (8, 6)) for i in range(3)))


@pytest.mark.parametrize("shape", caches.SHAPES)
def test_a_short_text_is_shown_entry_by_entry(shape):
    cache = caches.SHAPES[shape]()
    for layer in cache.layers:
        for head in range(layer.n_heads):
            found = entries(cache, Shown(layer.index, head))
            keys, values = found["cache/keys"], found["cache/values"]
            np.testing.assert_array_equal(grid(keys, "key"), layer.keys[head].float())
            unrotated = layer.unrotated_keys()[head]
            if layer.rotary.frequencies:
                np.testing.assert_array_equal(grid(keys, "unrotated_key"), unrotated)
            np.testing.assert_array_equal(grid(values, "value"), layer.values[head].float())
            assert list(values["position"]) == layer.positions.tolist()
            assert list(values["token"]) == [f"w{i}" for i in layer.positions.tolist()]
            assert (keys["layer"] == layer.index).all() and (keys["head"] == head).all()


def test_of_a_long_text_each_row_has_what_is_farthest_from_0_of_its_tokens(monkeypatch):
    monkeypatch.setattr(cached_entries, "MOST_ROWS", 8)
    monkeypatch.setitem(blocks.ENTRIES, "cpu", 100)  # many blocks
    layer = long().layers[1]
    found = entries(long(), Shown(1, 1))
    of_kinds = {"key": layer.keys, "unrotated_key": layer.unrotated_keys(), "value": layer.values}
    for kind, x in of_kinds.items():
        table = found["cache/values" if kind == "value" else "cache/keys"]
        expected = [
            [max(group[:, dim].tolist(), key=abs) for dim in range(x.shape[2])]
            for group in x[1].split(7)  # 50 tokens in 8 rows
        ]
        np.testing.assert_allclose(grid(table, kind), expected, rtol=1e-6)
    assert list(found["cache/values"]["position"]) == list(range(0, LONG, 7))
    assert list(found["cache/values"]["tokens"]) == [7] * 7 + [1]


def test_what_was_evicted_is_shown_by_none(monkeypatch):
    keep = torch.ones(LONG, dtype=torch.bool)
    keep[[3, 4, 20]] = False
    evicted = caches.with_keep(long(), keep)
    whole = grid(entries(evicted)["cache/values"], "value")
    assert (np.isnan(whole).all(1) == ~keep.numpy()).all()
    np.testing.assert_array_equal(whole[keep], long().layers[1].values[0][keep])
    monkeypatch.setattr(cached_entries, "MOST_ROWS", LONG // 2)
    pairs = grid(entries(evicted)["cache/values"], "value")
    assert np.abs(pairs[2 - 1]).max() < 50 and np.isnan(pairs).sum() == 0  # noise of 100 is out
    keep[:2] = False
    assert np.isnan(grid(entries(caches.with_keep(long(), keep))["cache/values"], "value")[0]).all()


def test_the_rotary_embedding_is_undone_where_it_is_known():
    cache = long()
    for rotary, state in ((None, "not known"), (NOT_ROTATED, "none")):
        layers = tuple(replace(layer, rotary=rotary) for layer in cache.layers)
        keys = entries(replace(cache, layers=layers))["cache/keys"]
        assert set(keys["kind"]) == {"key"} and set(keys["rotary"]) == {state}
    keys = entries(cache)["cache/keys"]
    assert set(keys["kind"]) == {"key", "unrotated_key"} and set(keys["rotary"]) == {"undone"}
    again = cache.layers[1].rotary.rotated(
        torch.tensor(grid(keys, "unrotated_key"))[None], cache.layers[1].positions
    )
    np.testing.assert_allclose(again[0], grid(keys, "key"), atol=1e-5)


def test_only_the_one_layer_is_read():
    touched = set()

    def make(index: int, name: str) -> torch.Tensor:
        touched.add(index)
        return getattr(caches.layer(index, 2, LONG, (8, 6)), name)

    layers = [
        SavedLayer.of(make, keys=x.keys, values=x.values, positions=x.positions, index=x.index)
        for x in long().layers
    ]
    cached_entries.cached_entries(
        replace(long(), layers=tuple(layers)), caches.words(long()), Shown(2)
    )
    assert touched == {2}


def test_a_long_text_takes_a_block_at_a_time():
    cache = caches.cache(caches.layer(0, 1, 20_000, (64, 64)))
    with Made() as made:
        entries(cache)
    assert made.largest <= blocks.ENTRIES["cpu"] < cache.layers[0].keys.numel()


def test_where_nothing_is_asked_the_first_head_of_the_middle_layer_is_shown():
    keys = entries(caches.mixed())["cache/keys"]
    assert set(keys["layer"]) == {3} and set(keys["head"]) == {0}


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        (Shown(1), "`layer` is 1, and the cache has no keys and values of such a layer: it takes "
         "0, 2, 3 or 5."),
        (Shown(2, 3), "`head` is 3, and layer 2 has 3 KV heads: it takes 0 to 2."),
        (Shown(head=1), "`head` is 1, and layer 3 has one KV head: it takes 0."),
    ],
)  # fmt: skip
def test_what_the_cache_does_not_have_is_refused_in_one_sentence(shown, says):
    with pytest.raises(UsageError) as refusal:
        shown.of(caches.mixed())
    assert str(refusal.value) == says
