"""Entries that are not stored: evicted tokens, heads and layers, and small entries read as zero.

An evicted entry is hidden from attention (its `keep` mask is False); zeroing its key would not do,
since a zeroed key still takes its share of the softmax.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.base import CacheShape, Compressor, Tensors
from compression.bits import packed, unpacked
from config import IMPORTANCE_WEIGHTS, TOKEN_SCORES, UsageError
from data.cache import KINDS, KVCache, LayerKV, in_16_bits


class Eviction(Compressor):
    """Stores the keys and values of the entries that stay, and one bit per head and token."""

    @abstractmethod
    def kept(self, layer: LayerKV) -> torch.Tensor:
        """(kv_heads, tokens), True where an entry stays."""

    def encode(self, cache: KVCache) -> Tensors:
        stored: Tensors = {}
        for i, layer in enumerate(cache.layers):
            keep = self.kept(layer)
            stored[f"{i}.keep"] = packed(keep)
            for kind in KINDS:
                stored[f"{i}.{kind}"] = layer.tensor(kind)[keep]  # (entries kept, dim)
        return stored

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        layers = []
        for i, layer in enumerate(shape.layers):
            keep = unpacked(stored[f"{i}.keep"], (layer.n_heads, layer.n_tokens))
            both = []
            for kind in KINDS:
                entries = stored[f"{i}.{kind}"]
                x = entries.new_zeros(layer.n_heads, layer.n_tokens, layer.dim(kind))
                x[keep] = entries
                both.append(x)
            layers.append(layer.filled(*both, keep=None if keep.all() else keep))
        return shape.filled(tuple(layers))


@dataclass(frozen=True)
class EvictedParts(Eviction):
    """Whole layers, and KV heads as (layer, head), by their numbers in the model."""

    name: ClassVar[str] = "evict"
    layers: tuple[int, ...] = ()
    heads: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "heads", tuple(map(tuple, self.heads)))

    def kept(self, layer: LayerKV) -> torch.Tensor:
        gone = {head for index, head in self.heads if index == layer.index}
        heads = [layer.index not in self.layers and h not in gone for h in range(layer.n_heads)]
        column = torch.tensor(heads, device=layer.keys.device)[:, None]
        return column.expand(-1, layer.n_tokens).contiguous()


@dataclass(frozen=True)
class EvictedTokens(Eviction):
    """The tokens of each KV head with the highest score stay, the first ones in any case.

    keep: share of the tokens. score: `recent` (StreamingLLM, arXiv 2309.17453); `key_norm`, low
    norms first (arXiv 2406.11430); `attention` received so far (H2O, arXiv 2306.14048);
    `importance`, the weighted sum of the token pictures; `random`, with this seed.
    """

    name: ClassVar[str] = "evict_tokens"
    keep: float = 0.5
    score: str = "recent"
    sink_tokens: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UsageError(f"--keep_tokens is {self.keep:g}: a share above 0, at most 1.")
        if self.score not in (*TOKEN_SCORES, "importance"):
            raise UsageError(f"--token_score is {self.score}: one of {', '.join(TOKEN_SCORES)}.")

    def kept(self, layer: LayerKV) -> torch.Tensor:
        n_kept = max(1, round(self.keep * layer.n_tokens))
        score = self._scores(layer).clone()  # (kv_heads, tokens)
        score[:, layer.positions < self.sink_tokens] = torch.inf
        keep = torch.zeros_like(score, dtype=torch.bool)
        return keep.scatter(1, score.topk(n_kept, dim=1).indices, True)

    def _scores(self, layer: LayerKV) -> torch.Tensor:
        if self.score == "recent":
            places = torch.arange(layer.n_tokens, device=layer.keys.device)
            return places.float().expand(layer.n_heads, -1)
        if self.score == "key_norm":
            return -layer.keys.float().norm(dim=-1)
        if self.score == "random":
            generator = torch.Generator().manual_seed(10_000 * self.seed + layer.index)
            shape = (layer.n_heads, layer.n_tokens)
            return torch.rand(shape, generator=generator).to(layer.keys.device)
        if layer.attention is None:
            raise UsageError(
                f"Layer {layer.index} does not show its attention: take a --token_score that does "
                "without, recent or key_norm."
            )
        return layer.attention if self.score == "attention" else self._importance(layer)

    def _importance(self, layer: LayerKV) -> torch.Tensor:
        norms = [layer.tensor(kind).float().norm(dim=-1) for kind in KINDS]  # (kv_heads, tokens)
        terms = (*norms, layer.attention * norms[1])
        shares = (term / term.amax().clamp(min=1e-30) for term in terms)
        weights = (IMPORTANCE_WEIGHTS[term] for term in ("key", "value", "energy"))
        return sum(weight * share for weight, share in zip(weights, shares, strict=True))


@dataclass(frozen=True)
class ZeroedEntries(Compressor):
    """Entries below `percentage` % of the largest |entry| of the cache, keys and values each, read
    as zero: one bit for every entry, and 16 for each that stays."""

    name: ClassVar[str] = "zero_small"
    percentage: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.percentage <= 100:
            raise UsageError(f"A threshold of {self.percentage:g} % was given: 0 to 100.")

    def encode(self, cache: KVCache) -> Tensors:
        stored: Tensors = {}
        for kind in KINDS:
            peak = max(layer.tensor(kind).abs().amax().item() for layer in cache.layers)
            for i, layer in enumerate(cache.layers):
                x = layer.tensor(kind)
                stays = x.abs() >= peak * self.percentage / 100
                stored[f"{i}.{kind}.stays"] = packed(stays)
                stored[f"{i}.{kind}.entries"] = in_16_bits(x[stays])
        return stored

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        layers = []
        for i, layer in enumerate(shape.layers):
            both = []
            for kind in KINDS:
                size = (layer.n_heads, layer.n_tokens, layer.dim(kind))
                stays = unpacked(stored[f"{i}.{kind}.stays"], size)
                entries = stored[f"{i}.{kind}.entries"]
                x = entries.new_zeros(size)
                x[stays] = entries
                both.append(x)
            layers.append(layer.filled(*both))
        return shape.filled(tuple(layers))
