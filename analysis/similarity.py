"""How alike layers, heads, tokens and dimensions are.

Entries that are compared stand at the same positions of the text everywhere: they are chosen once
(`shared_positions`) and every table says how many they were. Cosines ask whether one tensor is a
multiple of another; CKA and subspaces whether both arrange the tokens alike in any coordinates.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from analysis.clusters import leaf_order
from data.cache import KVCache, LayerKV, wide

KINDS = ("key", "unrotated_key", "value")
MOST_FLOATS = 1 << 24  # of token kernels held at a time: 64 MiB
SWEEPS, EXTRA_DIRECTIONS = 6, 32  # of the search for leading directions; off by 1e-4 at most


def comparable_kinds(cache: KVCache) -> tuple[str, ...]:
    """`KINDS`, without unrotated keys where nothing rotated them or where it is not known what."""
    rotaries = [layer.rotary for layer in cache.layers]
    rotated = None not in rotaries and any(rotary.frequencies for rotary in rotaries)
    return KINDS if rotated else ("key", "value")


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
    holding = [x for x in cache.layers if torch.isin(positions, x.positions).all()]
    if not holding:
        raise ValueError(f"no layer holds all of the {len(positions)} positions")
    return holding


def _entries(layer: LayerKV, kind: str, positions: torch.Tensor) -> torch.Tensor:
    """(kv_heads, positions, dim) in float32, on the cpu: few, and some devices lack float64."""
    if not torch.isin(positions, layer.positions).all():
        raise ValueError(f"layer {layer.index} does not hold all of the {len(positions)} positions")
    at = torch.searchsorted(layer.positions, positions)
    if kind == "unrotated_key":
        return layer.rotary.unrotated(layer.keys[:, at].float(), positions).cpu()
    return layer.tensor(kind)[:, at].float().cpu()


def _centred(x: torch.Tensor) -> torch.Tensor:
    """(units, positions, width) less its mean over positions; exactly 0 where it is constant."""
    return x - x.mean(1, keepdim=True, dtype=torch.float64).float()


def _normalised(gram: torch.Tensor) -> torch.Tensor:
    """(n, n) inner products -> cosines; NaN where something is 0 and has no direction."""
    norm = gram.diagonal().sqrt()
    return (gram / norm[:, None] / norm).clamp(-1, 1)


def _gram(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """(n, n) inner products of n long vectors that are given in parts (n, entries)."""
    return sum((part @ part.T).double() for part in parts)


def _cosines(units: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n, n) cosines of the n tensors that stand in (units, ...); NaN where their shapes differ."""
    shapes = [tuple(x.shape[1:]) for x in units for _ in range(len(x))]
    result = torch.full((len(shapes), len(shapes)), torch.nan, dtype=torch.float64)
    for shape in set(shapes):
        same = torch.tensor([i for i, other in enumerate(shapes) if other == shape])
        x = torch.cat([x for x in units if tuple(x.shape[1:]) == shape]).flatten(1)
        result[same[:, None], same] = _normalised(_gram(x.split(1 << 14, dim=1)))
    return result


def _cka(centred: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """(n, n) linear CKA of n units that stand in (units, positions, width), each of its width:
    <K, L> / (|K| |L|) of their centred token kernels K = X X^T (Kornblith et al., 1905.00414).

    Beside it what chance gives, the more the wider: its mean over all orders of one side's tokens.
    Takes a few rows of all kernels at a time, so that memory does not grow with the units.
    """
    units = [x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) for x in centred]
    n_positions = units[0].shape[1]
    n_rows = max(1, MOST_FLOATS // max(1, n_positions * sum(len(x) for x in units)))
    gram = _gram(
        torch.cat([(x[:, rows] @ x.mT).flatten(1) for x in units])
        for rows in torch.arange(n_positions).split(n_rows)
    )
    norm = gram.diagonal().sqrt()  # of kernels whose trace is 1
    chance = 1 / ((n_positions - 1) * norm[:, None] * norm)
    return {"cka": _normalised(gram), "cka_chance": chance}


def _token_bases(centred: Sequence[torch.Tensor], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, positions, rank) leading left singular vectors of n centred (positions, width), zeros
    after the last, and how many there are, (n,); directions within rounding of 0 are none.

    By subspace iteration (Halko, Martinsson and Tropp, 0909.4061): complete decompositions would
    take longer than everything else here together.
    """
    n_positions = len(centred[0])
    start = torch.Generator().manual_seed(0)
    q = torch.randn(n_positions, min(n_positions, rank + EXTRA_DIRECTIONS), generator=start)
    bases = q.expand(len(centred), -1, -1)
    for _ in range(SWEEPS):
        pairs = zip(centred, bases, strict=True)
        bases = torch.linalg.qr(torch.stack([x @ (x.T @ q) for x, q in pairs]))[0]
    # Rotated within the space that was found, (rank + extra, width), to the singular vectors.
    seen = [(q.T @ x).double() for x, q in zip(centred, bases, strict=True)]
    squares, turns = torch.linalg.eigh(torch.stack([y @ y.T for y in seen]))
    squares, turns = squares.flip(1)[:, :rank], turns.flip(2)[:, :, :rank]
    rounding = n_positions * torch.finfo(torch.float32).eps
    real = squares > rounding**2 * squares[:, :1]
    return bases.double() @ turns * real[:, None], real.sum(1)


def _subspace_overlaps(centred: Sequence[torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """(n, n) mean squared cosine of the principal angles between the spaces of tokens that the
    leading left singular vectors of (positions, width) span, |U^T V|^2 / r, and what chance gives.

    r is `rank`, or less where one of the two has fewer.
    """
    bases, ranks = _token_bases(centred, rank)
    # The corner [:r, :r] of a pair's squared cosines sums to |U^T V|^2 of r directions each.
    sums = torch.einsum("apr,bps->abrs", bases, bases).square().cumsum(2).cumsum(3)
    r = torch.minimum(ranks[:, None], ranks)
    unit, corner = torch.arange(len(centred)), (r - 1).clamp(min=0)
    overlap = (sums[unit[:, None], unit, corner, corner] / r).clamp(max=1)
    return {"subspace": overlap, "subspace_chance": r / (len(centred[0]) - 1)}


def _pairs(
    members: dict[str, Sequence[int]], kind: str, measures: dict[str, torch.Tensor], twice=False
) -> pd.DataFrame:
    """One row for each pair a <= b of the n members, or for each (a, b): their names, the kind,
    and the measures, each (n, n)."""
    n = len(next(iter(members.values())))
    a, b = np.indices((n, n)).reshape(2, -1) if twice else np.triu_indices(n)
    names = {
        f"{name}_{end}": np.asarray(values)[at]
        for end, at in (("a", a), ("b", b))
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
    (positions, heads x dims), see `_cka` and, for `rank` directions, `_subspace_overlaps`.
    """
    parts = []
    for kind in kinds:
        entries = [_entries(layer, kind, positions) for layer in cache.layers]
        centred = [_centred(wide(x)[None]) for x in entries]
        measures = {
            "cosine": _cosines([x[None] for x in entries]),
            **_cka(centred),
            **_subspace_overlaps([x[0] for x in centred], rank),
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
        entries = [_entries(layer, kind, positions) for layer in cache.layers]
        measures = {"cosine": _cosines(entries), **_cka([_centred(x) for x in entries])}
        order = np.argsort(leaf_order(measures["cka"].numpy()))
        members = {"layer": layers, "head": heads, "order": order}
        parts.append(_pairs(members, kind, measures))
    return pd.concat(parts, ignore_index=True).assign(n_positions=len(positions))


def token_similarity(cache: KVCache, kinds: Sequence[str], positions: torch.Tensor) -> pd.DataFrame:
    """position_a, position_b, kind, cosine, n_positions; every pair once.

    The cosine of two tokens' (heads x dims), mean over the layers that hold all of the positions.
    """
    parts = []
    for kind in kinds:
        holding = _holding(cache, positions)
        cosines = torch.stack([_token_cosines(layer, kind, positions) for layer in holding])
        members = {"position": positions.numpy()}
        parts.append(_pairs(members, kind, {"cosine": cosines.nanmean(0)}))
    return pd.concat(parts, ignore_index=True).assign(n_positions=len(positions))


def _token_cosines(layer: LayerKV, kind: str, positions: torch.Tensor) -> torch.Tensor:
    """(positions, positions)"""
    return _normalised(_gram([wide(_entries(layer, kind, positions))]))


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
    for kind in ("key", "value"):
        magnitudes = [_entries(x, kind, positions).abs() for x in _holding(cache, positions)]
        mean = _nested_mean(magnitudes).numpy()  # (positions, dim)
        at, dim = np.indices(mean.shape).reshape(2, -1)
        columns = {"position": positions.numpy()[at], "dim": dim, "kind": kind}
        parts.append(pd.DataFrame({**columns, "mean_abs": mean[at, dim].astype(np.float32)}))
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
        found = [_abs_correlations(layer, kind, positions) for layer in holding]
        measures = {"mean_abs_correlation": _nested_mean(found)}
        parts.append(_pairs({"dim": range(len(measures["mean_abs_correlation"]))}, kind, measures))
    most = max(layer.n_tokens for layer in holding) if positions is None else len(positions)
    return pd.concat(parts, ignore_index=True).assign(n_positions=most)


def _abs_correlations(layer: LayerKV, kind: str, positions: torch.Tensor | None) -> torch.Tensor:
    """(kv_heads, dim, dim) |Pearson|; NaN where a dimension is constant."""
    x = _centred(_entries(layer, kind, layer.positions if positions is None else positions))
    x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return (x.mT @ x).abs().clamp(max=1)


def _nested_mean(per_layer: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over heads and layers of (kv_heads, rows, columns) that start at the same corner but
    need not be as large; of what is not NaN."""
    shape = [max(x.shape[k] for x in per_layer) for k in (1, 2)]
    total = torch.zeros(shape, dtype=torch.float64)
    count = torch.zeros(shape)
    for x in per_layer:
        corner = (slice(x.shape[1]), slice(x.shape[2]))
        total[corner] += x.nansum(0)
        count[corner] += (~x.isnan()).sum(0)
    return total / count
