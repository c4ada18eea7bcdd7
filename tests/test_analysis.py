"""The tables of layers, heads, magnitudes, tokens, dimensions and stages, against brute force."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.embeddings import embedding_consistency, position_patterns, position_variance
from analysis.findings import key_findings, recommendations
from analysis.generation import generation_stages
from analysis.heads import (
    head_pruning_potential,
    head_sparsity,
    key_sparsity_by_layer_and_head,
)
from analysis.layers import layer_pruning_potential, layer_statistics
from analysis.magnitudes import magnitude_distribution
from analysis.measures import sweep, thresholds
from analysis.tables import FOCUSES, Subject, tables
from analysis.tokens import attention_sinks, token_importance
from config import UsageError
from data.cache import KINDS, KVCache
from tests import caches

PERCENTAGE = 5.0
WEIGHTS = {"key": 0.35, "value": 0.35, "energy": 0.30}


def below(cache, kind):
    """Per layer a bool array (kv_heads, tokens, dim): under the threshold of the whole cache."""
    t = np.float32(sweep(cache, PERCENTAGE).thresholds[kind])
    return [np.abs(layer.tensor(kind).numpy()) < t for layer in cache.layers]


def random_attention(cache):
    return [torch.rand(layer.n_heads, layer.n_tokens) for layer in cache.layers]


def words(cache):
    return [f"w{i}" for i in range(cache.n_tokens)]


def importance(cache, attention, weights=WEIGHTS, min_queries=1):
    return token_importance(sweep(cache, PERCENTAGE), attention, words(cache), weights, min_queries)


def test_layer_statistics_has_a_row_for_each_layer_and_kind_under_the_models_own_numbers():
    cache = caches.mixed()
    table = layer_statistics(sweep(cache, PERCENTAGE))
    assert list(table.columns) == [
        "layer",
        "kind",
        "sparsity",
        "std",
        "mean_abs",
        "kv_correlation",
        "hoyer_sparsity",
        "kurtosis",
    ]
    assert list(table["layer"]) == [0, 2, 3, 5] * 2
    for kind in KINDS:
        shares = [b.mean() for b in below(cache, kind)]
        assert list(table.loc[table["kind"] == kind, "sparsity"]) == pytest.approx(shares)
    assert table.loc[table["layer"] == 3, "kv_correlation"].isna().all()


def test_layer_potential_carries_the_mean_over_layers():
    table = layer_pruning_potential(layer_statistics(sweep(caches.mixed(), PERCENTAGE)))
    for _, rows in table.groupby("kind"):
        assert rows["mean_sparsity"].nunique() == 1
        assert rows["mean_sparsity"].iloc[0] == pytest.approx(rows["sparsity"].mean())


def test_head_sparsity_equals_brute_force_per_head():
    cache = caches.mixed()
    table = head_sparsity(sweep(cache, PERCENTAGE)).set_index(["layer", "head", "kind"])
    assert len(table) == 2 * (2 + 3 + 1 + 1)
    for kind in KINDS:
        for layer, sparse in zip(cache.layers, below(cache, kind), strict=True):
            for head in range(layer.n_heads):
                row = table.loc[(layer.index, head, kind)]
                assert row["sparsity"] == pytest.approx(sparse[head].mean())
                magnitude = layer.tensor(kind)[head].abs().mean().item()
                assert row["mean_abs"] == pytest.approx(magnitude, rel=1e-6)


def test_head_potential_is_mean_and_population_deviation_over_layers():
    heads = head_sparsity(sweep(caches.alike(), PERCENTAGE))
    for row in head_pruning_potential(heads).itertuples():
        of_head = heads[(heads["head"] == row.head) & (heads["kind"] == row.kind)]["sparsity"]
        assert row.sparsity_mean == pytest.approx(of_head.mean())
        assert row.sparsity_std == pytest.approx(np.std(of_head))


def test_a_head_that_one_layer_has_does_not_vary():
    potential = head_pruning_potential(head_sparsity(sweep(caches.mixed(), PERCENTAGE)))
    assert (potential.loc[potential["head"] == 2, "sparsity_std"] == 0).all()


def test_the_key_heat_map_holds_the_keys_rows_of_the_head_table():
    heads = head_sparsity(sweep(caches.mixed(), PERCENTAGE))
    keys = key_sparsity_by_layer_and_head(heads)
    assert list(keys.columns) == ["layer", "head", "sparsity"]
    expected = heads.loc[heads["kind"] == "key", ["layer", "head", "sparsity"]]
    pd.testing.assert_frame_equal(keys, expected.reset_index(drop=True))


def test_magnitudes_left_of_the_threshold_are_the_sparse_share():
    cache = caches.mixed()
    table = magnitude_distribution(sweep(cache, PERCENTAGE))
    for kind, rows in table.groupby("kind"):
        left = rows.loc[rows["bin_right"] <= rows["threshold"], "count"].sum()
        assert left == sum(b.sum() for b in below(cache, kind))
        np.testing.assert_array_equal(rows["bin_left"].iloc[1:], rows["bin_right"].iloc[:-1])


def test_token_columns_equal_their_definitions():
    cache = caches.mixed()
    attention = random_attention(cache)
    table = importance(cache, attention)
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
    both, one = importance(cache, pair), importance(alone, single)
    pd.testing.assert_frame_equal(both[columns], one[columns])
    variance = position_variance(sweep(cache, 1.0)), position_variance(sweep(alone, 1.0))
    pd.testing.assert_frame_equal(*variance)


def test_importance_weighs_each_term_as_a_share_of_its_maximum():
    table = importance(caches.alike(), random_attention(caches.alike()))
    terms = {"key_norm": 0.35, "value_norm": 0.35, "attention_energy": 0.30}
    expected = sum(w * table[name] / table[name].max() for name, w in terms.items())
    pd.testing.assert_series_equal(table["importance"], expected, check_names=False)


def test_without_attention_its_columns_are_empty_and_the_norms_share_its_weight():
    cache = caches.alike()
    table = importance(cache, [None] * cache.n_layers)
    assert table[["attention_received", "attention_energy"]].isna().all().all()
    expected = (table["key_norm"] / table["key_norm"].max()) / 2
    expected += (table["value_norm"] / table["value_norm"].max()) / 2
    pd.testing.assert_series_equal(table["importance"], expected, check_names=False)


def test_weights_of_the_energy_alone_need_the_attention():
    cache = caches.alike()
    with pytest.raises(UsageError, match="weighs attention energy alone"):
        importance(cache, [None] * 4, {"key": 0, "value": 0, "energy": 1})


def test_a_token_that_no_layer_holds_has_no_row():
    cache = caches.cache(*(caches.layer(i, 2, 4, (8, 8), n_tokens=10) for i in range(2)))
    assert list(importance(cache, [None, None])["position"]) == [6, 7, 8, 9]


@pytest.mark.parametrize(("min_queries", "ranked"), [(1, 10), (4, 7), (10, 6), (99, 6)])
def test_tokens_that_few_queries_see_are_not_ranked(min_queries, ranked):
    table = importance(caches.alike(), [None] * 4, min_queries=min_queries)
    assert list(table["seen_by"]) == list(range(10, 0, -1))
    assert table["well_seen"].sum() == ranked
    assert table["well_seen"].iloc[0]


def test_sinks_name_the_token_and_carry_the_mean_over_layers():
    cache = caches.mixed()
    attention = random_attention(cache)
    table = attention_sinks(sweep(cache, PERCENTAGE), attention, words(cache), 1)
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
    table = attention_sinks(sweep(cache, PERCENTAGE), attention, words(cache), 1)
    np.testing.assert_allclose(table["even_share"], table["attention_received"], rtol=1e-6)


def test_without_attention_there_are_no_sinks():
    cache = caches.alike()
    assert attention_sinks(sweep(cache, 1.0), [None] * 4, words(cache), 1).empty


def test_dimension_sparsity_counts_a_dimension_where_layers_have_it():
    cache = caches.mixed()
    table = embedding_consistency(sweep(cache, PERCENTAGE))
    for kind in KINDS:
        rows = table[table["kind"] == kind]
        sparse = below(cache, kind)
        assert len(rows) == max(b.shape[2] for b in sparse)
        for dim, share in zip(rows["dim"], rows["sparsity"], strict=True):
            having = [b[:, :, dim].flatten() for b in sparse if b.shape[2] > dim]
            assert share == pytest.approx(np.concatenate(having).mean())


def test_position_variance_is_that_of_the_mean_magnitude_over_layers_and_heads():
    cache = caches.alike()
    table = position_variance(sweep(cache, PERCENTAGE))
    for kind in KINDS:
        stack = np.concatenate([layer.tensor(kind).abs().numpy() for layer in cache.layers])
        by_position = stack.mean(0)  # (tokens, dim)
        rows = table[table["kind"] == kind]
        np.testing.assert_allclose(rows["variance"], by_position.var(0), rtol=1e-5)
        np.testing.assert_allclose(rows["mean_abs"], by_position.mean(0), rtol=1e-5)


def test_patterns_show_the_most_and_the_least_varying_dimensions():
    swept = sweep(caches.alike(), PERCENTAGE)
    variance = position_variance(swept)
    table = position_patterns(swept, variance, n_dims=2)
    for kind in KINDS:
        ranked = variance[variance["kind"] == kind].sort_values("variance")["dim"].tolist()
        rows = table[table["kind"] == kind]
        sensitive = rows[rows["pattern"] == "sensitive"]["dim"].unique().tolist()
        invariant = rows[rows["pattern"] == "invariant"]["dim"].unique().tolist()
        assert sensitive == ranked[-1:-3:-1] and invariant == ranked[:2]
        for _, line in rows.groupby(["pattern", "dim"]):
            assert line["mean_abs"].var(ddof=0) == pytest.approx(line["variance"].iloc[0], rel=1e-5)


def stages(cache):
    text = cache.before(cache.n_prompt)
    return generation_stages(text, cache, thresholds(text, PERCENTAGE))


def grown(**kw):
    return caches.cache(*(caches.layer(i, 2, 20, (8, 8), **kw) for i in range(3)), n_prompt=10)


def test_stages_are_slices_of_one_cache_under_the_threshold_of_its_text():
    cache = grown()
    table = stages(cache).set_index(["kind", "stage"])
    ends = {"prefill": 10, "early": 12, "mid": 15, "late": 20}
    for kind in KINDS:
        t = thresholds(cache.before(10), PERCENTAGE)[kind]
        sparse = np.concatenate([layer.tensor(kind).abs().numpy() < t for layer in cache.layers])
        for stage, end in ends.items():
            row = table.loc[(kind, stage)]
            assert (row["n_tokens"], row["threshold"]) == (end, t)
            assert row["sparsity"] == pytest.approx(sparse[:, :end].mean())
            if stage == "prefill":
                assert np.isnan(row["sparsity_new_tokens"])
            else:
                assert row["sparsity_new_tokens"] == pytest.approx(sparse[:, 10:end].mean())


def test_the_prefill_stage_is_the_sparsity_that_the_layers_show():
    cache = grown()
    statistics = layer_statistics(sweep(cache.before(10), PERCENTAGE))
    table = stages(cache)
    for kind in KINDS:
        shown = statistics.loc[statistics["kind"] == kind, "sparsity"].mean()
        first = table[(table["kind"] == kind) & (table["stage"] == "prefill")]
        assert first["sparsity"].iloc[0] == pytest.approx(shown)


@pytest.mark.parametrize("window", [4, 8, 15])
def test_stages_of_a_sliding_window_are_what_it_held_then(window):
    whole = caches.layer(0, 2, 20, (8, 8))

    def held_after(n):
        first = max(0, n - window)
        return replace(
            whole,
            keys=whole.keys[:, first:n],
            values=whole.values[:, first:n],
            positions=torch.arange(first, n),
            kind="sliding",
        )

    text = KVCache((held_after(10),), torch.arange(10), 10, "m")
    cache = KVCache((held_after(20),), torch.arange(20), 10, "m")
    limits = thresholds(text, PERCENTAGE)
    table = generation_stages(text, cache, limits).set_index(["kind", "stage"])
    for kind in KINDS:
        for stage, end in {"prefill": 10, "late": 20}.items():
            expected = (held_after(end).tensor(kind).abs() < limits[kind]).float().mean().item()
            assert table.loc[(kind, stage), "sparsity"] == pytest.approx(expected)


def test_stages_differ_when_generation_differs():
    cache = grown()
    for layer in cache.layers:
        layer.keys[:, 10:] = 0
    keys = stages(cache).query("kind == 'key'")
    assert keys["sparsity"].is_monotonic_increasing and keys["sparsity"].nunique() == 4
    assert (keys["sparsity_new_tokens"].dropna() == 1).all()


def test_a_single_new_token_makes_every_decoding_stage():
    cache = caches.cache(caches.layer(0, 2, 5, (4, 4)), n_prompt=4)
    assert list(stages(cache)["n_tokens"]) == [4, 5, 5, 5] * 2


def subject():
    cache = caches.alike()
    return Subject(sweep(cache, PERCENTAGE), random_attention(cache), words(cache))


def test_all_is_every_focus_together():
    a_subject = subject()
    separate = {stem for focus in FOCUSES for stem in tables(a_subject, focus)}
    assert set(tables(a_subject, "all")) == separate


@pytest.mark.parametrize("focus", ["all", *FOCUSES])
def test_findings_speak_of_what_was_looked_at(focus):
    made = tables(subject(), focus)
    found = " ".join(key_findings(made, 0.8, 0.2, 3))
    advice = recommendations(made, 0.8)
    spoken = {"layers": "layers by", "heads": "KV head", "tokens": "tokens", "embeddings": "dim"}
    for name, phrase in spoken.items():
        assert (phrase in found) == (focus in ("all", name)), name
    assert len(advice) == (4 if focus == "all" else 1)


def test_findings_name_the_planted_winners():
    cache = caches.cache(*(caches.layer(i, 3, 100, (8, 8)) for i in range(4)))
    for i, layer in enumerate(cache.layers):
        layer.keys[1] *= 0.01  # head 1 is sparse in every layer
        layer.values[:, :, 5] = 0  # dimension 5 of the values is empty
        if i == 2:
            layer.keys[:] *= 0.01
            layer.values[:] *= 0.01
    attention = [torch.zeros(3, 100) for _ in cache.layers]
    for received in attention:
        received[:, 4] = 1.0  # everybody looks at token 4
    made = tables(Subject(sweep(cache, 1.0), attention, words(cache)), "all")
    found = key_findings(made, 0.8, 0.2, 1)
    assert found[0].startswith("Most prunable layers by key sparsity: 2 (")
    assert any("position 4 “w4”, which queries give 100.0%" in line for line in found)
    assert any("Value dimensions: 1 of 8 are sparse" in line for line in found)
    assert any(
        "try removing 0 of the keys and 1 of the values" in a for a in recommendations(made, 0.8)
    )


def test_an_even_spread_of_attention_has_no_sinks():
    cache = caches.alike()
    even = torch.full((3, 10), 0.1)
    made = tables(Subject(sweep(cache, 1.0), [even] * 4, words(cache)), "tokens")
    assert any("No attention sinks" in line for line in key_findings(made, 0.8, 0.2, 1))


def test_a_constant_cache_is_described_without_its_undefined_measures():
    cache = caches.alike()
    for layer in cache.layers:
        layer.keys.zero_()
        layer.values.zero_()
    made = tables(Subject(sweep(cache, 1.0), random_attention(cache), words(cache)), "layers")
    assert "100.0%" in key_findings(made, 0.8, 0.2, 1)[0]
    assert recommendations(made, 0.8)
