"""What a method stores of a cache and how far what it restores is off: bytes and errors, which are
the same whoever looks at them and take no model."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from compression.base import Compressed, Compressor
from data.cache import BYTES_PER_ENTRY, KINDS, KVCache
from data.clock import now

COSTS = (
    "original_bytes",
    "stored_bytes",
    "per_model_bytes",
    "bits_per_value",
    "ratio",
    "key_error",
    "value_error",
    "compress_s",
    "restore_s",
)
PLACE = re.compile(r"(?<![^.])\d+(?![^.])")  # a number between dots
BLOCK = 2**20  # entries that are compared at a time, in float64


@dataclass(frozen=True)
class Tried:
    """A cache in 16 bits, or some of its layers, and what came back of it through a method.

    compressed: what was stored without its content, so that it takes no memory. bits_by_token: see
    `Compressed`, where that was asked for.
    """

    cache: KVCache
    compressed: Compressed
    restored: KVCache
    compress_s: float
    restore_s: float
    bits_by_token: torch.Tensor | None = None


def tried(method: Compressor, cache: KVCache, by_token: bool = False) -> Tried:
    device = cache.layers[-1].keys.device
    began = now(device)
    compressed = method.compress(cache)
    compressed_at = now(device)
    restored = compressed.restore()
    restore_s = now(device) - compressed_at
    served = cache.in_16_bits()
    empty = {name: tensor.to("meta") for name, tensor in compressed.stored.items()}
    outline = replace(compressed, stored=empty)
    bits = compressed.bits_by_token if by_token else None
    return Tried(served, outline, restored, compressed_at - began, restore_s, bits)


def tried_in_parts(method: Compressor, cache: KVCache) -> Iterator[Tried]:
    """A cache through a method layer after layer, so that no more than one is in memory; all at
    once where the method does not treat layers apart."""
    if not method.by_layer:
        yield tried(method, cache)
        return
    for layer in cache.layers:
        yield tried(method, replace(cache, layers=(layer,)))


def costs(method: Compressor, tries: Iterable[Tried]) -> dict[str, Any]:
    """COSTS of a method, from all the parts of one cache that went through it."""
    entries, compress_s, restore_s = 0, 0.0, 0.0
    errors, whole = [], None
    for each in tries:
        entries += each.cache.n_entries
        whole = each.compressed if whole is None else joined(whole, each.compressed)
        compress_s += each.compress_s
        restore_s += each.restore_s
        errors.append(relative_errors(each.cache, each.restored))
        del each  # before the next one is made
    if whole is None:
        raise ValueError("nothing went through the method")
    stored = whole.stored_nbytes
    off = relative(pd.concat(errors).groupby("kind").sum())
    return {
        "original_bytes": BYTES_PER_ENTRY * entries,
        "stored_bytes": stored,
        "per_model_bytes": method.per_model_nbytes,
        "bits_per_value": 8 * stored / entries,
        "ratio": BYTES_PER_ENTRY * entries / stored,
        "key_error": off["key"],
        "value_error": off["value"],
        "compress_s": compress_s,
        "restore_s": restore_s,
    }


def joined(some: Compressed, more: Compressed) -> Compressed:
    """Outlines of some layers of a cache and of those after them, as that of all. The first number
    in the name of a tensor is the place of its layer."""
    before = len(some.shape.layers)

    def placed(name: str) -> str:
        return PLACE.sub(lambda place: str(before + int(place[0])), name, count=1)

    added = {placed(name): tensor for name, tensor in more.stored.items()}
    layers = some.shape.layers + more.shape.layers
    return replace(some, stored=some.stored | added, shape=replace(some.shape, layers=layers))


def costs_on(cache: KVCache, method: Compressor) -> dict[str, Any]:
    """The row of a method on one cache: its settings, and COSTS."""
    named = {"method": method.name, "settings": method.words(), "context_tokens": cache.n_tokens}
    return named | costs(method, tried_in_parts(method, cache))


def relative_errors(cache: KVCache, restored: KVCache) -> pd.DataFrame:
    """layer, kind, relative_error, and the squares that the error of several layers is made of.

    ||X - X^|| / ||X||, Frobenius; an evicted entry counts as zero.
    """
    rows = []
    for layer, back in zip(cache.layers, restored.layers, strict=True):
        for kind in KINDS:
            squares = _squares(layer.tensor(kind), back.tensor(kind), back.keep)
            rows.append({"layer": layer.index, "kind": kind, **squares})
    table = pd.DataFrame(rows)
    return table.assign(relative_error=relative(table))


def _squares(x: torch.Tensor, y: torch.Tensor, keep: torch.Tensor | None) -> dict[str, float]:
    """Sums of squares of x (heads, tokens, dim) and of what y is off, in float64."""
    sums = torch.zeros(2, dtype=torch.float64, device=x.device)
    tokens = max(1, BLOCK // (x.shape[0] * x.shape[2]))
    for start in range(0, x.shape[1], tokens):
        block = slice(start, start + tokens)
        a, b = x[:, block].double(), y[:, block].double()
        if keep is not None:
            b = b * keep[:, block, None]
        sums += torch.stack([(a - b).square().sum(), a.square().sum()])
    error, norm = sums.tolist()
    return {"squared_error": error, "squared_norm": norm}


def relative(squares: pd.DataFrame) -> pd.Series:
    """||X - X^|| / ||X||; 0 where nothing is lost, of zeros too."""
    ratio = squares["squared_error"] / squares["squared_norm"]
    return ratio.where(squares["squared_error"] > 0, 0.0) ** 0.5
