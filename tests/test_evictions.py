"""Which tokens stay, by brute force; and what is evicted first and compressed after."""

from dataclasses import replace

import pytest
import torch

from compression import methods
from compression.base import ModelSide
from compression.composed import Composed
from compression.dimensions import PCA, CalibratedPCA, fitted_bases
from compression.evictions import HeavyHitters, KeyDiff, SnapKV
from compression.quantisers import KIVI
from compression.rotation_quantiser import RotationQuantiser
from config import UsageError
from data.cache import KINDS, LayerKV
from data.rotary import NOT_ROTATED
from tests import caches

RECENT = {"name": "evict_tokens", "keep": 0.5, "sink_tokens": 2}
DIFFERENT = {"name": "key_diff", "keep": 0.5, "sink_tokens": 2, "recent_tokens": 3}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for method in (KeyDiff, KIVI, RotationQuantiser):
        monkeypatch.setitem(methods.METHODS, method.name, method)


def watched(tokens=40, n_tokens=None, seed=0):
    """A layer with attention of its own."""
    layer = caches.layer(3, 2, tokens, (8, 6), n_tokens=n_tokens, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    received = torch.rand(2, 2, tokens, generator=generator)
    return replace(layer, attention=received[0], recent_attention=received[1])


def best(scores, n_kept, sinks, recent):
    """The set of places that stay: sinks, then recent ones, then those of the highest scores."""
    n = len(scores)
    must = list(range(sinks)) + list(range(n - 1, n - 1 - recent, -1))
    by_score = sorted(range(n), key=lambda place: scores[place], reverse=True)
    ordered = list(dict.fromkeys(must + by_score))
    return set(ordered[:n_kept])


def places(keep):
    return [set(row.nonzero().flatten().tolist()) for row in keep]


def pooled(scores, recent):
    """The largest of seven neighbours, none of them recent."""
    known = [s if place < len(scores) - recent else 0 for place, s in enumerate(scores)]
    return [max(known[max(0, place - 3) : place + 4]) for place in range(len(scores))]


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("n_tokens", [40, 90])  # all of the text, or a window of it
def test_heavy_hitters_have_the_largest_sums_of_attention(keep, n_tokens):
    layer = watched(n_tokens=n_tokens)
    n_kept, sinks = round(keep * 40), 4 if n_tokens == 40 else 0  # a window holds no first tokens
    kept = places(HeavyHitters(keep).kept(layer))
    for head, mean in enumerate(layer.attention.tolist()):
        sums = [m * (40 - place) for place, m in enumerate(mean)]
        assert kept[head] == best(sums, n_kept, sinks, n_kept // 2)


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("recent", [0, 8])
def test_snapkv_keeps_what_stands_near_what_the_last_queries_look_at(keep, recent):
    layer = watched()
    kept = places(SnapKV(keep, 2, recent).kept(layer))
    for head, seen in enumerate(layer.recent_attention.tolist()):
        # Of equal scores, which neighbours share, the more recent token stays.
        scores = [(score, place) for place, score in enumerate(pooled(seen, recent))]
        assert kept[head] == best(scores, round(keep * 40), 2, recent)


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.75, 1.0])
def test_key_diff_keeps_the_keys_least_like_the_mean(keep):
    layer = watched()
    kept = places(KeyDiff(keep, 1, 3).kept(layer))
    for head, keys in enumerate(layer.keys):
        unit = [key / key.norm() for key in keys]
        mean = sum(unit) / len(unit)
        scores = [-(key @ mean / mean.norm()).item() for key in unit]
        assert kept[head] == best(scores, round(keep * 40), 1, 3)


def test_first_tokens_go_before_recent_ones_and_both_before_scores():
    for method in (HeavyHitters, SnapKV, KeyDiff):
        assert places(method(0.1, 3, 30).kept(watched())) == [{0, 1, 2, 39}] * 2
        assert places(method(0.1, 30, 3).kept(watched())) == [{0, 1, 2, 3}] * 2


def test_of_one_token_that_one_stays():
    for method in (HeavyHitters, SnapKV, KeyDiff):
        assert method(0.01).kept(watched(1)).all()


@pytest.mark.parametrize("method", [HeavyHitters(0.5), SnapKV(0.5), KeyDiff(0.5)])
def test_evicted_tokens_are_not_stored(method):
    small = method.compress(caches.cache(watched()).in_16_bits())
    # 2 heads x 20 of 40 tokens x (8 + 6) dims in 16 bits, and a bit for each of 2 x 40 entries
    assert small.nbytes == 2 * 20 * (8 + 6) * 2 + 2 * 40 // 8
    assert small.restore().layers[0].keep.sum(1).tolist() == [20, 20]


def test_what_cannot_be_is_refused():
    blind = replace(watched(), attention=None, recent_attention=None)
    for method in (HeavyHitters(), SnapKV()):
        with pytest.raises(UsageError, match="Layer 3 does not show its attention"):
            method.kept(blind)
    KeyDiff().kept(blind)
    with pytest.raises(UsageError, match="A share of 0 of the tokens"):
        SnapKV(0)
    with pytest.raises(UsageError, match="recent_tokens is -1"):
        KeyDiff(recent_tokens=-1)


def by_hand(layer, keep, then, unrotated):
    """Keys and values of one head after another, evicted, compressed and put back."""
    keys = layer.unrotated_keys().to(layer.keys.dtype) if unrotated else layer.keys
    n_kept = int(keep[0].sum())
    few = [torch.stack([x[h, keep[h]] for h in range(len(x))]) for x in (keys, layer.values)]
    small = LayerKV(*few, torch.arange(n_kept), layer.index, rotary=NOT_ROTATED)
    back = then.compress(caches.cache(small)).restore().layers[0]
    whole = {kind: torch.zeros_like(layer.tensor(kind)) for kind in KINDS}
    for h, row in enumerate(keep):
        at = row.nonzero().flatten()
        found = back.keys[h : h + 1]
        if unrotated:
            found = layer.rotary.rotated(found.float(), layer.positions[at]).to(keys.dtype)
        whole["key"][h, at] = found[0]
        whole["value"][h, at] = back.values[h]
    return whole


@pytest.mark.parametrize("eviction", [RECENT, DIFFERENT])
@pytest.mark.parametrize("unrotated", [False, True])
@pytest.mark.parametrize("then", [PCA(0.5, sink_tokens=1), KIVI(3, 4, recent_tokens=5)])
def test_composed_is_one_after_the_other(eviction, unrotated, then):
    cache = caches.cache(watched(n_tokens=60)).in_16_bits()
    then = replace(then, unrotated_keys=unrotated)
    method = Composed(eviction, {"name": then.name, **then.settings()})
    small = method.compress(cache)
    back, layer = small.restore().layers[0], cache.layers[0]
    assert torch.equal(back.keep, method._eviction.kept(layer))
    assert back.keep.sum(1).tolist() == [20, 20]
    expected = by_hand(layer, back.keep, then, unrotated)
    for kind in KINDS:
        torch.testing.assert_close(back.tensor(kind), expected[kind])
    inner = [n for n in small.stored if n.startswith("then.")]
    assert len(small.stored) == len(inner) + 1 and small.stored["0.keep"].shape == (2 * 40 // 8,)


def test_composed_bytes_by_hand():
    cache = caches.cache(watched()).in_16_bits()
    small = Composed(DIFFERENT, {"name": "rotated", "bits": 4}).compress(cache)
    # Of 2 x 20 tokens that stay: codes of half a byte, and two norms in 16 bits
    assert small.nbytes == 2 * 20 * (8 + 6) // 2 + 2 * 2 * 20 * 2 + 2 * 40 // 8


def test_composed_with_nothing_after_is_the_eviction():
    cache = caches.cache(watched()).in_16_bits()
    composed, alone = (
        method.compress(cache).restore().layers[0]
        for method in (Composed(DIFFERENT, {"name": "none"}), KeyDiff(0.5, 2, 3))
    )
    assert torch.equal(composed.keep, alone.keep)
    assert torch.equal(composed.keys, alone.keys) and torch.equal(composed.values, alone.values)


def test_composed_carries_what_the_second_method_has_learned():
    cache = caches.cache(watched()).in_16_bits()
    side = fitted_bases([cache], True, "another text")
    setting = {"name": "calibrated_pca", "keep": 0.5, "unrotated_keys": True}
    method = Composed(RECENT, setting, model_side=side)
    alone = CalibratedPCA(0.5, unrotated_keys=True, model_side=side)
    assert method.per_model_nbytes == alone.per_model_nbytes
    assert method.compress(cache).restore().layers[0].keys.isfinite().all()
    assert "model_side" not in method.settings()
    with pytest.raises(UsageError, match="has to learn of the model on other texts"):
        Composed(RECENT, setting)
    # A method that learns nothing stores nothing of it.
    unused = Composed(RECENT, {"name": "none"}, model_side=ModelSide({}, ""))
    assert unused.model_side is None and hash(unused) == hash(Composed(RECENT, {"name": "none"}))


def test_composed_refuses_what_cannot_follow_each_other():
    with pytest.raises(UsageError, match="none followed by none was asked for"):
        Composed({"name": "none"}, {"name": "none"})
    with pytest.raises(UsageError, match="key_diff followed by evict_tokens"):
        Composed(DIFFERENT, RECENT)
    with pytest.raises(UsageError, match="was given composed: it takes two of none"):
        Composed(RECENT, {"name": "composed"})
    heads = Composed({"name": "evict", "heads": [[3, 0]]}, {"name": "none"})
    with pytest.raises(UsageError, match="does not keep the same number of tokens"):
        heads.compress(caches.cache(watched()).in_16_bits())
