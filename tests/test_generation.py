"""The stages of generation, against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.generation import generation_stages
from analysis.layers import layer_statistics
from analysis.measures import sweep, thresholds
from data.cache import KINDS, KVCache
from tests import caches
from tests.caches import PERCENTAGE


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
