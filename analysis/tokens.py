"""What each token contributes: norms of its keys and values, and the attention it receives."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from analysis.measures import Sweep, attention_energy, norms, spanning
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV

TERMS = {"key": "key_norm", "value": "value_norm", "energy": "attention_energy"}
COLUMNS = ("key_norm", "value_norm", "attention_received", "attention_energy")


def importance(cache: KVCache, weights: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens,) positions and (tokens,) importance of the tokens that the layers holding most
    tokens have: the score of `token_importance`, without what else a sweep looks at."""
    layers = [cache.layers[i] for i in spanning(cache)]
    of_layers = {kind: [norms(layer.tensor(kind)) for layer in layers] for kind in KINDS}
    return layers[0].positions, _importance(_terms(layers, of_layers), weights)


def token_importance(
    sweep: Sweep,
    tokens: Sequence[str],
    weights: Mapping[str, float],
    min_queries: int,
) -> pd.DataFrame:
    """position, token_id, token, key_norm, value_norm, attention_received, attention_energy,
    importance, seen_by, well_seen; one row for each token that the layers holding most tokens have,
    and means over these layers (see `measures.spanning`).

    Norms are L2 over heads and dims. Where attention was not measured its columns stay empty.
    attention_energy: the mean over KV heads of `measures.attention_energy`.
    importance: the terms, each divided by its maximum, in the given weights; the weights of terms
    that were not measured are spread over the others. seen_by, well_seen: see `_seen`.
    """
    layers = [sweep.cache.layers[i] for i in sweep.spanning]
    of_layers = {
        kind: [sweep.sums[kind][i].norm_head_token for i in sweep.spanning] for kind in KINDS
    }
    terms = _terms(layers, of_layers)
    positions = layers[0].positions
    table = pd.DataFrame(
        {
            "position": positions.numpy(),
            "token_id": sweep.cache.token_ids[positions].numpy(),
            "token": [tokens[i] for i in positions.tolist()],
            **{name: terms[name].numpy() if name in terms else np.nan for name in COLUMNS},
            "importance": _importance(terms, weights).numpy(),
        }
    )
    return table.assign(**_seen(table["position"], sweep.cache.n_tokens, min_queries))


def _terms(
    layers: Sequence[LayerKV], of_layers: Mapping[str, Sequence[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """(tokens,) in float64 by the name of its column, those of attention only where it was
    measured. of_layers: kind -> for each layer the norms (kv_heads, tokens)."""
    terms = {f"{kind}_norm": _mean([_over_heads(x) for x in of_layers[kind]]) for kind in KINDS}
    measured = [
        (layer.attention, value_norms)
        for layer, value_norms in zip(layers, of_layers["value"], strict=True)
        if layer.attention is not None
    ]
    if measured:
        terms["attention_received"] = _mean([received.mean(0) for received, _ in measured])
        terms["attention_energy"] = _mean([attention_energy(*pair).mean(0) for pair in measured])
    return terms


def _mean(per_layer: Sequence[torch.Tensor]) -> torch.Tensor:
    """(tokens,) in float64, of (tokens,) each."""
    return torch.stack([x.double().cpu() for x in per_layer]).mean(0)


def _over_heads(of_heads: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens) norms over dims -> (tokens,) norms over heads and dims."""
    return of_heads.double().square().sum(0).sqrt()


def _importance(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """(tokens,)"""
    measured = {term: terms[name] for term, name in TERMS.items() if name in terms}
    total = sum(weights[term] for term in measured)
    if not total:
        raise UsageError(
            "config.py: IMPORTANCE_WEIGHTS weighs attention energy alone, which this model does "
            "not show",
            "give the norms a weight",
        )
    tiny = torch.finfo(torch.float64).tiny  # of zeros no token has a share
    shares = torch.stack([x / x.max().clamp(min=tiny) for x in measured.values()])
    weighed = torch.tensor([weights[term] for term in measured], dtype=torch.float64) / total
    return weighed @ shares


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
    cache, first = sweep.cache, sweep.cache.layers[sweep.spanning[0]]
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
    per_token, even = np.full((2, cache.n_tokens), np.nan)
    received = [x.attention for i in sweep.spanning if (x := cache.layers[i]).attention is not None]
    if received:
        per_token[first.positions.numpy()] = _mean([x.mean(0) for x in received]).numpy()
    if first.kind != "sliding":
        even = _even_share(cache.n_tokens)
    table["mean_received"] = per_token[table["position"]]
    table["even_share"] = even[table["position"]]
    return table.assign(**_seen(table["position"], cache.n_tokens, min_queries))


def _even_share(n_tokens: int) -> np.ndarray:
    """(tokens,): mean over the queries i >= j of 1 / (i + 1), for each token j."""
    shares = 1 / np.arange(1, n_tokens + 1)
    return np.cumsum(shares[::-1])[::-1] / np.arange(n_tokens, 0, -1)
