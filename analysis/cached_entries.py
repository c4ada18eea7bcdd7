"""The cache itself: what stands in one layer and KV head, tokens by dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import pad

from analysis.blocks import block, slices, tokens_at_once
from config import UsageError
from data.cache import KVCache, LayerKV

MOST_ROWS = 512  # of tokens; of a longer text, as many groups of neighbours
SHOWN_NUMBERS = 12  # layers of a cache that a message names one by one


@dataclass(frozen=True)
class Shown:
    """Which part of a cache is shown. layer: of the model; where it is not given the middle one of
    those that hold keys and values. head: the first where it is not given."""

    layer: int | None = None
    head: int | None = None

    def of(self, cache: KVCache) -> tuple[LayerKV, int]:
        """The layer and the head. Raises UsageError where the cache has no such."""
        layer = self._layer(cache)
        head = self.head or 0
        if head >= layer.n_heads:
            raise UsageError(
                f"`head` is {head}, and layer {layer.index} has {_heads(layer.n_heads)}",
                f"it takes {_numbers(range(layer.n_heads))}",
            )
        return layer, head

    def _layer(self, cache: KVCache) -> LayerKV:
        if self.layer is None:
            return cache.layers[cache.n_layers // 2]
        by_index = {layer.index: layer for layer in cache.layers}
        if self.layer not in by_index:
            raise UsageError(
                f"`layer` is {self.layer}, and the cache has no keys and values of such a layer",
                f"it takes {_numbers(list(by_index))}",
            )
        return by_index[self.layer]


USUAL = Shown()


def _heads(n: int) -> str:
    return "one KV head" if n == 1 else f"{n} KV heads"


def _numbers(numbers: Sequence[int]) -> str:
    """0; 0 to 29; 0, 2 or 5."""
    if len(numbers) == 1:
        return f"{numbers[0]}"
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    if len(numbers) > SHOWN_NUMBERS:
        return f"{len(numbers)} numbers between {numbers[0]} and {numbers[-1]}"
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"


def cached_entries(cache: KVCache, tokens: Sequence[str], shown: Shown) -> dict[str, pd.DataFrame]:
    """By the name of their picture, of one layer and head: layer, head, kind, position, token,
    tokens, dim_0, dim_1 and so on; of keys also rotary. A column for each dimension, since a row
    for each entry would take ten times as much.

    A row stands for `tokens` neighbours, of which `position` and `token` are the first: its entries
    are those of them which are farthest from 0, empty where all were evicted.
    kind: key (as stored), unrotated_key (as before rotary embedding) or value. rotary: of the keys,
    whether it was `undone`, the model has `none`, or it is `not known`.
    """
    layer, head = shown.of(cache)
    state = "not known"
    if layer.rotary is not None:
        state = "undone" if layer.rotary.frequencies else "none"
    kinds = ("key", "unrotated_key") if state == "undone" else ("key",)
    keys = pd.concat([_entries(layer, head, kind, tokens) for kind in kinds], ignore_index=True)
    keys.insert(3, "rotary", state)
    return {
        "cache/keys": keys,
        "cache/values": _entries(layer, head, "value", tokens),
    }


def _entries(layer: LayerKV, head: int, kind: str, tokens: Sequence[str]) -> pd.DataFrame:
    size = -(-layer.n_tokens // MOST_ROWS)
    entries = _farthest(layer, head, kind, size).numpy()
    positions = layer.positions[::size].tolist()
    counts = np.full(len(entries), size)
    counts[-1] = layer.n_tokens - (len(entries) - 1) * size
    told = {
        "layer": layer.index,
        "head": head,
        "kind": kind,
        "position": positions,
        "token": [tokens[i] for i in positions],
        "tokens": counts,
    }
    dims = [f"dim_{i}" for i in range(entries.shape[1])]
    return pd.concat([pd.DataFrame(told), pd.DataFrame(entries, columns=dims)], axis=1)


def _farthest(layer: LayerKV, head: int, kind: str, size: int) -> torch.Tensor:
    """(rows, dim) in float32: of every `size` tokens of a head the entry farthest from 0."""
    x = layer.tensor("value" if kind == "value" else "key")[head : head + 1]  # (1, tokens, dim)
    n_tokens, dim = x.shape[1:]
    found = torch.empty(-(-n_tokens // size), dim)
    for rows in slices(len(found), max(1, tokens_at_once(x) // size)):
        places = slice(rows.start * size, min(rows.stop * size, n_tokens))
        part = block(x, places).float()
        if kind == "unrotated_key" and layer.rotary is not None:
            part = layer.rotary.unrotated(part, layer.positions[places])
        part = part[0].cpu()
        if layer.keep is not None:
            part = part.masked_fill(~layer.keep[head, places, None].cpu(), torch.nan)
        found[rows] = _of_groups(part, size)
    return found


def _of_groups(x: torch.Tensor, size: int) -> torch.Tensor:
    """(tokens, dim) -> (groups, dim), NaN where all of a group are."""
    whole = pad(x, (0, 0, 0, -len(x) % size), value=torch.nan)
    groups = whole.unflatten(0, (-1, size))  # (groups, size, dim)
    farthest = groups.abs().nan_to_num(-1, posinf=torch.inf).argmax(1, keepdim=True)
    found: torch.Tensor = groups.gather(1, farthest)[:, 0]
    return found
