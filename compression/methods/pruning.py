"""Parts that are not stored: whole layers and KV heads, which are evicted, and small entries, which
are read as zero. Evictions token by token are in evictions.py."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.base import Compressor
from compression.methods.evictions import Eviction
from compression.methods.packing import pack, take_codes
from compression.parts import Words
from compression.shapes import CacheShape
from compression.stored import FLOATS, Tensors, taken
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV, in_16_bits


@dataclass(frozen=True)
class EvictedParts(Eviction):
    """Whole layers, and KV heads as (layer, head), by their numbers in the model."""

    name: ClassVar[str] = "evict"
    layers: tuple[int, ...] = ()
    heads: tuple[tuple[int, int], ...] = ()

    @property
    def by_layer(self) -> bool:
        return True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "heads", tuple(map(tuple, self.heads)))

    def keeps(self, cache: KVCache) -> list[torch.Tensor]:
        return [self._kept(layer) for layer in cache.layers]

    def _kept(self, layer: LayerKV) -> torch.Tensor:
        gone = {head for index, head in self.heads if index == layer.index}
        heads = [layer.index not in self.layers and h not in gone for h in range(layer.n_heads)]
        column = torch.tensor(heads, device=layer.keys.device)[:, None]
        return column.expand(-1, layer.n_tokens).contiguous()


@dataclass(frozen=True)
class ZeroedEntries(Compressor):
    """Entries below `percentage` % of the largest |entry| of the cache, keys and values each, read
    as zero: one bit for every entry, and 16 for each that stays."""

    name: ClassVar[str] = "zero_small"
    called: ClassVar[Words] = {"stays": "mask of entries", "entries": "kept entries"}
    percentage: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.percentage <= 100:
            raise UsageError(f"A threshold of {self.percentage:g} % was given", "0 to 100")

    def encode(self, cache: KVCache) -> Tensors:
        stored: Tensors = {}
        for kind in KINDS:
            peak = max(layer.tensor(kind).abs().amax().item() for layer in cache.layers)
            for i, layer in enumerate(cache.layers):
                x = layer.tensor(kind)
                stays = x.abs() >= peak * self.percentage / 100
                stored[f"{i}.{kind}.stays"] = pack(stays.byte(), 1)
                stored[f"{i}.{kind}.entries"] = in_16_bits(x[stays])
        return stored

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        layers = []
        for i, layer in enumerate(shape.layers):
            both = []
            for kind in KINDS:
                stays = take_codes(stored, f"{i}.{kind}.stays", 1, layer.sizes(kind)).bool()
                entries = taken(stored, f"{i}.{kind}.entries", FLOATS, int(stays.sum()))
                x = entries.new_zeros(layer.sizes(kind))
                x[stays] = entries
                both.append(x)
            layers.append(layer.filled(*both))
        return shape.filled(tuple(layers))
