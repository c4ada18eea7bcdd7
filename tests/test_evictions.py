"""Which tokens stay, by brute force; and what is evicted first and compressed after."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

import config
from analysis.measures import sweep
from analysis.tokens import token_importance
from compression.methods.composed import Composed
from compression.methods.dimensions import PCA, CalibratedPCA, fitted_bases
from compression.methods.evictions import (
    EVICTIONS,
    Attention,
    HeavyHitters,
    Importance,
    KeyDiff,
    KeyNorm,
    RandomTokens,
    Recent,
    SnapKV,
)
from compression.methods.quantisers import KIVI, IntegerQuantiser
from compression.methods.rotation_quantiser import RotationQuantiser
from compression.registry import make
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV
from data.rotary import NOT_ROTATED
from tests import caches
from tests.bruteforce import kept, places

RECENT, DIFFERENT = Recent(0.5, sink_tokens=2), KeyDiff(0.5, sink_tokens=2, recent_tokens=3)
every_eviction = pytest.mark.parametrize("way", EVICTIONS, ids=lambda way: way.name)
N = 40


def watched(tokens: int = N, n_tokens: int | None = None) -> KVCache:
    """Two layers with attention of their own, of all of a text or of a window of it."""
    layers = []
    for index in (3, 4):
        layer = caches.layer(index, 2, tokens, (8, 6), n_tokens=n_tokens)
        received = torch.rand(2, 2, tokens, generator=torch.Generator().manual_seed(index))
        layers.append(replace(layer, attention=received[0], recent_attention=received[1]))
    return caches.cache(*layers).in_16_bits()


def pooled(scores: list[float], recent: int) -> list[float]:
    """The largest of seven neighbours, none of them recent."""
    known = [s if place < len(scores) - recent else 0 for place, s in enumerate(scores)]
    return [max(known[max(0, place - 3) : place + 4]) for place in range(len(scores))]


def unlike_the_mean(keys: torch.Tensor) -> list[float]:
    unit = [key / key.norm() for key in keys.float()]
    mean = sum(unit) / len(unit)
    return [-(key @ mean / mean.norm()).item() for key in unit]


def drawn(seed: int, layer: LayerKV) -> list[list[float]]:
    generator = torch.Generator().manual_seed(10_000 * seed + layer.index)
    return torch.rand(layer.n_heads, layer.n_tokens, generator=generator).tolist()


def importances(cache: KVCache) -> dict[int, float]:
    """Of each position, as the table of the token pictures has it."""
    words = caches.words(cache)
    table = token_importance(sweep(cache, 1.0), words, config.IMPORTANCE_WEIGHTS, 1)
    return dict(zip(table["position"], table["importance"], strict=True))


def scores_by_hand(method, cache: KVCache, i: int) -> list[list[float]]:
    """Of each head of a layer, a number for each token: those of the highest stay."""
    layer = cache.layers[i]
    ages = [N - place for place in range(N)]  # queries that have seen a token
    if isinstance(method, HeavyHitters):
        of_heads = layer.attention.tolist()
        return [[m * age for m, age in zip(mean, ages, strict=True)] for mean in of_heads]
    if isinstance(method, SnapKV):
        return [pooled(seen, method.recent_tokens) for seen in layer.recent_attention.tolist()]
    if isinstance(method, Importance):
        score = importances(cache)
        return [[score[p] for p in layer.positions.tolist()]] * layer.n_heads
    return {
        Recent: lambda: [list(range(N))] * layer.n_heads,
        KeyNorm: lambda: [[-key.float().norm().item() for key in head] for head in layer.keys],
        RandomTokens: lambda: drawn(method.seed, layer),
        Attention: layer.attention.tolist,
        KeyDiff: lambda: [unlike_the_mean(head) for head in layer.keys],
    }[type(method)]()


@every_eviction
@pytest.mark.parametrize(("sinks", "recent"), [(0, 0), (4, 0), (2, 8)])
@pytest.mark.parametrize("n_tokens", [N, 90])  # all of the text, or a window of it
def test_what_stays_is_what_the_definition_says(way, sinks, recent, n_tokens):
    cache = watched(n_tokens=n_tokens)
    scores = [scores_by_hand(way(0.5, sinks, recent), cache, i) for i in range(2)]
    for keep in (0.1, 0.4, 0.75, 1.0):
        n_kept = round(keep * N)
        n_first = sinks if n_tokens == N else 0  # a window holds no first tokens
        n_last = max(recent, n_kept // 2) if way is HeavyHitters else recent
        for i, found in enumerate(way(keep, sinks, recent).keeps(cache)):
            expected = [kept(of_head, n_kept, n_first, n_last) for of_head in scores[i]]
            assert places(found) == expected


def by_largest_scores(method, scores: torch.Tensor, layer: LayerKV) -> torch.Tensor:
    """The rule by which evictions of the first version chose: infinity for the first tokens."""
    scores = scores.clone()
    scores[:, layer.positions < method.sink_tokens] = torch.inf
    n_kept = max(1, round(method.keep * layer.n_tokens))
    return torch.zeros_like(scores).bool().scatter(1, scores.topk(n_kept, dim=1).indices, True)


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("shape", ["alike", "mixed"])
def test_what_stays_has_not_changed(keep, sinks, shape):
    cache = caches.watched(caches.SHAPES[shape]()).in_16_bits()
    methods = [Recent, KeyNorm, Attention]
    seeded = [RandomTokens(keep, sinks, seed=seed) for seed in (0, 1, 7)]
    for method in [*(way(keep, sinks) for way in methods), *seeded]:
        for layer, found in zip(cache.layers, method.keeps(cache), strict=True):
            if round(keep * layer.n_tokens) < sinks:
                continue  # infinities were ties
            scores = {
                "recent": torch.arange(layer.n_tokens).float().expand(layer.n_heads, -1),
                "key_norm": -layer.keys.float().norm(dim=-1),
                "attention": layer.attention,
            }.get(method.name)
            if scores is None:
                scores = torch.tensor(drawn(method.seed, layer))
            assert torch.equal(found, by_largest_scores(method, scores, layer))


@pytest.mark.parametrize("shape", ["alike", "mixed"])
@pytest.mark.parametrize("keep", [0.3, 0.8])
def test_the_least_important_tokens_of_the_text_go_in_all_layers_and_heads(shape, keep):
    cache = caches.watched(caches.SHAPES[shape]()).in_16_bits()
    score = importances(cache)
    back = Importance(keep, sink_tokens=0).compress(cache).restore()
    for layer in back.layers:
        held = layer.positions.tolist()
        n_gone = len(held) - round(keep * len(held))
        least = set(sorted(held, key=score.get)[:n_gone])
        for row in layer.keep:
            assert set(layer.positions[~row].tolist()) == least


def test_random_draws_differ_by_seed_layer_and_head():
    cache = watched()
    keeps = [keep for seed in (1, 2) for keep in RandomTokens(0.5, seed=seed).keeps(cache)]
    rows = [tuple(row) for keep in keeps for row in keep.tolist()]
    assert len(set(rows)) == 2 * 2 * 2


@every_eviction
def test_first_tokens_go_before_recent_ones_and_both_before_scores(way):
    for keep in way(0.1, 3, 30).keeps(watched()):
        assert places(keep) == [{0, 1, 2, 39}] * 2
    for keep in way(0.1, 30, 3).keeps(watched()):
        assert places(keep) == [{0, 1, 2, 3}] * 2


@every_eviction
def test_of_one_token_that_one_stays(way):
    assert all(keep.all() for keep in way(0.01).keeps(watched(1)))


@every_eviction
def test_evicted_tokens_are_not_stored(way):
    cache = watched()
    small = way(0.5).compress(cache)
    # 2 layers, 2 heads x 20 of 40 tokens x (8 + 6) dims in 16 bits, and a bit for each entry
    assert small.nbytes == 2 * (2 * 20 * (8 + 6) * 2 + 2 * 40 // 8)
    for before, after in zip(cache.layers, small.restore().layers, strict=True):
        assert after.keep.sum(1).tolist() == [20, 20]
        for kind in KINDS:
            assert torch.equal(before.tensor(kind)[after.keep], after.tensor(kind)[after.keep])


@every_eviction
@pytest.mark.parametrize("n_tokens", [N, 60])
def test_a_token_takes_16_bits_for_each_entry_that_stays(way, n_tokens):
    cache = watched(n_tokens=n_tokens)
    small = way(0.3).compress(cache)
    spent = [0] * n_tokens
    for layer in small.restore().layers:
        for row in layer.keep.tolist():
            for position, stays in zip(layer.positions.tolist(), row, strict=True):
                spent[position] += 1 + stays * 16 * (8 + 6)
    bits = way(0.3).bits_by_token(small.stored, small.shape)
    assert bits.tolist() == spent and sum(spent) == 8 * small.nbytes


@every_eviction
def test_attention_that_was_not_measured_is_asked_for(way):
    cache = watched()
    blind = replace(cache.layers[1], attention=None, recent_attention=None)
    cache = replace(cache, layers=(cache.layers[0], blind))
    if way in (Recent, KeyNorm, RandomTokens, KeyDiff):
        way().keeps(cache)
        return
    with pytest.raises(UsageError, match="Layer 4 does not show its attention"):
        way().keeps(cache)


@every_eviction
def test_what_cannot_be_is_refused(way):
    for share in (0, -0.1, 1.5):
        with pytest.raises(UsageError, match=f"`keep` is {share}: it takes a share above 0"):
            way(share)
    for name in ("sink_tokens", "recent_tokens"):
        with pytest.raises(UsageError, match=f"`{name}` is -1: it takes 0 or more tokens"):
            way(**{name: -1})


def by_hand(layer: LayerKV, keep: torch.Tensor, then, unrotated: bool) -> dict[str, torch.Tensor]:
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
    cache = watched(n_tokens=60)
    then = replace(then, unrotated_keys=unrotated)
    small = Composed(eviction, then).compress(cache)
    back = small.restore()
    for i, keep in enumerate(eviction.keeps(cache)):
        layer = back.layers[i]
        assert torch.equal(layer.keep, keep) and keep.sum(1).tolist() == [20, 20]
        expected = by_hand(cache.layers[i], keep, then, unrotated)
        for kind in KINDS:
            torch.testing.assert_close(layer.tensor(kind), expected[kind])
    inner = [n for n in small.stored if n.startswith("then.")]
    assert len(small.stored) == len(inner) + 2 and small.stored["0.keep"].shape == (2 * 40 // 8,)


def test_composed_bytes_by_hand():
    small = Composed(DIFFERENT, RotationQuantiser(4)).compress(watched())
    # Of 2 x 20 tokens that stay: codes of half a byte, and two norms in 16 bits
    assert small.nbytes == 2 * (2 * 20 * (8 + 6) // 2 + 2 * 2 * 20 * 2 + 2 * 40 // 8)


def test_composed_with_nothing_after_is_the_eviction():
    cache = watched()
    composed, alone = (
        method.compress(cache).restore()
        for method in (Composed(DIFFERENT, make("none")), DIFFERENT)
    )
    assert caches.equal(composed, alone)
    for one, two in zip(composed.layers, alone.layers, strict=True):
        assert torch.equal(one.keep, two.keep)


@pytest.mark.parametrize("then", [make("none"), RotationQuantiser(4), KIVI(3, recent_tokens=0)])
def test_what_follows_an_eviction_is_of_the_tokens_that_stay(then):
    cache = watched(n_tokens=60)
    small, alone = (m.compress(cache) for m in (Composed(DIFFERENT, then), DIFFERENT))
    masks = 2 * 2 * (torch.arange(60) >= 20)  # a bit for each head of each layer
    plain = DIFFERENT.bits_by_token(alone.stored, alone.shape) - masks
    bits = small.compressor.bits_by_token(small.stored, small.shape) - masks
    torch.testing.assert_close(bits / bits.sum(), plain / plain.sum())
    assert bits.sum() == pytest.approx(8 * small.nbytes - masks.sum().item())


def test_where_plain_tokens_are_is_not_told_of_what_stays():
    small = Composed(DIFFERENT, KIVI(3, recent_tokens=5)).compress(watched())
    assert small.compressor.bits_by_token(small.stored, small.shape) is None


def test_composed_is_made_of_two_mappings():
    eviction = {"name": "key_diff", "keep": 0.5, "sink_tokens": 2, "recent_tokens": 3}
    made = make("composed", {"eviction": eviction, "then": {"name": "kivi", "bits": 3}})
    assert made == Composed(DIFFERENT, KIVI(3))
    assert made != Composed(DIFFERENT, KIVI(4)) and made != Composed(RECENT, KIVI(3))
    assert made.settings() == {
        "eviction": eviction,
        "then": {"name": "kivi", **KIVI(3).settings()},
    }
    assert eviction["name"] == "key_diff"  # left as it was


def test_composed_carries_what_the_second_method_has_learned():
    cache = watched()
    learned = fitted_bases([cache], True, "another text")
    then = {"name": "calibrated_pca", "keep": 0.5, "unrotated_keys": True}
    settings = {"eviction": {"name": "recent"}, "then": then}
    method = make("composed", settings, learned)
    alone = CalibratedPCA(0.5, unrotated_keys=True, calibration=learned)
    assert method.per_model_nbytes == alone.per_model_nbytes
    assert method.calibration.identity == alone.calibration.identity
    assert method.compress(cache).restore().layers[0].keys.isfinite().all()
    # A method that learns nothing stores nothing of it.
    unused = make("composed", settings | {"then": {"name": "none"}}, learned)
    assert unused.calibration is None and unused.per_model_nbytes == 0


def test_composed_refuses_what_cannot_follow_each_other():
    eight, parts = IntegerQuantiser(), make("evict", {"heads": [[3, 0]]})
    composed = Composed(RECENT, eight)
    for first, second in [(eight, eight), (composed, eight), *combinations([RECENT, parts], 2)]:
        says = f"{first.name} followed by {second.name} was asked for: an eviction such as"
        with pytest.raises(UsageError, match=says):
            Composed(first, second)
    with pytest.raises(UsageError, match="recent followed by composed"):
        Composed(RECENT, composed)
    with pytest.raises(UsageError, match="does not keep the same number of tokens"):
        Composed(parts, eight).compress(watched())
