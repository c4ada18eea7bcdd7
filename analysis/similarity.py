"""How alike layers, heads, tokens and dimensions are.

Entries that are compared stand at the same positions of the text everywhere: they are chosen once
(`shared_positions`) and every table says how many they were. The measures are in geometry.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from analysis.blocks import SPAN
from analysis.clusters import leaf_order
from analysis.geometry import centred, cosines, linear_cka, row_cosines, subspace_overlaps
from data import cache as stored
from data.cache import KVCache, LayerKV, wide

KINDS = ("key", "unrotated_key", "value")


def comparable_kinds(cache: KVCache) -> tuple[str, ...]:
    """`KINDS`, without unrotated keys where nothing rotated them or where it is not known what."""
    rotaries = [layer.rotary for layer in cache.layers]
    rotated = [rotary is not None and bool(rotary.frequencies) for rotary in rotaries]
    return KINDS if None not in rotaries and any(rotated) else stored.KINDS


def shared_positions(cache: KVCache, most: int) -> torch.Tensor:
    """(positions,) of the text that every head of every layer holds: all, or `most` of them at
    even distances."""
    holders = torch.zeros(cache.n_tokens, dtype=torch.long)
    for layer in cache.layers:
        whole = slice(None) if layer.keep is None else layer.keep.all(0).cpu()
        holders[layer.positions.cpu()[whole]] += 1
    shared = (holders == cache.n_layers).nonzero().flatten()
    steps = torch.linspace(0, len(shared) - 1, min(most, len(shared)), dtype=torch.float64)
    return shared[steps.round().long()]


def chosen_layers(cache: KVCache, n: int) -> tuple[int, ...]:
    """`n` layers of the model from its first with keys and values to its last, evenly spread."""
    places = np.unique(np.linspace(0, cache.n_layers - 1, n).round().astype(int))
    return tuple(cache.layers[i].index for i in places)


def _holding(cache: KVCache, positions: torch.Tensor) -> list[LayerKV]:
    holding = [layer for layer in cache.layers if torch.isin(positions, layer.positions).all()]
    if not holding:
        raise ValueError(f"no layer holds all of the {len(positions)} positions")
    return holding


def entries(layer: LayerKV, kind: str, positions: torch.Tensor) -> torch.Tensor:
    """(kv_heads, positions, dim) in float32, on the cpu: few, and some devices lack float64."""
    if not torch.isin(positions, layer.positions).all():
        raise ValueError(f"layer {layer.index} does not hold all of the {len(positions)} positions")
    places = torch.searchsorted(layer.positions, positions)
    if kind != "unrotated_key":
        return layer.tensor(kind)[:, places].float().cpu()
    if layer.rotary is None:
        raise ValueError(f"it is not known what rotated the keys of layer {layer.index}")
    return layer.rotary.unrotated(layer.keys[:, places].float(), positions).cpu()


def _pairs(
    members: Mapping[str, ArrayLike],
    kind: str,
    measures: Mapping[str, torch.Tensor],
    twice: bool = False,
) -> pd.DataFrame:
    """One row for each pair a <= b of the n members, or for each (a, b): their names, the kind,
    and the measures, each (n, n)."""
    n = len(next(iter(measures.values())))
    a, b = np.indices((n, n)).reshape(2, -1) if twice else np.triu_indices(n)
    names = {
        f"{name}_{end}": np.asarray(values)[places]
        for end, places in (("a", a), ("b", b))
        for name, values in members.items()
    }
    # seven digits are more than there is to say, and half the size of the file
    columns = {name: matrix.numpy()[a, b].astype(np.float32) for name, matrix in measures.items()}
    return pd.DataFrame({**names, "kind": kind, **columns})


def layer_similarity(
    cache: KVCache, kinds: Sequence[str], positions: torch.Tensor, rank: int
) -> pd.DataFrame:
    """layer_a, layer_b, kind, cosine, cka, cka_chance, subspace, subspace_chance, n_positions,
    rank; every pair both ways.

    cosine: of all entries (heads, positions, dims); empty where shapes differ. cka, subspace: of
    (positions, heads x dims), see `linear_cka` and, for `rank` directions, `subspace_overlaps`.
    """
    parts = []
    for kind in kinds:
        units = [entries(layer, kind, positions) for layer in cache.layers]
        side_by_side = [centred(wide(x)[None]) for x in units]
        cka, cka_chance = linear_cka(side_by_side)
        subspace, subspace_chance = subspace_overlaps([x[0] for x in side_by_side], rank)
        measures = {
            "cosine": cosines([x[None] for x in units]),
            "cka": cka,
            "cka_chance": cka_chance,
            "subspace": subspace,
            "subspace_chance": subspace_chance,
        }
        members = {"layer": [layer.index for layer in cache.layers]}
        parts.append(_pairs(members, kind, measures, twice=True))
    return pd.concat(parts, ignore_index=True).assign(n_positions=len(positions), rank=rank)


def head_similarity(cache: KVCache, kinds: Sequence[str], positions: torch.Tensor) -> pd.DataFrame:
    """layer_a, head_a, order_a, layer_b, head_b, order_b, kind, cosine, cka, cka_chance,
    n_positions; every pair of KV heads of all layers once.

    cosine and cka: of (positions, dims), as in `layer_similarity`. order: a head's place when the
    heads of the kind are clustered by CKA.
    """
    layers = [layer.index for layer in cache.layers for _ in range(layer.n_heads)]
    heads = [head for layer in cache.layers for head in range(layer.n_heads)]
    parts = []
    for kind in kinds:
        units = [entries(layer, kind, positions) for layer in cache.layers]
        cka, chance = linear_cka([centred(x) for x in units])
        order = np.argsort(leaf_order(cka.numpy()))
        members: dict[str, ArrayLike] = {"layer": layers, "head": heads, "order": order}
        measures = {"cosine": cosines(units), "cka": cka, "cka_chance": chance}
        parts.append(_pairs(members, kind, measures))
    return pd.concat(parts, ignore_index=True).assign(n_positions=len(positions))


def token_similarity(cache: KVCache, kinds: Sequence[str], positions: torch.Tensor) -> pd.DataFrame:
    """position_a, position_b, kind, cosine, n_positions; every pair once.

    The cosine of two tokens' (heads x dims), mean over the layers that hold all of the positions.
    """
    parts = []
    for kind in kinds:
        holding = _holding(cache, positions)
        per_layer = torch.stack([_token_cosines(layer, kind, positions) for layer in holding])
        members = {"position": positions.numpy()}
        parts.append(_pairs(members, kind, {"cosine": per_layer.nanmean(0)}))
    return pd.concat(parts, ignore_index=True).assign(n_positions=len(positions))


def _token_cosines(layer: LayerKV, kind: str, positions: torch.Tensor) -> torch.Tensor:
    """(positions, positions)"""
    return row_cosines(wide(entries(layer, kind, positions)))


def token_kv_similarity(
    cache: KVCache, kinds: Sequence[str], positions: torch.Tensor, layers: Sequence[int]
) -> pd.DataFrame:
    """layer, position_a, position_b, kind, cosine, n_positions; every pair once, in each of the
    given layers of the model."""
    parts = []
    for kind in kinds:
        for layer in (layer for layer in cache.layers if layer.index in layers):
            measures = {"cosine": _token_cosines(layer, kind, positions)}
            rows = _pairs({"position": positions.numpy()}, kind, measures)
            rows.insert(0, "layer", layer.index)
            parts.append(rows)
    return pd.concat(parts, ignore_index=True).assign(n_positions=len(positions))


def token_embedding_patterns(cache: KVCache, positions: torch.Tensor) -> pd.DataFrame:
    """position, dim, kind, mean_abs, n_positions: mean |entry| of keys and values over the heads of
    the layers that hold all of the positions and have the dimension."""
    parts = []
    for kind in stored.KINDS:
        magnitudes = [entries(layer, kind, positions).abs() for layer in _holding(cache, positions)]
        mean = _nested_mean(magnitudes).numpy().astype(np.float32)  # (positions, dim)
        place, dim = np.indices(mean.shape).reshape(2, -1)
        columns = {"position": positions.numpy()[place], "dim": dim, "kind": kind}
        parts.append(pd.DataFrame({**columns, "mean_abs": mean.flatten()}))
    return pd.concat(parts, ignore_index=True).assign(n_positions=len(positions))


def dimension_correlations(
    cache: KVCache, kinds: Sequence[str], positions: torch.Tensor | None = None
) -> pd.DataFrame:
    """dim_a, dim_b, kind, mean_abs_correlation, n_positions; every pair once.

    |Pearson correlation| over tokens of two dimensions of a head, mean over the heads that have
    both and where neither is constant. Without positions, over all tokens of each layer.
    """
    holding = cache.layers if positions is None else _holding(cache, positions)
    parts = []
    for kind in kinds:
        mean = _nested_mean([_abs_correlations(layer, kind, positions) for layer in holding])
        parts.append(_pairs({"dim": np.arange(len(mean))}, kind, {"mean_abs_correlation": mean}))
    most = max(layer.n_tokens for layer in holding) if positions is None else len(positions)
    return pd.concat(parts, ignore_index=True).assign(n_positions=most)


def _abs_correlations(layer: LayerKV, kind: str, positions: torch.Tensor | None) -> torch.Tensor:
    """(kv_heads, dim, dim) |Pearson|; NaN where a dimension is constant."""
    chosen = layer.positions if positions is None else positions
    n_dims = layer.tensor(stored.KINDS[1] if kind == "value" else stored.KINDS[0]).shape[2]
    sums = torch.zeros(layer.n_heads, 1, n_dims, dtype=torch.float64)
    products = torch.zeros(layer.n_heads, n_dims, n_dims, dtype=torch.float64)
    pivot = None
    for part in chosen.split(SPAN):
        x = entries(layer, kind, part)
        pivot = x.mean(1, keepdim=True, dtype=torch.float64).float() if pivot is None else pivot
        x = x.double() - pivot  # about a point near the mean, for nothing to cancel
        sums += x.sum(1, keepdim=True)
        products += x.mT @ x
    covariance = products - sums.mT @ sums / len(chosen)
    spread = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    return (covariance / spread[:, :, None] / spread[:, None]).abs().clamp(max=1)


def _nested_mean(per_layer: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over heads and layers of (kv_heads, rows, columns) that start at the same corner but
    need not be as large; of what is not NaN."""
    shape = [max(x.shape[k] for x in per_layer) for k in (1, 2)]
    total = torch.zeros(shape, dtype=torch.float64)
    count = torch.zeros(shape, dtype=torch.long)
    for x in per_layer:
        corner = (slice(x.shape[1]), slice(x.shape[2]))
        total[corner] += x.nansum(0)
        count[corner] += (~x.isnan()).sum(0)
    return total / count
