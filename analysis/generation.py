"""How sparsity changes while text is generated. Decoding never changes past entries, so every
stage is a slice of one cache, under one threshold."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from analysis.measures import below_per_token, sparsity
from data.cache import KINDS, KVCache, LayerKV

Span = tuple[int, int]  # positions from, to before
STAGES = {"prefill": 0.0, "early": 0.2, "mid": 0.5, "late": 1.0}  # share of the new tokens


def generation_stages(prefill: KVCache, cache: KVCache, limits: dict[str, float]) -> pd.DataFrame:
    """stage, kind, n_tokens, sparsity, sparsity_new_tokens, threshold.

    What the cache held after the text and the given share of the generated tokens, rounded up;
    sparsity_new_tokens is that of the generated ones among them, empty for prefill. prefill: the
    cache after the text, which still has what a sliding window has forgotten in `cache` since.
    limits: the thresholds of the text, so that all pictures of a run mean the same by sparse.
    """
    held = remembered(prefill, cache)
    n_new = cache.n_tokens - cache.n_prompt
    ends = {stage: cache.n_prompt + math.ceil(share * n_new) for stage, share in STAGES.items()}
    spans = [(start, end) for end in ends.values() for start in (0, cache.n_prompt)]
    rows = []
    for kind in KINDS:
        shares = _shares_between(held, cache, kind, limits[kind], spans)
        for stage, end in ends.items():
            rows.append(
                {
                    "stage": stage,
                    "kind": kind,
                    "n_tokens": end,
                    "sparsity": shares[0, end],
                    "sparsity_new_tokens": shares[cache.n_prompt, end],
                    "threshold": limits[kind],
                }
            )
    return pd.DataFrame(rows)


def remembered(prefill: KVCache, cache: KVCache) -> KVCache:
    """`cache` with the entries that it held after the text and has forgotten since."""
    return replace(
        cache,
        layers=tuple(
            now
            if now.n_tokens >= before.n_tokens and now.positions[0] == before.positions[0]
            else _joined(before.before(int(now.positions[0])), now)
            for before, now in zip(prefill.layers, cache.layers, strict=True)
        ),
    )


def _joined(older: LayerKV, newer: LayerKV) -> LayerKV:
    return replace(
        newer,
        keys=torch.cat([older.keys, newer.keys], dim=1),
        values=torch.cat([older.values, newer.values], dim=1),
        positions=torch.cat([older.positions, newer.positions]),
    )


def _shares_between(
    held: KVCache, cache: KVCache, kind: str, limit: float, spans: Sequence[Span]
) -> dict[Span, float]:
    """Share of sparse entries at positions start <= p < end that the cache held when `end` tokens
    had been read, for each (start, end); NaN where there are none."""
    below, entries = dict.fromkeys(spans, 0), dict.fromkeys(spans, 0)
    for layer, final in zip(held.layers, cache.layers, strict=True):
        tensor = layer.tensor(kind)
        below_token = below_per_token(tensor, limit)
        for start, end in spans:
            first = max(start, end - final.n_tokens)  # a window holds no more than that
            inside = (layer.positions >= first) & (layer.positions < end)
            below[start, end] += int(below_token[inside].sum())
            entries[start, end] += int(inside.sum()) * tensor.shape[0] * tensor.shape[2]
    return {span: sparsity(below[span], entries[span]).item() for span in spans}
