"""What to prune: as a person asks for it, or as the heuristics recommend it; each beside random
choices of the same size."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import config
from analysis import heads, layers
from analysis.findings import sparsest_layers, steady_head
from analysis.measures import Sweep
from compression.base import Compressor
from compression.dimensions import DroppedDims
from compression.pruning import EvictedParts, EvictedTokens, ZeroedEntries
from config import RunConfig, UsageError
from data.cache import KVCache


@dataclass(frozen=True)
class Choice:
    """What to prune, in words, and `controls`: as much, chosen at random."""

    level: str
    what: str
    method: Compressor
    controls: tuple[Compressor, ...] = ()


def asked(run: RunConfig, cache: KVCache) -> list[Choice]:
    """What a run's flags name; empty where they name nothing."""
    if run.prune_heads is not None:
        return [_heads(cache, run)]
    if run.prune_layers is not None:
        return [_layers(cache, run.prune_layers, "as asked")]
    if run.prune_method == "token" or run.keep_tokens is not None or run.token_score is not None:
        keep = run.keep_tokens or config.KEEP_TOKENS
        scores = config.TOKEN_SCORES if run.token_score is None else (run.token_score,)
        return [_tokens(keep, score, "as asked") for score in scores]
    if run.prune_method == "dimension":
        return [_dims(keep) for keep in run.levels]
    return []


def recommended(swept: Sweep, level: str | None = None) -> list[Choice]:
    """What the heuristics of `--mode analyze` name, at one level or at all."""
    cache = swept.cache
    makers: dict[str, Callable[[], Choice]] = {
        "layer": lambda: _layers(
            cache,
            tuple(sparsest_layers(layers.layer_statistics(swept), _few(cache))),
            "the sparsest",
        ),
        "head": lambda: _steady_head(swept),
        "dimension": _sparse_dims,
        "threshold": _small_entries,
        "token": lambda: _tokens(0.9, "importance", "the most important nine tenths stay"),
    }
    if cache.n_layers == 1:
        del makers["layer"]  # there would be nothing left
    if cache.n_heads == 1:
        del makers["head"]
    if any(layer.attention is None for layer in cache.layers):
        del makers["token"]  # importance is not known
    return [make() for name, make in makers.items() if level in (None, name)]


def _few(cache: KVCache) -> int:
    return min(config.PRUNED_LAYERS, cache.n_layers - 1)


def _layers(cache: KVCache, chosen: tuple[int, ...], why: str) -> Choice:
    present = [layer.index for layer in cache.layers]
    absent = sorted(set(chosen) - set(present))
    if absent:
        raise UsageError(
            f"--prune_layers: {cache.model} has no cache in layer {absent[0]}; give some of "
            f"{_ranges(present)}."
        )
    if set(chosen) == set(present):
        raise UsageError("--prune_layers names every layer: leave at least one.")
    draws = _draws(present, len(set(chosen)), set(chosen))
    controls = tuple(EvictedParts(layers=tuple(sorted(draw))) for draw in draws)
    chosen = tuple(sorted(set(chosen)))
    return Choice("layer", f"layers {_listed(chosen)} ({why})", EvictedParts(chosen), controls)


def _heads(cache: KVCache, run: RunConfig) -> Choice:
    """Pairs as they are given; lone heads in every layer, or in those of --prune_layers."""
    n_heads = {layer.index: layer.n_heads for layer in cache.layers}
    within = n_heads if run.prune_layers is None else run.prune_layers
    pairs = {
        (place, head)
        for layer, head in run.prune_heads
        for place in ([layer] if layer is not None else within)
    }
    for layer, head in sorted(pairs):
        if layer not in n_heads:
            raise UsageError(f"--prune_heads: {cache.model} has no cache in layer {layer}.")
        if not 0 <= head < n_heads[layer]:
            raise UsageError(
                f"--prune_heads: layer {layer} of {cache.model} has KV heads 0 to "
                f"{n_heads[layer] - 1}, not {head}; keys and values are stored for KV heads, which "
                "several query heads share: count those."
            )
    what = ", ".join(f"{head}" if layer is None else f"{layer}:{head}" for layer, head in
                     run.prune_heads)  # fmt: skip
    where = "" if run.prune_layers is None else f" of layers {_listed(run.prune_layers)}"
    return _head_choice(cache, pairs, f"KV heads {what}{where} (as asked)")


def _steady_head(swept: Sweep) -> Choice:
    table = heads.head_pruning_potential(heads.head_sparsity(swept))
    head, _, _ = steady_head(table)
    pairs = {(layer.index, head) for layer in swept.cache.layers if head < layer.n_heads}
    what = f"KV head {head} of every layer (sparse and alike in all)"
    return _head_choice(swept.cache, pairs, what)


def _head_choice(cache: KVCache, pairs: set[tuple[int, int]], what: str) -> Choice:
    every = [(layer.index, head) for layer in cache.layers for head in range(layer.n_heads)]
    if len(pairs) == len(every):
        raise UsageError("--prune_heads names every KV head of every layer: leave at least one.")
    controls = (EvictedParts(heads=tuple(sorted(d))) for d in _draws(every, len(pairs), pairs))
    return Choice("head", what, EvictedParts(heads=tuple(sorted(pairs))), tuple(controls))


def _dims(keep: float) -> Choice:
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
    return Choice("dimension", f"dimensions above {share:.0%} sparsity", method, controls)


def _small_entries() -> Choice:
    percentage = config.SPARSITY_THRESHOLD_PERCENTAGE
    what = f"entries below {percentage:g} % of the largest"
    return Choice("threshold", what, ZeroedEntries(percentage))


def _tokens(keep: float, score: str, why: str) -> Choice:
    sinks = config.SINK_TOKENS
    draws = range(1, 1 + config.CONTROLS) if score != "random" else ()
    controls = tuple(EvictedTokens(keep, "random", sinks, seed) for seed in draws)
    method = EvictedTokens(keep, score, sinks)
    return Choice("token", f"tokens: {keep:.0%} stay by {score} ({why})", method, controls)


def _draws(every: list, n: int, other_than: set) -> list[set]:
    """Up to CONTROLS different random sets of n, none of them `other_than`."""
    rng, found = random.Random(0), []
    for _ in range(20 * config.CONTROLS):
        draw = set(rng.sample(every, n))
        if draw != other_than and draw not in found and len(found) < config.CONTROLS:
            found.append(draw)
    return found


def _listed(numbers) -> str:
    return ", ".join(map(str, numbers))


def _ranges(numbers: list[int]) -> str:
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole else _listed(numbers)
