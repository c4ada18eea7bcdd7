"""What each token contributes: norms of its keys and values, and the attention it receives."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from analysis.measures import Sweep

TERMS = {"key": "key_norm", "value": "value_norm", "energy": "attention_energy"}


class _MeanOverLayers:
    """The mean of a quantity per token over the layers that hold the token."""

    def __init__(self, n_tokens: int) -> None:
        self._sum = torch.zeros(n_tokens, dtype=torch.float64)
        self._layers = torch.zeros(n_tokens)

    def add(self, positions: torch.Tensor, per_token: torch.Tensor) -> None:
        self._sum[positions] += per_token.double().cpu()
        self._layers[positions] += 1

    def mean(self) -> np.ndarray:
        """(tokens,), NaN for a token that no layer held."""
        return (self._sum / self._layers).numpy()


def token_importance(
    sweep: Sweep,
    attention: Sequence[torch.Tensor | None],
    tokens: Sequence[str],
    weights: dict[str, float],
    min_queries: int,
) -> pd.DataFrame:
    """position, token_id, token, key_norm, value_norm, attention_received, attention_energy,
    importance, seen_by, well_seen; one row for each token that at least one layer holds.

    Norms are L2 over heads and dims, then the mean over layers. attention: per layer (kv_heads,
    tokens), the mean weight a token's key received; None where it was not measured, and with it
    the columns stay empty. attention_energy is that weight times the value's norm per KV head.
    importance: the terms, each divided by its maximum, in the given weights; the weights of terms
    that were not measured are spread over the others. seen_by, well_seen: see `_seen`.
    """
    cache = sweep.cache
    names = ("key_norm", "value_norm", "attention_received", "attention_energy")
    means = {name: _MeanOverLayers(cache.n_tokens) for name in names}
    for i, layer in enumerate(cache.layers):
        value_norms = sweep.sums["value"][i].norm_head_token  # (kv_heads, tokens)
        means["key_norm"].add(layer.positions, _over_heads(sweep.sums["key"][i].norm_head_token))
        means["value_norm"].add(layer.positions, _over_heads(value_norms))
        if attention[i] is not None:
            received = attention[i].cpu()  # (kv_heads, tokens)
            means["attention_received"].add(layer.positions, received.mean(0))
            means["attention_energy"].add(layer.positions, (received * value_norms).mean(0))
    table = pd.DataFrame(
        {
            "position": np.arange(cache.n_tokens),
            "token_id": cache.token_ids.numpy(),
            "token": list(tokens),
            **{name: mean.mean() for name, mean in means.items()},
        }
    )
    table = table[table["key_norm"].notna()].reset_index(drop=True)
    table["importance"] = _importance(table, weights)
    return table.assign(**_seen(table["position"], cache.n_tokens, min_queries))


def _over_heads(norms: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens) norms over dims -> (tokens,) norms over heads and dims."""
    return torch.linalg.vector_norm(norms.double(), dim=0)


def _importance(table: pd.DataFrame, weights: dict[str, float]) -> pd.Series:
    measured = {term: name for term, name in TERMS.items() if table[name].notna().any()}
    total = sum(weights[term] for term in measured)
    score = pd.Series(0.0, index=table.index)
    for term, name in measured.items():
        share = table[name].fillna(0) / max(table[name].max(), np.finfo(float).tiny)
        score += share * (weights[term] / total if total else 1 / len(measured))
    return score


def _seen(positions: pd.Series, n_tokens: int, min_queries: int) -> dict[str, pd.Series]:
    """seen_by: queries of the text at or after a token, those that can see it. well_seen: at least
    `min_queries` of them, as a mean over fewer says little; in a short text half the most."""
    seen_by = n_tokens - positions
    half = (seen_by.max() + 1) // 2
    return {"seen_by": seen_by, "well_seen": seen_by >= min(min_queries, half)}


def attention_sinks(
    sweep: Sweep,
    attention: Sequence[torch.Tensor | None],
    tokens: Sequence[str],
    min_queries: int,
) -> pd.DataFrame:
    """layer, position, token, attention_received, mean_received, even_share, seen_by, well_seen.

    Attention is the mean over a layer's KV heads, mean_received that over all layers as well.
    even_share: what the token would receive if every query of the text spread its attention evenly
    over all tokens up to its own (empty where a layer's window hides some of them). Without
    measured attention the table is empty.
    """
    cache = sweep.cache
    parts, over_layers = [], _MeanOverLayers(cache.n_tokens)
    for layer, received in zip(cache.layers, attention, strict=True):
        if received is None:
            continue
        per_token = received.mean(0).cpu()
        over_layers.add(layer.positions, per_token)
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer.index,
                    "position": layer.positions.numpy(),
                    "attention_received": per_token.numpy(),
                }
            )
        )
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    table.insert(2, "token", np.asarray(tokens, dtype=object)[table["position"]])
    table["mean_received"] = over_layers.mean()[table["position"]]
    all_full = all(layer.kind != "sliding" for layer in cache.layers)
    even = _even_share(cache.n_tokens) if all_full else np.full(cache.n_tokens, np.nan)
    table["even_share"] = even[table["position"]]
    return table.assign(**_seen(table["position"], cache.n_tokens, min_queries))


def _even_share(n_tokens: int) -> np.ndarray:
    """(tokens,): mean over the queries i >= j of 1 / (i + 1), for each token j."""
    shares = 1 / np.arange(1, n_tokens + 1)
    return np.cumsum(shares[::-1])[::-1] / np.arange(n_tokens, 0, -1)
