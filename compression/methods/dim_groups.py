"""Which dimensions of a head go together, and the one direction that stands for each group."""

from functools import reduce

import pandas as pd
import torch

from data.cache import KINDS, KVCache

POWER_STEPS = 30
BLOCK = 2048  # tokens that are in float32 at a time


def group_dims(
    x: torch.Tensor, n_kept: int, similarity: float = 0.0, largest: int = 8
) -> torch.Tensor:
    """(heads, dim) group numbers from 0 within each head of x (heads, tokens, dim).

    Agglomerative, complete linkage on |cosine| over tokens: the two groups whose least similar
    members are most similar are merged, until `n_kept` are left, none reach `similarity`, or any
    two together are more than `largest`. All heads at once; a step per merge.
    """
    heads, _, dim = x.shape
    linked = _similarity(x)  # (heads, dim, dim), -1 where a pair cannot be merged
    eye = torch.eye(dim, dtype=torch.bool, device=x.device)
    linked[:, eye] = -1.0
    sizes = torch.ones(heads, dim, device=x.device)
    leader = torch.arange(dim, device=x.device).repeat(heads, 1)
    every = torch.arange(heads, device=x.device)
    for _ in range(dim - n_kept):
        allowed = sizes[:, :, None] + sizes[:, None] <= largest
        best, place = torch.where(allowed, linked, -1.0).flatten(1).max(1)
        a, b = place // dim, place % dim  # (heads,)
        merges = (best >= similarity) & (best >= 0)
        if not merges.any():
            break
        merging, a, b = every[merges], a[merges], b[merges]
        joint = torch.minimum(linked[merging, a], linked[merging, b])  # (merging heads, dim)
        linked[merging, a] = joint
        linked[merging, :, a] = joint
        linked[merging, a, a] = -1.0
        linked[merging, b] = -1.0
        linked[merging, :, b] = -1.0
        sizes[merging, a] += sizes[merging, b]
        leader[merging] = torch.where(leader[merging] == b[:, None], a[:, None], leader[merging])
    return _numbered(leader)


def _similarity(x: torch.Tensor) -> torch.Tensor:
    """|cosine| over tokens of each two dimensions, (heads, dim, dim); 0 of one that is 0."""
    parts = (part.float() for part in x.split(BLOCK, dim=1))
    gram = reduce(torch.Tensor.add_, (part.mT @ part for part in parts))
    norm = gram.diagonal(dim1=1, dim2=2).sqrt().clamp(min=1e-12)
    cosine: torch.Tensor = gram / (norm[:, :, None] * norm[:, None])
    return cosine.abs()  # to the last bit the same both ways


def _numbered(leader: torch.Tensor) -> torch.Tensor:
    """Groups numbered 0, 1, ... in each row, in the order of their leaders."""
    is_leader = leader == torch.arange(leader.shape[1], device=leader.device)
    return (is_leader.cumsum(1) - 1).gather(1, leader)


def group_directions(x: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """(heads, dim) scales s, of unit norm within each group, that make z = sum_i s_i x_i with
    x_i ~ s_i z the best stand-in for a group: its leading principal direction, by power steps."""
    same = groups[:, :, None] == groups[:, None]
    gram = torch.where(same, x.transpose(1, 2) @ x, 0.0)  # (heads, dim, dim)
    # A start that no group's leading direction is orthogonal to: its largest member's row.
    largest = torch.where(same, gram.diagonal(dim1=1, dim2=2)[:, None], -1.0).argmax(2)
    scales = gram.gather(1, largest[:, None]).squeeze(1)
    for _ in range(POWER_STEPS):
        scales = _unit(scales, same)
        scales = (gram @ scales[:, :, None]).squeeze(2)
    return _unit(scales, same)


def _unit(scales: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Scaled to unit norm within each group; a group of zeros gives zeros."""
    squares = (same.to(scales.dtype) @ scales.square()[:, :, None]).squeeze(2)
    return scales * squares.clamp(min=torch.finfo(scales.dtype).tiny).rsqrt()


def dimension_groups(cache: KVCache, similarity: float, largest: int) -> pd.DataFrame:
    """layer, head, kind, dim, group, group_size, group_share (1 / group_size), similarity: the
    groups that are merged when all with this |cosine| over tokens are."""
    tables = []
    for layer in cache.layers:
        for kind in KINDS:
            groups = group_dims(layer.tensor(kind), 1, similarity, largest)
            table = pd.DataFrame(groups.cpu().numpy()).rename_axis("head").reset_index()
            table = table.melt("head", var_name="dim", value_name="group")
            tables.append(table.assign(layer=layer.index, kind=kind))
    table = pd.concat(tables, ignore_index=True)
    members = table.groupby(["layer", "kind", "head", "group"])["dim"]
    table["group_size"] = members.transform("size")
    table["group_share"] = 1 / table["group_size"]
    columns = ["layer", "head", "kind", "dim", "group", "group_size", "group_share"]
    return table[columns].assign(similarity=similarity)
