"""Analyses of any length: blocks of every size give the same numbers, in memory that does not grow
with the text."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

import config
from analysis import blocks, embeddings, heuristics, measures, over_layers, similarity, tokens
from analysis.generation import generation_stages
from analysis.measures import peaks, sweep, thresholds
from analysis.tables import Subject, tables
from compression.methods import dim_groups
from data.cache import KVCache
from tests import caches
from tests.made import Made

WEIGHTS = config.IMPORTANCE_WEIGHTS


def looked_at(cache: KVCache) -> dict[str, pd.DataFrame]:
    """The tables of every analysis of keys and values."""
    swept = sweep(cache, 1.0)
    text = cache.before(max(1, cache.n_tokens // 2))
    positions, importance = tokens.importance(cache, WEIGHTS)
    kinds = similarity.comparable_kinds(cache)
    return {
        **tables(Subject(swept, caches.words(cache)), "all"),
        "heuristics": heuristics.of_parts(swept),
        "stages": generation_stages(text, cache, thresholds(text, 1.0)),
        "importance": pd.DataFrame({"position": positions, "importance": importance}),
        "correlations": similarity.dimension_correlations(cache, kinds),
    }


def in_blocks_of(monkeypatch, n_tokens: int) -> None:
    monkeypatch.setattr(blocks, "tokens_at_once", lambda x: n_tokens)
    monkeypatch.setattr("analysis.walk.tokens_at_once", lambda x: n_tokens)
    for module in (measures, similarity):
        monkeypatch.setattr(module, "SPAN", 2 * n_tokens)
    monkeypatch.setattr(dim_groups, "BLOCK", n_tokens)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("name", caches.SHAPES)
def test_blocks_of_any_size_give_the_same_tables(monkeypatch, name, size):
    cache = caches.watched(caches.SHAPES[name]())
    whole = looked_at(cache)
    in_blocks_of(monkeypatch, size)
    for stem, table in looked_at(cache).items():
        rounding = 1e-6 if stem == "correlations" else 1e-12  # the former are kept in float32
        pd.testing.assert_frame_equal(table, whole[stem], rtol=rounding, atol=1e-12)


@contextmanager
def one_after_the_other() -> Iterator:
    yield map


ANALYSES = {
    "peaks": peaks,
    "sweep": lambda cache: sweep(cache, 1.0),
    "heuristics": lambda cache: heuristics.of_parts(sweep(cache, 1.0)),
    "importance": lambda cache: tokens.importance(cache, WEIGHTS),
    "correlations": lambda cache: similarity.dimension_correlations(cache, ("key", "value")),
    "stages": lambda cache: generation_stages(cache.before(100), cache, {"key": 1.0, "value": 1.0}),
    "groups": lambda cache: dim_groups.dimension_groups(cache, 0.8, 8),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_the_largest_tensor_does_not_grow_with_the_text(monkeypatch, name):
    monkeypatch.setattr(measures, "side_by_side", one_after_the_other)  # modes see one thread
    sizes = []
    for n_tokens in (1 << 14, 1 << 16):
        layer = caches.layer(0, 4, n_tokens, (16, 16), dtype=torch.bfloat16)
        cache = caches.cache(layer)
        with Made() as made:
            ANALYSES[name](cache)
        sizes.append(made.largest)
    numbers_per_token = 4  # norms of each head at most
    assert sizes[1] <= max(sizes[0], numbers_per_token * n_tokens)


def test_of_a_long_text_neighbours_share_a_row_of_position_patterns(monkeypatch):
    cache = caches.mixed()
    alone = {kind: means.by_position for kind, means in sweep(cache, 1.0).of_positions.items()}
    monkeypatch.setattr(over_layers, "MOST_POSITIONS", 4)  # 10 tokens in groups of 3
    swept = sweep(cache, 1.0)
    for kind, means in swept.of_positions.items():
        groups = [alone[kind][k : k + 3].mean(0) for k in range(0, 10, 3)]
        np.testing.assert_allclose(means.by_position, torch.stack(groups), rtol=1e-12)
        np.testing.assert_allclose(means.variance, alone[kind].var(0, correction=0), rtol=1e-9)
    variance = embeddings.position_variance(swept)
    patterns = embeddings.position_patterns(swept, variance, 2)
    assert sorted(set(patterns["position"])) == [0, 3, 6, 9]


def test_of_a_long_text_sinks_and_the_most_attended_of_their_neighbours_are_told(monkeypatch):
    cache = caches.watched(caches.mixed())
    every = tokens.attention_sinks(sweep(cache, 1.0), caches.words(cache), 2)
    monkeypatch.setattr(over_layers, "MOST_POSITIONS", 4)
    told = tokens.attention_sinks(sweep(cache, 1.0), caches.words(cache), 2)
    assert len(told) < len(every)
    merged = told.merge(every, how="left", indicator=True)
    assert (merged["_merge"] == "both").all()  # the same numbers of fewer tokens
    for column in ("attention_received", "mean_received"):
        tops = [
            table.assign(group=table["position"] // 3).groupby(["layer", "group"])[column].max()
            for table in (every, told)
        ]
        pd.testing.assert_series_equal(*tops)


def test_threads_are_as_many_after_as_before():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="inside"), blocks.side_by_side() as in_threads:
        assert list(in_threads(lambda x: x + 1, range(5))) == [1, 2, 3, 4, 5]
        raise ValueError("inside")
    assert torch.get_num_threads() == before
