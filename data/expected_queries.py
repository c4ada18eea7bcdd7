"""The query that is to be expected of each head: what tells, of keys alone, which of them will be
looked at (Expected Attention, arXiv 2510.00636).
"""

from collections.abc import Sequence

import torch

from data.cache import KVCache
from data.rotary import Rotary

DISTANCES = 512  # from a key to a query, over which the turn between them is averaged


def expected_queries(
    cache: KVCache, last_queries: Sequence[torch.Tensor | None]
) -> dict[int, torch.Tensor]:
    """By place of the layer in the cache (kv_heads, query heads, key_dim) float32: the mean of the
    last queries as they would stand 1 to DISTANCES tokens after a key, to be multiplied with keys
    before rotary embedding. Not of layers where those or the queries are not known.

    last_queries: of each layer (kv_heads, query heads, queries, key_dim), after rotary embedding.
    """
    expected = {}
    for i, (layer, queries) in enumerate(zip(cache.layers, last_queries, strict=True)):
        if queries is None or layer.rotary is None or queries.shape[-1] != layer.keys.shape[2]:
            continue
        n_queries, flat = queries.shape[2], queries.float().flatten(0, 1)
        places = torch.arange(cache.n_tokens - n_queries, cache.n_tokens)
        mean = layer.rotary.unrotated(flat, places).mean(1)
        expected[i] = _ahead(mean, layer.rotary).unflatten(0, queries.shape[:2])
    return expected


def _ahead(queries: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """(heads, dim) turned by each distance, the mean of that. What the model scales its keys by
    after their rotation is in it too."""
    ahead = queries[:, None].expand(-1, DISTANCES, -1)
    mean = rotary.rotated(ahead, torch.arange(1, DISTANCES + 1)).mean(1, keepdim=True)
    return rotary.rotated(mean, torch.zeros(1))[:, 0]
