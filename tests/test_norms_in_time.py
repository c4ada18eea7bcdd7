"""The cache along the text, against its definition token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis import norms_in_time as module
from analysis.norms_in_time import KEY, MOST_BINS, UNROTATED, VALUE, norms_in_time
from data.extraction import generate, prefill
from tests import caches, families

PROMPT = 7


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def by_token(layer, kind: str) -> list[tuple[float, float]]:
    """Norm and cosine of each token, one head and one token at a time."""
    x = {KEY: layer.keys, UNROTATED: layer.unrotated_keys(), VALUE: layer.values}[kind]
    x = x.double().numpy()
    mean = x[:, layer.positions.numpy() < PROMPT].mean(1)
    return [
        (
            np.mean([np.linalg.norm(x[h, t]) for h in range(len(x))]),
            np.mean([cosine(x[h, t], mean[h]) for h in range(len(x))]),
        )
        for t in range(x.shape[1])
    ]


@pytest.mark.parametrize("few", [{}, {"prefill": 3, "generated": 2}])
@pytest.mark.parametrize("shape", ["alike", "mixed"])
def test_a_row_is_the_mean_over_the_heads_and_tokens_of_its_bin(monkeypatch, shape, few):
    monkeypatch.setattr("analysis.blocks.ENTRIES", {"cpu": 64})  # a few tokens at a time
    for stage, most in few.items():
        monkeypatch.setitem(module.MOST_BINS, stage, most)
    cache = replace(caches.SHAPES[shape](), n_prompt=PROMPT)
    table = norms_in_time(cache, cache)
    for layer in cache.layers:
        for kind in (KEY, UNROTATED, VALUE):
            rows = table[(table["layer"] == layer.index) & (table["kind"] == kind)]
            assert rows["tokens"].sum() == layer.n_tokens
            expected = by_token(layer, kind)
            ends = [*rows["position"][1:], cache.n_tokens]
            for row, end in zip(rows.itertuples(), ends, strict=True):
                inside = [
                    figures
                    for place, figures in zip(layer.positions.tolist(), expected, strict=True)
                    if row.position <= place < end
                ]
                assert len(inside) == row.tokens
                assert row.stage == ("prefill" if row.position < PROMPT else "generated")
                found = (row.norm, row.cosine_to_mean)
                assert found == pytest.approx(tuple(np.mean(inside, axis=0)), rel=1e-4, abs=1e-5)


def test_rotation_turns_keys_and_leaves_their_length_alone():
    cache = caches.alike()
    table = norms_in_time(cache, cache).set_index("kind")
    stored, unrotated = table.loc[KEY], table.loc[UNROTATED]
    np.testing.assert_allclose(stored["norm"], unrotated["norm"], rtol=1e-5)
    cosines = [rows["cosine_to_mean"].to_numpy() for rows in (stored, unrotated)]
    assert np.abs(cosines[0] - cosines[1]).max() > 0.01


def test_keys_whose_rotation_is_not_known_are_told_as_they_are_stored():
    cache = caches.alike()
    unknown = replace(cache, layers=tuple(replace(x, rotary=None) for x in cache.layers))
    assert set(norms_in_time(unknown, unknown)["kind"]) == {KEY, VALUE}


@pytest.mark.parametrize(("n_prompt", "n_tokens"), [(1, 1), (512, 513), (513, 600), (5000, 9000)])
def test_bins_are_few_and_those_of_the_text_do_not_depend_on_what_follows(n_prompt, n_tokens):
    layer = caches.layer(0, 1, n_tokens, (2, 2))
    cache = caches.cache(layer, n_prompt=n_prompt)
    table = norms_in_time(cache, cache)
    for _, rows in table.groupby("kind"):
        assert len(rows) <= sum(MOST_BINS.values()) == 256
        assert rows["tokens"].sum() == n_tokens and rows["position"].is_monotonic_increasing
        for stage, n in (("prefill", n_prompt), ("generated", n_tokens - n_prompt)):
            assert rows.loc[rows["stage"] == stage, "tokens"].sum() == n
    text = cache.before(n_prompt)
    alone = norms_in_time(text, text)
    both = table[table["stage"] == "prefill"].merge(alone, on=["layer", "position", "kind"])
    assert len(both) == len(alone)
    for name in ("norm", "cosine_to_mean"):
        np.testing.assert_allclose(both[f"{name}_x"], both[f"{name}_y"], rtol=1e-6)


def test_what_a_window_forgets_while_text_is_generated_is_told_all_the_same():
    loaded, ids = families.loaded("mistral"), families.token_ids(40)
    start = prefill(loaded, ids)
    held = {x.index: x.positions.tolist() for x in start.cache.layers}
    cache = generate(loaded, start, 3)
    table = norms_in_time(start.cache, cache)
    for layer, rows in table[table["kind"] == KEY].groupby("layer"):
        assert rows["position"].tolist() == sorted({*held[layer], 40, 41, 42})
        assert rows["stage"].tolist()[-3:] == ["generated"] * 3
        assert (rows["tokens"] == 1).all() and torch.tensor(rows["norm"].to_numpy()).gt(0).all()
