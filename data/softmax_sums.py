"""How much weight keys receive from queries, summed without ever holding tokens x tokens."""

from collections.abc import Callable

import torch

BLOCK_SCORES = 2**20  # attention scores held at a time (4 MB)

# Is shown attention weights (queries, keys), mean over heads, and which query is the first of them
See = Callable[[torch.Tensor, int], None]


def softmax_sums(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    scaling: float | None = None,
    see: See | None = None,
) -> torch.Tensor:
    """Attention weights summed over queries, without ever holding (heads, queries, keys).

    query: (heads, queries, dim). key: (key_heads, keys, dim), heads a multiple of key_heads.
    mask: (1, 1 or heads, queries, keys), True or 0 where a query sees a key; None is causal, the
        last query being at the last key. see: is shown all weights, block by block.
    Returns (key_heads, keys), the mean over the query heads of each key head.
    """
    n_heads, n_queries, dim = query.shape
    n_key_heads, n_keys = key.shape[:2]
    query = query.unflatten(0, (n_key_heads, -1)) * (dim**-0.5 if scaling is None else scaling)
    group = n_heads // n_key_heads
    sums = torch.zeros(n_key_heads, n_keys, device=query.device)
    for rows in blocks_of(n_queries, n_heads * n_keys):
        # Without a mask, keys after the block's last query need no scores at all.
        end = n_keys if mask is not None else n_keys - n_queries + rows.stop
        some = query[:, :, rows].flatten(1, 2)  # (key_heads, group x rows, dim)
        scores = torch.bmm(some, key[:, :end].transpose(1, 2)).float()
        scores = scores.unflatten(1, (group, -1))  # (key_heads, group, rows, end)
        if mask is None:
            n_rows = rows.stop - rows.start
            later = torch.ones(n_rows, n_rows, dtype=torch.bool, device=key.device).triu(1)
            scores[..., end - n_rows :].masked_fill_(later, -torch.inf)
        else:
            visible = mask[0, :, rows]
            if visible.shape[0] > 1:
                visible = visible.unflatten(0, (n_key_heads, group))
            scores = _masked(scores, visible)
        weights = torch.softmax(scores, dim=-1)
        sums[:, :end] += weights.sum((1, 2)) / group
        if see is not None:
            see(weights.mean((0, 1)), rows.start)
    return sums


def _masked(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    if visible.dtype == torch.bool:
        return scores.masked_fill_(~visible, -torch.inf)
    return scores + visible


def blocks_of(n_queries: int, scores_per_query: int) -> list[slice]:
    """Of queries, as many in each as their scores leave room for."""
    size = max(1, BLOCK_SCORES // scores_per_query)
    return [slice(start, min(start + size, n_queries)) for start in range(0, n_queries, size)]
