"""What each token contributes: norms of its keys and values, and the attention it receives."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from analysis.blocks import norms
from analysis.measures import Sweep, spanning
from analysis.over_layers import TokenMeans, group_size
from config import UsageError
from data.cache import KINDS, KVCache

TERMS = {"key": "key_norm", "value": "value_norm", "energy": "attention_energy"}
SINK = 10  # times the even share of attention that make a token a sink
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
    importance, seen_by, well_seen; one row for each token that the layers holding most tokens have,
    and means over these layers (see `measures.spanning`).

    Norms are L2 over heads and dims. Where attention was not measured its columns stay empty.
    attention_energy: the mean over KV heads of `blocks.attention_energy`.
    importance: the terms, each divided by its maximum, in the given weights; the weights of terms
    that were not measured are spread over the others. seen_by, well_seen: see `_seen`.
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
        }
    )
    return table.assign(**_seen(table["position"], sweep.cache.n_tokens, min_queries))


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

    Of a text of more than `over_layers.MOST_POSITIONS` tokens, rows are those of the tokens that
    receive most among their neighbours, in the layer or on average, and of all sinks.
    """
    cache, first = sweep.cache, sweep.cache.layers[sweep.spanning[0]]
    per_token, even = np.full((2, cache.n_tokens), np.nan)
    columns = sweep.of_tokens.columns
    if "attention_received" in columns:
        per_token[first.positions.numpy()] = columns["attention_received"].numpy()
    if first.kind != "sliding":
        even = _even_share(cache.n_tokens)
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


def sinks(table: pd.DataFrame) -> pd.DataFrame:
    """The tokens of `attention_sinks` that receive SINK times the even share or more, most first;
    a row for each."""
    tokens = table[table["well_seen"]].drop_duplicates("position")
    many = tokens[tokens["mean_received"] >= SINK * tokens["even_share"]]
    return many.sort_values("mean_received", ascending=False, kind="stable")


def _told_apart(positions: np.ndarray, group: int, *measures: np.ndarray) -> np.ndarray:
    """(tokens,) whether a token is the largest, by some measure, of those that stand within the
    same `group` positions."""
    of_group, told = positions // group, np.zeros(len(positions), dtype=bool)
    for measure in measures:
        order = np.lexsort((-measure, of_group))  # the largest of each group stands first
        told[order[np.unique(of_group[order], return_index=True)[1]]] = True
    return told


def _even_share(n_tokens: int) -> np.ndarray:
    """(tokens,): mean over the queries i >= j of 1 / (i + 1), for each token j."""
    shares = 1 / np.arange(1, n_tokens + 1)
    return np.cumsum(shares[::-1])[::-1] / np.arange(n_tokens, 0, -1)
