"""The attention that every cached token receives, measured while the model runs.

The model's own function still computes the output, so the cache is bit for bit what it would be
without the probe; the weights are summed per key beside it. Only functions that return their
weights (eager ones) are run on blocks of queries, which may round the last bit otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from data.attention import AttentionCall, Output, wrapped_attention
from data.sparse_index import goes_by_index

BLOCK_SCORES = 2**20  # attention scores held at a time (4 MB): never tokens x tokens
RECENT_QUERIES = 32  # the last ones, whose attention is measured apart as well
BENDS_WEIGHTS = ("softcap", "s_aux", "position_bias")  # arguments that a plain softmax leaves out

# (kv_heads, tokens) over all queries, and over the last ones; None where nothing was seen
Received = tuple[torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True)
class _Call:
    """What one call of the attention function showed."""

    slot: int | None  # of the cache, where its keys stand
    weight_sums: torch.Tensor  # (key_heads, tokens) over all queries, mean over a key's query heads
    seen_by: torch.Tensor  # (tokens,) queries that can see each key
    recent_sums: torch.Tensor  # both of the last queries alone
    recent_seen_by: torch.Tensor


@dataclass
class AttentionProbe:
    """Watches one prefill of `n_tokens` tokens; recent_only: its last queries alone, which costs
    next to nothing."""

    n_tokens: int
    recent_only: bool = False
    _calls: list[_Call] = field(default_factory=list)

    @contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator["AttentionProbe"]:
        """For as long as this is entered, see every attention call of `model`."""
        with wrapped_attention(model, self._attend):
            yield self

    def received(self, keys: dict[int, torch.Tensor]) -> dict[int, Received]:
        """Mean attention weight that each token's key received from the queries that can see it,
        and from the last `RECENT_QUERIES` of them.

        keys: layer index -> cached keys (kv_heads, tokens, dim).
        Returns layer index -> two of (kv_heads, n_tokens), None where nothing was seen, the first
        also with recent_only. Calls of layers that read another layer's cache count for the layer
        that holds it.
        """
        totals: dict[int, list[torch.Tensor]] = {}
        for call in self._calls:
            layer = call.slot
            if layer not in keys or call.weight_sums.shape[0] % keys[layer].shape[0]:
                continue
            n_heads = keys[layer].shape[0]
            # Where a latent is cached, attention runs on more heads than are stored.
            sums, recent = (
                part.unflatten(0, (n_heads, -1)).mean(1)  # (kv_heads, tokens)
                for part in (call.weight_sums, call.recent_sums)
            )
            parts = [sums, call.seen_by, recent, call.recent_seen_by]
            if layer in totals:
                parts = [a + b for a, b in zip(totals[layer], parts, strict=True)]
            totals[layer] = parts
        unseen: Received = (None, None)
        means = {layer: _means(*totals[layer]) if layer in totals else unseen for layer in keys}
        if self.recent_only:
            means = {layer: (None, recent) for layer, (_, recent) in means.items()}
        return means

    def _attend(self, call: AttentionCall) -> Output:
        """Stands in for an attention function."""
        query, key, mask = call.query, call.key, call.mask
        if key.shape[-2] > self.n_tokens:  # among them entries that are no tokens
            return call.run()
        last = slice(-RECENT_QUERIES, None)
        few = mask if mask is None else mask[:, :, last]
        if call.name == "eager":  # returns its weights
            output, sums = _in_blocks(call)
            some = query[:, :, last] if few is not None and few.shape[2] > 1 else query
            _, recent = _in_blocks(replace(call, query=some, mask=few))
        else:
            output = call.run()
            if any(call.options.get(name) is not None for name in BENDS_WEIGHTS):
                return output
            scaling = call.options.get("scaling")
            recent = softmax_sums(query[0][:, last], key[0], few, scaling)
            if self.recent_only:
                sums = torch.zeros_like(recent)
            else:
                sums = softmax_sums(query[0], key[0], mask, scaling)
        n_keys = key.shape[-2]
        pad = (self.n_tokens - n_keys, 0)  # keys end where the sequence ends
        if goes_by_index(call.module):  # what it has not chosen could be seen, and got nothing
            mask = few = None
        seen = _seen_by(mask, query.shape[-2], n_keys, key.device)
        n_last = min(RECENT_QUERIES, query.shape[-2])
        seen_lately = _seen_by(few, n_last, n_keys, key.device)
        self._calls.append(
            _Call(
                call.slot,
                *(torch.nn.functional.pad(x, pad) for x in (sums, seen, recent, seen_lately)),
            )
        )
        return output


def _means(
    sums: torch.Tensor, seen: torch.Tensor, recent: torch.Tensor, seen_lately: torch.Tensor
) -> Received:
    """(kv_heads, tokens) means of both sums."""
    return sums / seen.clamp(min=1), recent / seen_lately.clamp(min=1)


def _blocks(n_queries: int, scores_per_query: int) -> list[slice]:
    size = max(1, BLOCK_SCORES // scores_per_query)
    return [slice(start, min(start + size, n_queries)) for start in range(0, n_queries, size)]


def _in_blocks(call: AttentionCall) -> tuple[Output, torch.Tensor]:
    """An attention function that returns its weights, run on blocks of queries.

    Rows of attention do not know of each other, so the output is the same and the weights of a
    long text are never held at once. Returns its output and the weight sums (key_heads, keys).
    """
    query, mask = call.query, call.mask
    n_heads, n_queries = query.shape[1:3]
    n_key_heads, n_keys = call.key.shape[1:3]
    blocks = [slice(None)]
    is_biased = call.options.get("position_bias") is not None
    if mask is not None and mask.shape[-2] == n_queries and not is_biased:
        blocks = _blocks(n_queries, n_heads * n_keys)
    outputs, sums = [], torch.zeros(n_key_heads, n_keys, device=query.device)
    for rows in blocks:
        visible = mask if mask is None else mask[:, :, rows]
        output, weights = replace(call, query=query[:, :, rows], mask=visible).run()
        assert weights is not None, "eager attention returns its weights"
        per_head = weights[0, :, :, :n_keys].float().sum(-2)  # (heads, keys)
        sums += per_head.unflatten(0, (n_key_heads, -1)).mean(1)
        outputs.append(output)
    return (torch.cat(outputs, dim=1), None), sums


def softmax_sums(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention weights summed over queries, without ever holding (heads, queries, keys).

    query: (heads, queries, dim). key: (key_heads, keys, dim), heads a multiple of key_heads.
    mask: (1, 1 or heads, queries, keys), True or 0 where a query sees a key; None is causal, the
        last query being at the last key.
    Returns (key_heads, keys), the mean over the query heads of each key head.
    """
    n_heads, n_queries, dim = query.shape
    n_key_heads, n_keys = key.shape[:2]
    query = query.unflatten(0, (n_key_heads, -1)) * (dim**-0.5 if scaling is None else scaling)
    group = n_heads // n_key_heads
    sums = torch.zeros(n_key_heads, n_keys, device=query.device)
    for rows in _blocks(n_queries, n_heads * n_keys):
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
    return sums


def _masked(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    if visible.dtype == torch.bool:
        return scores.masked_fill_(~visible, -torch.inf)
    return scores + visible


def _seen_by(
    mask: torch.Tensor | None, n_queries: int, n_keys: int, device: torch.device
) -> torch.Tensor:
    """How many queries can see each key, (keys,); the mean over heads where they differ."""
    if mask is None:
        places = torch.arange(n_keys, device=device)
        return (n_keys - places).clamp(max=n_queries).float()
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return visible[0, :, :, :n_keys].float().sum(-2).mean(0)
