"""What each token contributes: norms of its keys and values, and the attention it receives."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from analysis.measures import Sweep, attention_energy
from config import UsageError

TERMS = {"key": "key_norm", "value": "value_norm", "energy": "attention_energy"}


def token_importance(
    sweep: Sweep,
    tokens: Sequence[str],
    weights: dict[str, float],
    min_queries: int,
) -> pd.DataFrame:
    """position, token_id, token, key_norm, value_norm, attention_received, attention_energy,
    importance, seen_by, well_seen; one row for each token that the layers holding most tokens have,
    and means over these layers (see `Sweep.spanning`).

    Norms are L2 over heads and dims. Where attention was not measured its columns stay empty.
    attention_energy: the mean over KV heads of `measures.attention_energy`.
    importance: the terms, each divided by its maximum, in the given weights; the weights of terms
    that were not measured are spread over the others. seen_by, well_seen: see `_seen`.
    """
    cache, spanning = sweep.cache, sweep.spanning
    positions = cache.layers[spanning[0]].positions
    value_norms = [sweep.sums["value"][i].norm_head_token for i in spanning]  # (kv_heads, tokens)
    key_norms = [sweep.sums["key"][i].norm_head_token for i in spanning]
    received = [cache.layers[i].attention for i in spanning]
    energies = [
        None if weights is None else attention_energy(weights, norms)
        for weights, norms in zip(received, value_norms, strict=True)
    ]
    table = pd.DataFrame(
        {
            "position": positions.numpy(),
            "token_id": cache.token_ids[positions].numpy(),
            "token": [tokens[i] for i in positions.tolist()],
            "key_norm": _mean([_over_heads(norms) for norms in key_norms]),
            "value_norm": _mean([_over_heads(norms) for norms in value_norms]),
            "attention_received": _mean([_mean_of_heads(weights) for weights in received]),
            "attention_energy": _mean([_mean_of_heads(energy) for energy in energies]),
        }
    )
    table["importance"] = _importance(table, weights)
    return table.assign(**_seen(table["position"], cache.n_tokens, min_queries))


def _mean(per_layer: list[torch.Tensor | None]) -> np.ndarray | float:
    """Mean over the layers that were measured, (tokens,); NaN where none was."""
    measured = [x.double().cpu() for x in per_layer if x is not None]
    return torch.stack(measured).mean(0).numpy() if measured else np.nan


def _mean_of_heads(weights: torch.Tensor | None) -> torch.Tensor | None:
    return None if weights is None else weights.mean(0)


def _over_heads(norms: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens) norms over dims -> (tokens,) norms over heads and dims."""
    return torch.linalg.vector_norm(norms.double(), dim=0)


def _importance(table: pd.DataFrame, weights: dict[str, float]) -> pd.Series:
    measured = {term: name for term, name in TERMS.items() if table[name].notna().any()}
    total = sum(weights[term] for term in measured)
    if not total:
        raise UsageError(
            "config.py: IMPORTANCE_WEIGHTS weighs attention energy alone, which this model does "
            "not show: give the norms a weight."
        )
    score = pd.Series(0.0, index=table.index)
    for term, name in measured.items():
        share = table[name].fillna(0) / max(table[name].max(), np.finfo(float).tiny)
        score += share * weights[term] / total
    return score


def _seen(positions: pd.Series, n_tokens: int, min_queries: int) -> dict[str, pd.Series]:
    """seen_by: queries of the text at or after a token, those that can see it. well_seen: at least
    `min_queries` of them, as a mean over fewer says little; in a short text half the most."""
    seen_by = n_tokens - positions
    half = (seen_by.max() + 1) // 2
    return {"seen_by": seen_by, "well_seen": seen_by >= min(min_queries, half)}


def attention_sinks(sweep: Sweep, tokens: Sequence[str], min_queries: int) -> pd.DataFrame:
    """layer, position, token, attention_received, mean_received, even_share, seen_by, well_seen.

    Attention is the mean over a layer's KV heads; mean_received that over layers as well, those of
    `Sweep.spanning`. even_share: what the token would receive if every query of the text spread its
    attention evenly over all tokens up to its own (empty where a window hides some). Without
    measured attention the table is empty.
    """
    cache, spanning = sweep.cache, sweep.spanning
    parts = [
        pd.DataFrame(
            {
                "layer": layer.index,
                "position": layer.positions.numpy(),
                "token": [tokens[i] for i in layer.positions.tolist()],
                "attention_received": layer.attention.mean(0).cpu().numpy(),
            }
        )
        for layer in cache.layers
        if layer.attention is not None
    ]
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    per_token = np.full(cache.n_tokens, np.nan)
    mean = _mean([_mean_of_heads(cache.layers[i].attention) for i in spanning])
    per_token[cache.layers[spanning[0]].positions] = mean
    even = np.full(cache.n_tokens, np.nan)
    if cache.layers[spanning[0]].kind != "sliding":
        even = _even_share(cache.n_tokens)
    table["mean_received"] = per_token[table["position"]]
    table["even_share"] = even[table["position"]]
    return table.assign(**_seen(table["position"], cache.n_tokens, min_queries))


def _even_share(n_tokens: int) -> np.ndarray:
    """(tokens,): mean over the queries i >= j of 1 / (i + 1), for each token j."""
    shares = 1 / np.arange(1, n_tokens + 1)
    return np.cumsum(shares[::-1])[::-1] / np.arange(n_tokens, 0, -1)
