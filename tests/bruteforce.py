"""What is measured and chosen, again from its definition: slow, one entry after the other."""

import math

import numpy as np
import torch

from data.cache import LayerKV


def hoyer(x: np.ndarray) -> float:
    """Hoyer sparsity of all entries."""
    if x.size == 1:
        return math.nan
    root = math.sqrt(x.size)
    return (root - np.abs(x).sum() / np.linalg.norm(x)) / (root - 1)


def kurtosis(x: np.ndarray) -> float:
    return ((x - x.mean()) ** 4).mean() / x.var() ** 2


def entries(layer: LayerKV, kind: str, positions: torch.Tensor) -> np.ndarray:
    """(kv_heads, positions, dim), one position at a time."""
    places = [layer.positions.tolist().index(p) for p in positions.tolist()]
    x = layer.unrotated_keys() if kind == "unrotated_key" else layer.tensor(kind)
    return x.double().numpy()[:, places]


def joined(x: np.ndarray) -> np.ndarray:
    """(positions, kv_heads x dim)"""
    return np.concatenate(list(x), axis=1)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    if x.shape != y.shape:
        return math.nan
    return (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of (tokens, width) each."""
    if len(x) == 1:
        return math.nan
    x, y = x - x.mean(0), y - y.mean(0)
    return cosine(x @ x.T, y @ y.T)


def kept(scores: list, n_kept: int, sinks: int, recent: int) -> set[int]:
    """The places that stay: first ones, then recent ones, then those of the highest scores; of
    equal scores the more recent one."""
    n = len(scores)
    must = [*range(sinks), *range(n - 1, n - 1 - recent, -1)]
    by_score = sorted(range(n), key=lambda place: (scores[place], place), reverse=True)
    return set(list(dict.fromkeys(must + by_score))[:n_kept])


def places(keep: torch.Tensor) -> list[set[int]]:
    """Of each head the places that (kv_heads, tokens) is True at."""
    return [{place for place, stays in enumerate(row) if stays} for row in keep.tolist()]


def dense_basis(group):
    """(width, columns) float64, the basis of a whole group in one, and (width, width) its root."""
    basis = torch.block_diag(*(each.basis.double() for each in group.neighbours))
    columns = torch.arange(len(basis)).split([len(each.mean) for each in group.neighbours])
    firsts = torch.cat([c[:n] for c, n in zip(columns, group.firsts, strict=True)])
    left = torch.cat([c[n:] for c, n in zip(columns, group.firsts, strict=True)])
    basis = torch.cat([basis[:, firsts] @ group.turn.double(), basis[:, left]], dim=1)
    roots = (root.double() for each in group.neighbours for root in each.roots)
    return basis, torch.block_diag(*roots)


def coded_places(codes: torch.Tensor, levels: torch.Tensor) -> list[tuple[int, int]]:
    """(column, row) of each integer that is coded, in order: row 0 with 64 others, then 128,
    256, 256, ... rows, the heaviest first and of equal ones the earlier, up to 64 that would be
    left over with the last; each of these blocks column by column."""
    by_weight = sorted(range(1, len(levels)), key=lambda row: -int(levels[row]))
    blocks, size = [], 64
    while by_weight:
        blocks.append([*([] if blocks else [0]), *by_weight[:size]])
        by_weight, size = by_weight[size:], min(256, 2 * size)
        if len(by_weight) <= 64:
            blocks[-1] += by_weight
            by_weight = []
    return [
        (column, row)
        for rows in blocks
        for column, code in enumerate(codes.tolist())
        for row in rows
        if code and (code - 128 + int(levels[row]) + 1) // 2 >= -8  # a quarter of a step
    ]
