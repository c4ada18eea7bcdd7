"""Token importance and attention sinks, against brute force."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import tokens
from analysis.embeddings import position_variance
from analysis.measures import sweep
from analysis.sinks import sinks
from analysis.tokens import attention_sinks, token_importance
from config import UsageError
from data.cache import KINDS
from tests import caches
from tests.caches import PERCENTAGE, random_attention, with_attention, words

WEIGHTS = {"key": 0.35, "value": 0.35, "energy": 0.30}


def table_of(cache, attention, weights=WEIGHTS, min_queries=1):
    watched = with_attention(cache, attention)
    return token_importance(sweep(watched, PERCENTAGE), words(cache), weights, min_queries)


def test_token_columns_equal_their_definitions():
    cache = caches.mixed()
    attention = random_attention(cache)
    table = table_of(cache, attention)
    assert list(table["position"]) == list(range(10))
    spanning = list(zip(cache.layers, attention, strict=True))[1:]  # layer 0 has forgotten some
    for position in range(10):
        norms = {"key": [], "value": []}
        received, energy = [], []
        for layer, weights in spanning:
            for kind in KINDS:
                norms[kind].append(layer.tensor(kind)[:, position].norm().item())
            received.append(weights[:, position].mean().item())
            value_norms = layer.values[:, position].norm(dim=-1)
            energy.append((weights[:, position] * value_norms).mean().item())
        row = table.iloc[position]
        assert row["key_norm"] == pytest.approx(np.mean(norms["key"]), rel=1e-5)
        assert row["value_norm"] == pytest.approx(np.mean(norms["value"]), rel=1e-5)
        assert row["attention_received"] == pytest.approx(np.mean(received), rel=1e-5)
        assert row["attention_energy"] == pytest.approx(np.mean(energy), rel=1e-5)


def test_a_window_makes_no_step_in_the_means_over_layers():
    alike = caches.layer(0, 2, 10, (4, 4))
    windowed = replace(
        caches.layer(1, 2, 5, (4, 4), n_tokens=10, kind="sliding"),
        keys=100 * torch.ones(2, 5, 4),
        values=100 * torch.ones(2, 5, 4),
    )
    cache, alone = caches.cache(alike, windowed), caches.cache(alike)
    pair, single = random_attention(cache), random_attention(alone)
    single[0] = pair[0]
    columns = ["key_norm", "value_norm", "attention_received", "attention_energy"]
    both, one = table_of(cache, pair), table_of(alone, single)
    pd.testing.assert_frame_equal(both[columns], one[columns])
    variance = position_variance(sweep(cache, 1.0)), position_variance(sweep(alone, 1.0))
    pd.testing.assert_frame_equal(*variance)


def test_importance_weighs_each_term_as_a_share_of_its_maximum():
    table = table_of(caches.alike(), random_attention(caches.alike()))
    terms = {"key_norm": 0.35, "value_norm": 0.35, "attention_energy": 0.30}
    expected = sum(w * table[name] / table[name].max() for name, w in terms.items())
    pd.testing.assert_series_equal(table["importance"], expected, check_names=False)


def test_without_attention_its_columns_are_empty_and_the_norms_share_its_weight():
    cache = caches.alike()
    table = table_of(cache, [None] * cache.n_layers)
    assert table[["attention_received", "attention_energy"]].isna().all().all()
    expected = (table["key_norm"] / table["key_norm"].max()) / 2
    expected += (table["value_norm"] / table["value_norm"].max()) / 2
    pd.testing.assert_series_equal(table["importance"], expected, check_names=False)


def test_weights_of_the_energy_alone_need_the_attention():
    cache = caches.alike()
    with pytest.raises(UsageError, match="weighs attention energy alone"):
        table_of(cache, [None] * 4, {"key": 0, "value": 0, "energy": 1})


@pytest.mark.parametrize("measured", ["all", "some", "none"])
@pytest.mark.parametrize("shape", caches.SHAPES)
def test_the_score_of_a_cache_alone_is_that_of_the_table(shape, measured):
    cache = caches.SHAPES[shape]()
    attention = random_attention(cache)
    kept = {"all": attention, "some": attention[:-1], "none": []}[measured]
    attention = kept + [None] * (cache.n_layers - len(kept))
    positions, scores = tokens.importance(with_attention(cache, attention), WEIGHTS)
    table = table_of(cache, attention)
    assert positions.tolist() == table["position"].tolist()
    assert scores.tolist() == table["importance"].tolist()


def test_a_token_that_no_layer_holds_has_no_row():
    cache = caches.cache(*(caches.layer(i, 2, 4, (8, 8), n_tokens=10) for i in range(2)))
    assert list(table_of(cache, [None, None])["position"]) == [6, 7, 8, 9]


@pytest.mark.parametrize(("min_queries", "ranked"), [(1, 10), (4, 7), (10, 6), (99, 6)])
def test_tokens_that_few_queries_see_are_not_ranked(min_queries, ranked):
    table = table_of(caches.alike(), [None] * 4, min_queries=min_queries)
    assert list(table["seen_by"]) == list(range(10, 0, -1))
    assert table["well_seen"].sum() == ranked
    assert table["well_seen"].iloc[0]


def test_sinks_name_the_token_and_carry_the_mean_over_layers():
    cache = caches.mixed()
    attention = random_attention(cache)
    table = attention_sinks(sweep(with_attention(cache, attention), PERCENTAGE), words(cache), 1)
    assert len(table) == 6 + 3 * 10
    rows = table[table["position"] == 7]
    assert set(rows["token"]) == {"w7"}
    expected = [a[:, -3].mean().item() for a in attention]
    assert list(rows["attention_received"]) == pytest.approx(expected)
    # The mean is over the layers that hold all tokens: not the first.
    assert list(rows["mean_received"]) == pytest.approx([np.mean(expected[1:])] * 4)


def test_even_share_is_what_uniform_attention_gives():
    cache = caches.alike()
    n = cache.n_tokens
    uniform = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    expected = [uniform[j:, j].mean() for j in range(n)]
    attention = [torch.tensor(expected).float().expand(3, n)] * 4
    table = attention_sinks(sweep(with_attention(cache, attention), PERCENTAGE), words(cache), 1)
    np.testing.assert_allclose(table["even_share"], table["attention_received"], rtol=1e-6)


def test_without_attention_there_are_no_sinks():
    cache = caches.alike()
    assert attention_sinks(sweep(cache, 1.0), words(cache), 1).empty


def test_a_text_of_one_token_gives_it_all_attention():
    cache = caches.SHAPES["one token"]()
    alone = with_attention(cache, [torch.ones(2, 1)])
    (row,) = attention_sinks(sweep(alone, 1.0), words(cache), 1).to_dict("records")
    assert row["attention_received"] == row["mean_received"] == row["even_share"] == 1


def test_the_words_of_a_text_carry_the_attention_that_the_sinks_are_told_by():
    cache = caches.mixed()
    swept = sweep(with_attention(cache, random_attention(cache)), PERCENTAGE)
    text = tokens.attended_text(swept, words(cache), 3)
    first = attention_sinks(swept, words(cache), 3).drop_duplicates("position")
    pd.testing.assert_frame_equal(
        text, first.sort_values("position")[list(text)].reset_index(drop=True)
    )
    assert list(text["token"]) == words(cache)
    assert tokens.attended_text(sweep(cache, 1.0), words(cache), 1).empty


@pytest.mark.parametrize("measured", [True, False])
def test_importance_is_the_sum_of_its_parts(measured):
    cache = caches.alike()
    table = table_of(cache, random_attention(cache) if measured else [None] * 4)
    parts = table[[f"importance_{term}" for term in ("key", "value", "energy")]]
    np.testing.assert_allclose(parts.sum(axis=1), table["importance"])
    assert parts["importance_energy"].isna().all() != measured


@pytest.mark.parametrize("times", [9.9, 10.1])
def test_a_sink_receives_ten_times_the_even_share(times):
    cache = caches.cache(caches.layer(0, 1, 200, (4, 4)))
    probe = with_attention(cache, [torch.full((1, 200), 1e-4)])
    even = attention_sinks(sweep(probe, 1.0), words(cache), 64)["even_share"]
    attention = torch.full((1, 200), 1e-4)
    attention[0, 90], attention[0, 199] = times * even[90], 0.9  # the last is seen by itself alone
    swept = sweep(with_attention(cache, [attention]), 1.0)
    table = attention_sinks(swept, words(cache), 64)
    importance = token_importance(swept, words(cache), WEIGHTS, 64)
    for found in (sinks(table), sinks(importance, "attention_received")):
        assert list(found["position"]) == ([90] if times > 10 else [])
