"""How sparsity changes while text is generated. Decoding never changes past entries, so every
stage is a slice of the one final cache, under the one threshold of that cache."""

import math

import pandas as pd
import torch

from analysis.measures import below_per_token, thresholds
from data.cache import KINDS, KVCache

STAGES = {"prefill": 0.0, "early": 0.2, "mid": 0.5, "late": 1.0}  # share of the new tokens


def generation_stages(cache: KVCache, percentage: float) -> pd.DataFrame:
    """stage, kind, n_tokens, sparsity, sparsity_new_tokens, threshold.

    The text and the given share of the generated tokens, rounded up; sparsity_new_tokens is that
    of the generated ones among them, empty for prefill.
    """
    limits = thresholds(cache, percentage)
    counts = below_per_token(cache, limits)
    n_new = cache.n_tokens - cache.n_prompt
    rows = []
    for kind in KINDS:
        for stage, share in STAGES.items():
            end = cache.n_prompt + math.ceil(share * n_new)
            rows.append(
                {
                    "stage": stage,
                    "kind": kind,
                    "n_tokens": end,
                    "sparsity": _share_between(cache, kind, counts[kind], 0, end),
                    "sparsity_new_tokens": _share_between(
                        cache, kind, counts[kind], cache.n_prompt, end
                    ),
                    "threshold": limits[kind],
                }
            )
    return pd.DataFrame(rows)


def _share_between(
    cache: KVCache, kind: str, counts: list[torch.Tensor], start: int, end: int
) -> float:
    """Share of sparse entries at positions start <= p < end; NaN where there are none."""
    below = entries = 0
    for layer, below_token in zip(cache.layers, counts, strict=True):
        inside = (layer.positions >= start) & (layer.positions < end)
        tensor = layer.tensor(kind)
        below += below_token[inside].sum().item()
        entries += inside.sum().item() * tensor.shape[0] * tensor.shape[2]
    return below / entries if entries else math.nan
