"""What each token contributes: norms of its keys and values, and the attention it receives."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from analysis.blocks import norms
from analysis.measures import Sweep, spanning
from analysis.over_layers import MOST_POSITIONS, TokenMeans, group_size
from analysis.sinks import SINK
from config import UsageError
from data.cache import KINDS, KVCache

TERMS = {"key": "key_norm", "value": "value_norm", "energy": "attention_energy"}
COLUMNS = ("key_norm", "value_norm", "attention_received", "attention_energy")


def importance(cache: KVCache, weights: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens,) positions and (tokens,) importance of the tokens that the layers holding most
    tokens have: the score of `token_importance`, without what else a sweep looks at."""
    layers = [cache.layers[i] for i in spanning(cache)]
    means = TokenMeans(layers)
    for layer in layers:
        means.add(layer, slice(None), {kind: norms(layer.tensor(kind)) for kind in KINDS})
    return layers[0].positions, _importance(means.columns, weights)


def token_importance(
    sweep: Sweep,
    tokens: Sequence[str],
    weights: Mapping[str, float],
    min_queries: int,
) -> pd.DataFrame:
    """position, token_id, token, key_norm, value_norm, attention_received, attention_energy,
    importance, and its parts importance_key, importance_value and importance_energy, even_share,
    seen_by, well_seen; one row for each token that the layers holding most tokens have, and means
    over these layers (see `measures.spanning`).

    Norms are L2 over heads and dims. Where attention was not measured its columns stay empty.
    attention_energy: the mean over KV heads of `blocks.attention_energy`.
    importance: the terms, each divided by its maximum, in the given weights; the weights of terms
    that were not measured are spread over the others. even_share: see `attention_sinks`. seen_by,
    well_seen: see `_seen`.
    """
    terms = sweep.of_tokens.columns
    positions = sweep.cache.layers[sweep.spanning[0]].positions
    table = pd.DataFrame(
        {
            "position": positions.numpy(),
            "token_id": sweep.cache.token_ids[positions].numpy(),
            "token": [tokens[i] for i in positions.tolist()],
            **{name: terms[name].numpy() if name in terms else np.nan for name in COLUMNS},
            "importance": _importance(terms, weights).numpy(),
            **_parts(terms, weights),
            "even_share": _even_share(sweep)[positions.numpy()],
        }
    )
    return table.assign(**_seen(table["position"], sweep.cache.n_tokens, min_queries))


def _importance(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """(tokens,)"""
    weighed, shares = _weighed(terms, weights)
    return torch.stack([*weighed.values()]) @ torch.stack([*shares.values()])


def _parts(
    terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]
) -> dict[str, np.ndarray | float]:
    """What each term adds to the importance, by the name of its column."""
    weighed, shares = _weighed(terms, weights)
    return {
        f"importance_{term}": (weighed[term] * shares[term]).numpy() if term in shares else np.nan
        for term in TERMS
    }


def _weighed(
    terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """By the names of the terms that were measured, their weights, which sum to 1, and (tokens,)
    shares of their maxima."""
    measured = {term: terms[name] for term, name in TERMS.items() if name in terms}
    total = sum(weights[term] for term in measured)
    if not total:
        raise UsageError(
            "config.py: IMPORTANCE_WEIGHTS weighs attention energy alone, which this model does "
            "not show",
            "give the norms a weight",
        )
    tiny = torch.finfo(torch.float64).tiny  # of zeros no token has a share
    shares = {term: x / x.max().clamp(min=tiny) for term, x in measured.items()}
    of_each = torch.tensor([weights[term] for term in measured], dtype=torch.float64) / total
    return dict(zip(measured, of_each, strict=True)), shares


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

    Of a text of more than `over_layers.MOST_POSITIONS` tokens, rows are those of the tokens that
    receive most among their neighbours, in the layer or on average, and of all sinks.
    """
    cache, first = sweep.cache, sweep.cache.layers[sweep.spanning[0]]
    per_token, even = np.full(cache.n_tokens, np.nan), _even_share(sweep)
    columns = sweep.of_tokens.columns
    if "attention_received" in columns:
        per_token[first.positions.numpy()] = columns["attention_received"].numpy()
    parts = []
    for layer in cache.layers:
        if layer.attention is None:
            continue
        received, positions = layer.attention.mean(0).cpu().numpy(), layer.positions.numpy()
        told = _told_apart(positions, group_size(cache.n_tokens), received, per_token[positions])
        told |= per_token[positions] >= SINK * even[positions]
        named = {
            "layer": layer.index,
            "position": positions[told],
            "token": [tokens[i] for i in positions[told]],
            "attention_received": received[told],
            "mean_received": per_token[positions[told]],
            "even_share": even[positions[told]],
        }
        parts.append(pd.DataFrame(named))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    return table.assign(**_seen(table["position"], cache.n_tokens, min_queries))


def attended_text(sweep: Sweep, tokens: Sequence[str], min_queries: int) -> pd.DataFrame:
    """position, token, mean_received, even_share, seen_by, well_seen, as in `attention_sinks`: the
    first `over_layers.MOST_POSITIONS` tokens in the order of the text, which is all that a picture
    of words can hold. Without measured attention the table is empty."""
    columns = sweep.of_tokens.columns
    if "attention_received" not in columns:
        return pd.DataFrame()
    positions = sweep.cache.layers[sweep.spanning[0]].positions[:MOST_POSITIONS]
    table = pd.DataFrame(
        {
            "position": positions.numpy(),
            "token": [tokens[i] for i in positions.tolist()],
            "mean_received": columns["attention_received"][:MOST_POSITIONS].numpy(),
            "even_share": _even_share(sweep)[positions.numpy()],
        }
    )
    return table.assign(**_seen(table["position"], sweep.cache.n_tokens, min_queries))


def _told_apart(positions: np.ndarray, group: int, *measures: np.ndarray) -> np.ndarray:
    """(tokens,) whether a token is the largest, by some measure, of those that stand within the
    same `group` positions."""
    of_group, told = positions // group, np.zeros(len(positions), dtype=bool)
    for measure in measures:
        order = np.lexsort((-measure, of_group))  # the largest of each group stands first
        told[order[np.unique(of_group[order], return_index=True)[1]]] = True
    return told


def _even_share(sweep: Sweep) -> np.ndarray:
    """(tokens,): mean over the queries i >= j of 1 / (i + 1), for each token j; NaN where a window
    hides some from them."""
    n_tokens = sweep.cache.n_tokens
    if sweep.cache.layers[sweep.spanning[0]].kind == "sliding":
        return np.full(n_tokens, np.nan)
    shares = 1 / np.arange(1, n_tokens + 1)
    return np.cumsum(shares[::-1])[::-1] / np.arange(n_tokens, 0, -1)
