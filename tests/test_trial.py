"""The heuristics, each against brute force, and the court that tries them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from analysis import heuristics
from analysis.measures import sweep
from compression.evaluate import Judge
from compression.trial import costs, rank_correlations, told
from data.cache import by_head, wide
from tests import caches
from tests.test_scoring import scored


def table_of(cache):
    return heuristics.of_parts(sweep(cache, 5.0)).set_index(["layer", "part", "head"])


@pytest.mark.parametrize("shape", caches.SHAPES)
def test_every_part_of_awkward_caches_has_a_row(shape):
    cache = caches.SHAPES[shape]()
    cache = caches.with_attention(cache, caches.random_attention(cache))
    table = table_of(cache)
    assert len(table) == 2 * cache.n_layers + sum(layer.n_heads for layer in cache.layers)
    assert set(heuristics.SPARES) <= set(table.columns)


def test_heuristics_of_a_head_are_means_of_its_keys_and_values():
    cache = caches.alike()
    cache = caches.with_attention(cache, caches.random_attention(cache))
    table, layer = table_of(cache), cache.layers[2]
    row = table.loc[(2, "head", 1)]
    limits = sweep(cache, 5.0).thresholds
    arrays = {k: layer.tensor(k)[1].double().numpy() for k in ("key", "value")}
    below = [(np.abs(x) < limits[k]).mean() for k, x in arrays.items()]
    assert row["sparsity"] == pytest.approx(np.mean(below))
    norms = [np.sqrt((x**2).mean()) for x in arrays.values()]
    assert row["norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    ranks = []
    for x in arrays.values():
        share = np.linalg.svd(x, compute_uv=False) ** 2
        share = share / share.sum()
        ranks.append(np.exp(-(share * np.log(share)).sum()))
    assert row["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-4)
    received = layer.attention[1].numpy()
    energy = (received * np.linalg.norm(arrays["value"], axis=1)).mean()
    assert row["attention_energy"] == pytest.approx(energy, rel=1e-5)
    fourth = [((x - x.mean()) ** 4).mean() / x.var() ** 2 for x in arrays.values()]
    assert row["kurtosis"] == pytest.approx(np.mean(fourth), rel=1e-5)
    n = arrays["key"].size
    hoyer = [(n**0.5 - np.abs(x).sum() / np.linalg.norm(x)) / (n**0.5 - 1) for x in arrays.values()]
    assert row["hoyer_sparsity"] == pytest.approx(np.mean(hoyer), rel=1e-5)


def test_the_nearest_layer_is_a_neighbour_that_looks_alike():
    cache = caches.alike()
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0)))[0]
    cache.layers[3].values[:] = by_head(3 * wide(cache.layers[2].values) @ turn, 3)
    table = table_of(cache)["neighbour_similarity"]
    assert table[(3, "value", -1)] == pytest.approx(1, abs=1e-4)  # CKA ignores turn and scale
    assert table[(2, "value", -1)] == pytest.approx(1, abs=1e-4)
    assert table[(0, "value", -1)] < 0.9


def test_one_head_has_no_similar_head_and_no_attention_no_energy():
    table = table_of(caches.cache(caches.layer(0, 1, 10, (8, 8)), caches.layer(1, 1, 10, (8, 8))))
    assert table.loc[(0, "head", 0), ["neighbour_similarity", "attention_energy"]].isna().all()


def test_costs_are_measured_for_every_part_and_damage():
    _, _, start, continuation = scored("llama_gqa")
    judge = Judge(start.cache, continuation)
    table = costs(judge, noise=0.3)
    assert len(table) == 2 * 2 * (2 + 2)  # layers, damages, keys and values and 2 heads
    assert (table["kl_mean_nats"] > 0).all()
    again = costs(judge, noise=0.3)
    pd.testing.assert_frame_equal(table, again)
    louder = costs(judge, noise=3.0)
    noise = table["damage"] == "noise"
    assert (louder.loc[noise, "kl_mean_nats"] > table.loc[noise, "kl_mean_nats"]).all()
    assert louder.loc[~noise, "kl_mean_nats"].equals(table.loc[~noise, "kl_mean_nats"])


def trial_of(columns: dict, kl) -> pd.DataFrame:
    table = pd.DataFrame({"part": "key", "damage": "removed", "kl_mean_nats": kl})
    for name in heuristics.SPARES:
        table[name] = columns.get(name, np.nan)
    return table


def test_rank_correlations_are_spearmans_and_signed_by_what_a_heuristic_claims():
    rng = np.random.default_rng(0)
    kl = rng.random(30)
    noisy = kl + 0.3 * rng.random(30)
    table = rank_correlations(trial_of({"norm": noisy, "sparsity": noisy}, kl))
    found = table.set_index("heuristic")
    expected = spearmanr(noisy, kl).statistic
    assert found.loc["norm", "spearman"] == pytest.approx(expected)  # high norm, high cost: right
    assert found.loc["sparsity", "spearman"] == pytest.approx(-expected)
    assert list(found.index) == ["sparsity", "norm"]  # the others said nothing
    assert (found["low"] < found["spearman"]).all() and (found["spearman"] < found["high"]).all()
    assert found.loc["norm", "low"] > 0.3


def test_a_perfect_heuristic_is_told_as_the_best():
    kl = np.arange(10.0)
    table = rank_correlations(trial_of({"norm": kl**2, "kurtosis": kl}, kl))
    assert table.set_index("heuristic").loc["norm", "spearman"] == 1
    (line,) = told(table)
    assert "best norm +1.00" in line and "worst kurtosis -1.00" in line and "10 of them" in line


def test_a_heuristic_that_is_the_same_everywhere_says_nothing():
    assert rank_correlations(trial_of({"norm": np.ones(8)}, np.arange(8.0))).empty
