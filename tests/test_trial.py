"""The heuristics, each against brute force, and the court that tries them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from analysis import heuristics, similarity
from analysis.measures import sweep
from compression.evaluate import Judge
from compression.studies.trial import costs, rank_correlations, told
from data.cache import KINDS, by_head, wide
from tests import caches, families
from tests.bruteforce import cka, entries, hoyer, joined, kurtosis


def table_of(cache):
    return heuristics.of_parts(sweep(cache, 5.0)).set_index(["layer", "part", "head"])


def entropy_rank(x: np.ndarray) -> float:
    share = np.linalg.svd(x, compute_uv=False) ** 2
    share = share[share > 0] / share.sum()
    return np.exp(-(share * np.log(share)).sum())


def measures_of(x: np.ndarray, limit: float, neighbours: list[float]) -> dict[str, float]:
    """What the heuristics say of one matrix (tokens, width), from their definitions."""
    below = np.abs(x.astype(np.float32)) < np.float32(limit)
    defined = [similar for similar in neighbours if not np.isnan(similar)]
    return {
        "sparsity": below.mean(),
        "hoyer_sparsity": hoyer(x),
        "kurtosis": kurtosis(x),
        "norm": np.sqrt((x**2).mean()),
        "effective_rank": entropy_rank(x),
        "neighbour_similarity": max(defined, default=np.nan),
    }


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's own kurtosis of one entry
@pytest.mark.parametrize("shape", caches.SHAPES)
def test_every_part_of_awkward_caches_equals_brute_force(shape):
    cache = caches.watched(caches.SHAPES[shape]())
    table, limits = table_of(cache), sweep(cache, 5.0).thresholds
    assert len(table) == 2 * cache.n_layers + sum(layer.n_heads for layer in cache.layers)
    positions = similarity.shared_positions(cache, 99)
    for i, layer in enumerate(cache.layers):
        norms = np.linalg.norm(layer.values.double().numpy(), axis=2)
        energy = (layer.attention.numpy() * norms).mean(1)  # (kv_heads,)
        of_heads = {}
        for kind in KINDS:
            whole = layer.tensor(kind).double().numpy()
            shared = [entries(other, kind, positions) for other in cache.layers]
            beside = [j for j in (i - 1, i + 1) if 0 <= j < cache.n_layers]
            similar = [cka(joined(shared[i]), joined(shared[j])) for j in beside]
            expected = measures_of(joined(whole), limits[kind], similar)
            expected["attention_energy"] = energy.mean()
            assert dict(table.loc[(layer.index, kind, -1)]) == close_to(expected)
            of_heads[kind] = [
                measures_of(
                    whole[h],
                    limits[kind],
                    [cka(shared[i][h], shared[i][k]) for k in range(len(whole)) if k != h],
                )
                for h in range(len(whole))
            ]
        for h, (key, value) in enumerate(zip(*of_heads.values(), strict=True)):
            expected = {name: (key[name] + value[name]) / 2 for name in key}
            expected["attention_energy"] = energy[h]
            assert dict(table.loc[(layer.index, "head", h)]) == close_to(expected)


def close_to(expected: dict[str, float]):
    return pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("n_tokens", [7, 8, 9])
def test_no_more_than_the_given_tokens_are_compared(monkeypatch, n_tokens):
    """Two tokens can be arranged in one way only: CKA is 1, as it never is of more random ones."""
    monkeypatch.setattr(heuristics, "COMPARED_TOKENS", 2)
    cache = caches.cache(*(caches.layer(i, 2, n_tokens, (8, 8)) for i in range(2)))
    np.testing.assert_allclose(table_of(cache)["neighbour_similarity"], 1, rtol=1e-5)


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
    _, _, start, continuation = families.scored("llama_gqa")
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


def test_heuristics_are_told_right_or_wrong_only_where_their_intervals_say_so():
    kl = np.arange(12.0)
    blind = np.array([3, 9, 1, 10, 4, 8, 2, 11, 0, 7, 5, 6.0])
    found = {"norm": kl**2, "kurtosis": kl, "sparsity": blind}
    table = rank_correlations(trial_of(found, kl))
    blind_row = table.set_index("heuristic").loc["sparsity"]
    assert blind_row["low"] < 0 < blind_row["high"]
    (line,) = told(table)
    assert "removed (12 of them)" in line and "sparsity" not in line
    assert "can spare: norm +1.00 (" in line and "wrong way round: kurtosis -1.00 (" in line
    noisy = told(table.assign(damage="noise", low=-1.0, high=1.0))
    assert noisy[0].endswith("can spare: none; surely the wrong way round: none.")


def test_a_heuristic_that_is_the_same_everywhere_says_nothing():
    assert rank_correlations(trial_of({"norm": np.ones(8)}, np.arange(8.0))).empty
