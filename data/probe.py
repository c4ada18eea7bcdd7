"""The attention that every cached token receives, measured while the model runs.

The model's own function still computes the output, so the cache is bit for bit what it would be
without the probe; the weights are summed per key beside it. Only functions that return their
weights (eager ones) are run on blocks of queries, which may round the last bit otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from data.attention import AttentionCall, Output, wrapped_attention
from data.softmax_sums import See, blocks_of, softmax_sums
from data.sparse_index import goes_by_index
from data.watchers import TokenAttention, Watchers

RECENT_QUERIES = 32  # the last ones, whose attention is measured apart as well
BENDS_WEIGHTS = ("softcap", "s_aux", "position_bias")  # arguments that a plain softmax leaves out

# (kv_heads, tokens) over all queries, and over the last ones; None where nothing was seen
Received = tuple[torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True)
class _Sums:
    """What the attention calls on one slot of the cache have shown of each token of the text.

    weights: (kv_heads, tokens) over all queries, mean over a key's query heads. seen_by: (tokens,)
    queries that can see each key. recent and recently_seen_by: both of the last queries alone.
    watchers: who looks at each token most.
    """

    weights: torch.Tensor
    seen_by: torch.Tensor
    recent: torch.Tensor
    recently_seen_by: torch.Tensor
    watchers: Watchers

    @classmethod
    def none(cls, n_heads: int, n_tokens: int, device: torch.device) -> "_Sums":
        weights, recent = torch.zeros(2, n_heads, n_tokens, device=device)
        seen_by, recently_seen_by = torch.zeros(2, n_tokens, device=device)
        watchers = Watchers.none(n_tokens, device)
        return cls(weights, seen_by, recent, recently_seen_by, watchers)


@dataclass
class AttentionProbe:
    """Watches the passes that read one text of `n_tokens` tokens, one or several; recent_only: the
    last queries alone, which costs next to nothing."""

    n_tokens: int
    recent_only: bool = False
    _sums: dict[int, _Sums] = field(default_factory=dict)  # by slot
    _blind: set[int | None] = field(default_factory=set)  # slots not all of whose keys are known
    _queries: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # by slot
    _end: int = 0  # of the tokens in the pass that is watched

    @contextmanager
    def watching(
        self, model: torch.nn.Module, end: int | None = None
    ) -> Iterator["AttentionProbe"]:
        """For as long as this is entered, see every attention call of `model`, in a pass over
        tokens up to the `end` of the text or a place in it."""
        self._end = self.n_tokens if end is None else end
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
        return {layer: self._means(layer, held.shape[0]) for layer, held in keys.items()}

    def of_tokens(self, keys: dict[int, torch.Tensor]) -> TokenAttention | None:
        """The same from all queries, and who looks at each token, as one; None with recent_only."""
        measured = {}
        for layer, (received, _) in self.received(keys).items():
            seen = None if received is None else (received, self._sums[layer].watchers)
            measured[layer] = seen
        return TokenAttention.of(measured, self.n_tokens)

    def last_queries(self, slot: int) -> torch.Tensor | None:
        """(kv_heads, query heads, queries, dim): the last queries of the text that look at each KV
        head, scaled as scores are, after rotary embedding; of all layers that read these keys. With
        recent_only alone, and None where keys are made into others before they are looked at."""
        by_layer = self._queries.get(slot)
        return None if slot in self._blind or not by_layer else torch.cat(by_layer, dim=1)

    def _means(self, slot: int, n_heads: int) -> Received:
        sums = self._sums.get(slot)
        if sums is None or slot in self._blind or len(sums.weights) != n_heads:
            return None, None
        recent = sums.recent / sums.recently_seen_by.clamp(min=1)
        if self.recent_only:
            return None, recent
        return sums.weights / sums.seen_by.clamp(min=1), recent

    def _attend(self, call: AttentionCall) -> Output:
        """Stands in for an attention function."""
        if not self._is_of_tokens(call):
            self._blind.add(call.slot)
        if call.slot in {None, *self._blind} or _bends(call):
            return call.run()
        last = self._last(call)
        weights: torch.Tensor | None
        watch = None if self.recent_only else partial(self._watch, call)
        if call.name == "eager":  # returns its weights
            output, weights = _in_blocks(call, watch)
            recent = None if last is None else _in_blocks(last)[1]
        else:
            output = call.run()
            weights = None if self.recent_only else _softmax_sums(call, watch)
            recent = None if last is None else _softmax_sums(last)
        self._add(call, weights, last, recent)
        if self.recent_only and self._end == self.n_tokens:
            self._keep_queries(call)
        return output

    def _keep_queries(self, call: AttentionCall) -> None:
        assert call.slot is not None and call.stored is not None
        (n_heads, _), n_key_heads = call.stored, call.key.shape[1]
        if n_key_heads == n_heads:
            query = call.query[0, :, -RECENT_QUERIES:]
            of_heads = query.unflatten(0, (n_heads, -1)) * _scaling(call.options, query.shape[-1])
            self._queries.setdefault(call.slot, []).append(of_heads)

    def _is_of_tokens(self, call: AttentionCall) -> bool:
        """Whether it is known which tokens of the text the keys are of."""
        if call.slot is None or call.stored is None:
            return False
        n_heads, n_stored = call.stored
        n_key_heads, n_keys = call.key.shape[1:3]
        # Where a latent is cached, attention runs on more heads than are stored.
        return n_keys == n_stored <= self._end and n_key_heads % n_heads == 0

    def _last(self, call: AttentionCall) -> AttentionCall | None:
        """The same of those queries that are among the last of the text; None without any."""
        n_queries = call.query.shape[-2]
        n_last = min(n_queries, RECENT_QUERIES - (self.n_tokens - self._end))
        if n_last < 1:
            return None
        last, mask = slice(-n_last, None), call.mask
        if mask is not None:
            mask = mask[:, :, last]
        # of an eager function, which sees every key where it is given no mask
        some = call.query if call.name == "eager" and mask is None else call.query[:, :, last]
        return replace(call, query=some, mask=mask)

    def _sums_of(self, call: AttentionCall) -> _Sums:
        assert call.slot is not None and call.stored is not None
        if call.slot not in self._sums:
            n_heads, device = call.stored[0], call.key.device
            self._sums[call.slot] = _Sums.none(n_heads, self.n_tokens, device)
        return self._sums[call.slot]

    def _watch(self, call: AttentionCall, weights: torch.Tensor, first: int) -> None:
        """Queries and keys end where the sequence ends."""
        query, key = (self._end - x.shape[-2] for x in (call.query, call.key))
        self._sums_of(call).watchers.see(weights, query + first, key)

    def _add(
        self,
        call: AttentionCall,
        weights: torch.Tensor | None,
        last: AttentionCall | None,
        recent: torch.Tensor | None,
    ) -> None:
        sums = self._sums_of(call)
        n_heads, n_keys = len(sums.weights), call.key.shape[-2]
        there = slice(self._end - n_keys, self._end)  # keys end where the sequence ends
        if weights is not None:
            sums.weights[:, there] += weights.unflatten(0, (n_heads, -1)).mean(1)
            sums.seen_by[there] += _seen_by(call)
        if last is not None and recent is not None:
            sums.recent[:, there] += recent.unflatten(0, (n_heads, -1)).mean(1)
            sums.recently_seen_by[there] += _seen_by(last)


def _bends(call: AttentionCall) -> bool:
    """Whether the weights are other than a plain softmax gives, and are not returned."""
    bent = any(call.options.get(name) is not None for name in BENDS_WEIGHTS)
    return bent and call.name != "eager"


def _in_blocks(call: AttentionCall, see: See | None = None) -> tuple[Output, torch.Tensor]:
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
        blocks = blocks_of(n_queries, n_heads * n_keys)
    outputs, sums = [], torch.zeros(n_key_heads, n_keys, device=query.device)
    for rows in blocks:
        visible = mask if mask is None else mask[:, :, rows]
        output, weights = replace(call, query=query[:, :, rows], mask=visible).run()
        assert weights is not None, "eager attention returns its weights"
        of_keys = weights[0, :, :, :n_keys].float()
        per_head = of_keys.sum(-2)  # (heads, keys)
        sums += per_head.unflatten(0, (n_key_heads, -1)).mean(1)
        if see is not None:
            see(of_keys.mean(0), rows.start or 0)
        outputs.append(output)
    return (torch.cat(outputs, dim=1), None), sums


def _softmax_sums(call: AttentionCall, see: See | None = None) -> torch.Tensor:
    scaling = _scaling(call.options, call.query.shape[-1])
    return softmax_sums(call.query[0], call.key[0], call.mask, scaling, see)


def _scaling(options: dict[str, Any], dim: int) -> float:
    scaling: float | None = options.get("scaling")
    return dim**-0.5 if scaling is None else scaling


def _seen_by(call: AttentionCall) -> torch.Tensor:
    """How many queries can see each key, (keys,); the mean over heads where they differ."""
    mask, n_queries, n_keys = call.mask, call.query.shape[-2], call.key.shape[-2]
    if mask is None or goes_by_index(call.module):
        # What an index has not chosen could be seen, and got nothing.
        places = torch.arange(n_keys, device=call.key.device)
        return (n_keys - places).clamp(max=n_queries).float()
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return visible[0, :, :, :n_keys].sum(-2).float().mean(0)
