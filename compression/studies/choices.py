"""What can be pruned, in words and as a method, each beside random choices of the same size; and
what of it the heuristics recommend."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import config
from analysis.findings import sparsest_layers, steady_head
from analysis.heads import head_pruning_potential, head_sparsity
from analysis.layers import layer_statistics
from analysis.measures import Sweep
from compression.base import Compressor
from compression.methods.dimensions import DroppedDims
from compression.methods.evictions import Importance, RandomTokens, TokenEviction
from compression.methods.pruning import EvictedParts, ZeroedEntries
from compression.registry import make
from config import UsageError
from data.cache import KVCache
from data.vocabulary import EVICTIONS

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """What to prune, in words, and `controls`: as much, chosen at random."""

    level: str
    what: str
    method: Compressor
    controls: tuple[Compressor, ...] = ()


def recommended(swept: Sweep, level: str | None = None) -> list[Choice]:
    """What the heuristics of `--mode analyze` name, at one level or at all."""
    cache = swept.cache
    makers: dict[str, Callable[[], Choice]] = {
        "layer": lambda: layers(
            cache,
            tuple(sparsest_layers(layer_statistics(swept), _few(cache))),
            "the sparsest",
        ),
        "head": lambda: _steady_head(swept),
        "dimension": _sparse_dims,
        "threshold": _small_entries,
        "token": lambda: _most_important(cache),
    }
    if cache.n_layers == 1:
        del makers["layer"]  # there would be nothing left
    if cache.n_heads == 1:
        del makers["head"]
    if any(layer.attention is None for layer in cache.layers):
        del makers["token"]  # importance is not known
    return [choice() for name, choice in makers.items() if level in (None, name)]


def _few(cache: KVCache) -> int:
    return min(config.PRUNED_LAYERS, cache.n_layers - 1)


def layers(cache: KVCache, chosen: tuple[int, ...], why: str) -> Choice:
    present = [layer.index for layer in cache.layers]
    absent = sorted(set(chosen) - set(present))
    if absent:
        raise UsageError(
            f"{cache.model} has no cache in layer {absent[0]}, which `prune_layers` names",
            f"give some of {_ranges(present)}",
        )
    if set(chosen) == set(present):
        raise UsageError("`prune_layers` names every layer", "leave at least one")
    draws = _draws(present, len(set(chosen)), set(chosen))
    controls = tuple(EvictedParts(layers=tuple(sorted(draw))) for draw in draws)
    chosen = tuple(sorted(set(chosen)))
    return Choice("layer", f"layers {_listed(chosen)} ({why})", EvictedParts(chosen), controls)


def heads(
    cache: KVCache,
    prune_heads: Sequence[tuple[int | None, int]],
    prune_layers: Sequence[int] | None = None,
) -> Choice:
    """Pairs as they are given; lone heads in every layer, or in those of `prune_layers`."""
    n_heads = {layer.index: layer.n_heads for layer in cache.layers}
    within = list(n_heads) if prune_layers is None else prune_layers
    pairs = {
        (place, head)
        for layer, head in prune_heads
        for place in ([layer] if layer is not None else within)
    }
    for layer, head in sorted(pairs):
        if layer not in n_heads:
            raise UsageError(
                f"{cache.model} has no cache in layer {layer}, which `prune_heads` names"
            )
        if not 0 <= head < n_heads[layer]:
            raise UsageError(
                f"Layer {layer} of {cache.model} has KV heads 0 to {n_heads[layer] - 1}, not "
                f"{head}, which `prune_heads` names",
                "keys and values are stored for KV heads, which several query heads share; count "
                "those",
            )
    named = (f"{head}" if layer is None else f"{layer}:{head}" for layer, head in prune_heads)
    what = ", ".join(named)
    where = "" if prune_layers is None else f" of layers {_listed(prune_layers)}"
    return _head_choice(cache, pairs, f"KV heads {what}{where} (as asked)")


def _steady_head(swept: Sweep) -> Choice:
    table = head_pruning_potential(head_sparsity(swept))
    head, _, _ = steady_head(table)
    pairs = {(layer.index, head) for layer in swept.cache.layers if head < layer.n_heads}
    what = f"KV head {head} of every layer (sparse and alike in all)"
    return _head_choice(swept.cache, pairs, what)


def _head_choice(cache: KVCache, pairs: set[tuple[int, int]], what: str) -> Choice:
    every = [(layer.index, head) for layer in cache.layers for head in range(layer.n_heads)]
    if len(pairs) == len(every):
        raise UsageError("`prune_heads` names every KV head of every layer", "leave at least one")
    controls = (EvictedParts(heads=tuple(sorted(d))) for d in _draws(every, len(pairs), pairs))
    return Choice("head", what, EvictedParts(heads=tuple(sorted(pairs))), tuple(controls))


def dims(keep: float) -> Choice:
    controls = tuple(DroppedDims(keep, at_random=1 + i) for i in range(config.CONTROLS))
    percentage = config.SPARSITY_THRESHOLD_PERCENTAGE
    what = f"dimensions: {keep:.0%} stay, the densest (as asked)"
    return Choice("dimension", what, DroppedDims(keep, percentage=percentage), controls)


def _sparse_dims() -> Choice:
    share, percentage = config.SPARSE_DIM_SHARE, config.SPARSITY_THRESHOLD_PERCENTAGE
    method = DroppedDims(1.0, percentage=percentage, sparser=share)
    controls = tuple(
        DroppedDims(1.0, percentage=percentage, sparser=share, at_random=1 + i)
        for i in range(config.CONTROLS)
    )
    return Choice(
        "dimension", f"dimensions of a head above {share:.0%} sparsity there", method, controls
    )


def _small_entries() -> Choice:
    percentage = config.SPARSITY_THRESHOLD_PERCENTAGE
    what = f"entries below {percentage:g} % of the largest"
    return Choice("threshold", what, ZeroedEntries(percentage))


def tokens(keep: float, score: str, why: str, **ends: int) -> Choice:
    """A share `keep` of the tokens stays by an eviction's score, the first and the most recent
    ones in any case; of these as many as the eviction has where `recent_tokens` is not given."""
    method = make(score, {"keep": keep, "sink_tokens": config.SINK_TOKENS, **ends})
    if not isinstance(method, TokenEviction):
        raise UsageError(f"`token_score` is {score}", f"it takes one of {', '.join(EVICTIONS)}")
    seeds = range(1, 1 + config.CONTROLS) if score != RandomTokens.name else ()
    controls = tuple(
        RandomTokens(keep, method.sink_tokens, method.recent_tokens, seed) for seed in seeds
    )
    return Choice("token", f"tokens: {keep:.0%} stay by {score} ({why})", method, controls)


def _most_important(cache: KVCache) -> Choice:
    """The tenth of the ranked tokens that scores lowest goes; those that few queries can see are
    not ranked, and stay."""
    unranked = min(config.MIN_QUERIES, (cache.n_tokens + 1) // 2) - 1
    n_gone = round(0.1 * (cache.n_tokens - unranked))
    keep = 1 - n_gone / cache.n_tokens
    why = "without the least important tenth"
    return tokens(keep, Importance.name, why, recent_tokens=unranked)


def _draws(every: list[T], n: int, other_than: set[T]) -> list[set[T]]:
    """Up to CONTROLS different random sets of n, none of them `other_than`."""
    rng = random.Random(0)
    draws: list[set[T]] = []
    for _ in range(20 * config.CONTROLS):
        draw = set(rng.sample(every, n))
        if draw != other_than and draw not in draws and len(draws) < config.CONTROLS:
            draws.append(draw)
    return draws


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _ranges(numbers: list[int]) -> str:
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole else _listed(numbers)
