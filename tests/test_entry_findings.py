"""What is said of the entries of one layer and KV head, on small tables."""

import numpy as np
import pandas as pd
import pytest

from analysis.cached_entries import Shown, cached_entries
from analysis.entry_findings import outliers, said
from tests import caches


def rows(kind: str, entries: np.ndarray, tokens: int = 1) -> pd.DataFrame:
    """entries: (rows, dim)"""
    told = {"layer": 4, "head": 1, "kind": kind, "tokens": tokens}
    told |= {"position": np.arange(len(entries)) * tokens}
    dims = {f"dim_{i}": entries[:, i] for i in range(entries.shape[1])}
    return pd.DataFrame(told | dims)


ENTRIES = np.array([[1.0, -8.0, 2.0, 1.0], [-1.0, 8.0, -2.0, -30.0], [1.0, -8.0, 2.0, 1.0]])
FLAT = np.ones((3, 4)) * [1, -1, 1, 2]


def test_dimensions_that_are_large_at_every_token_are_named_and_the_largest_entry():
    keys, values = said(rows("key", ENTRIES), rows("value", FLAT))
    assert keys == (  # medians 1, 8, 2, 1, of which the median is 1.5
        "Keys as stored of layer 4, KV head 1: 1 of 4 dimensions is more than 3 times as large as "
        "the median one, by median magnitude; largest 1 (5.3 times); the largest entry is -30, in "
        "dimension 3, position 1."
    )
    assert "none of 4 dimensions are more than 3 times as large" in values
    assert "largest 3 (2.0 times); the largest entry is 2, in dimension 3, position 0" in values


def test_rows_of_several_tokens_are_told_as_that_and_evicted_ones_left_out():
    gone = np.concatenate([np.full((1, 4), np.nan), ENTRIES])
    keys, _ = said(rows("key", gone, tokens=2), rows("value", FLAT), "Of the first text: ")
    assert keys.startswith("Of the first text: Keys as stored of layer 4, KV head 1: 1 of 4")
    assert "(of each 2 tokens the entry farthest from 0)" in keys
    assert "dimension 3, one of positions 4 to 5." in keys


def test_nothing_is_a_multiple_of_nought():
    zeros, values = said(rows("key", np.zeros((3, 4))), rows("value", FLAT))
    assert "half of the entries or more are 0" in zeros and "times" not in zeros
    assert said(rows("key", np.full((3, 4), np.nan)), rows("value", FLAT)) == [values]


def test_what_is_said_holds_for_the_cache_itself():
    cache = caches.alike()
    shown = Shown(cache.layers[1].index, 2)
    tables = cached_entries(cache, caches.words(cache), shown)
    layer, _ = shown.of(cache)
    for line, own in zip(
        said(tables["cache/keys"], tables["cache/values"]), (layer.keys, layer.values), strict=True
    ):
        x = own[2].double().numpy()
        token, dim = np.unravel_index(np.abs(x).argmax(), x.shape)
        assert f"entry is {x[token, dim]:.3g}, in dimension {dim}, position {token}." in line
        usual = np.median(np.abs(x), axis=0)
        largest = usual.argmax()
        factor = usual[largest] / np.median(usual)
        assert f"largest {largest} ({factor:.1f} times)" in line
        assert outliers(usual) == [] or factor > 3


@pytest.mark.parametrize("factor", [2.99, 3.01])
def test_an_outlier_is_more_than_three_times_the_median(factor):
    assert outliers(np.array([1.0, 1.0, 1.0, factor])) == ([3] if factor > 3 else [])
