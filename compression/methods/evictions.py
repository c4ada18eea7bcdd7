"""Evictions: a method is the score by which tokens stay.

An evicted entry is not stored, and hidden from attention (its `keep` mask is False): zeroing its
key would not do, since a zeroed key still takes its share of the softmax. All of them look at the
whole text once, after it was read: methods that evict while they decode (H2O, KeyDiff) are so given
more to choose from than they have there.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch

import config
from analysis.tokens import TERMS, importance
from compression.base import Compressor
from compression.methods.packing import pack, take_codes
from compression.parts import Words
from compression.shapes import CacheShape
from compression.stored import FLOATS, Tensors, shared_out, taken
from config import UsageError
from data.cache import BYTES_PER_ENTRY, KINDS, KVCache, LayerKV

POOLED = 7  # neighbours whose largest score a token gets, as in SnapKV


class Eviction(Compressor):
    """Stores the keys and values of the entries that stay, and one bit per head and token."""

    called: ClassVar[Words] = {"": "kept tokens", "keep": "mask of tokens"}

    @abstractmethod
    def keeps(self, cache: KVCache) -> list[torch.Tensor]:
        """Of each layer (kv_heads, tokens), True where an entry stays."""

    def encode(self, cache: KVCache) -> Tensors:
        stored: Tensors = {}
        for i, (layer, keep) in enumerate(zip(cache.layers, self.keeps(cache), strict=True)):
            stored[f"{i}.keep"] = pack(keep.byte(), 1)
            for kind in KINDS:
                stored[f"{i}.{kind}"] = layer.tensor(kind)[keep]  # (entries kept, dim)
        return stored

    def bits_by_token(self, stored: Tensors, shape: CacheShape) -> torch.Tensor:
        """16 for each entry that stays, and the bit of each token in each mask."""
        bits = torch.zeros(len(shape.token_ids), dtype=torch.float64)
        for layer, keep in zip(shape.layers, masks(dict(stored), shape), strict=True):
            of_kept = 8 * BYTES_PER_ENTRY * (layer.key_dim + layer.value_dim)
            bits[layer.positions] += layer.n_heads + of_kept * keep.sum(0).cpu()
        return shared_out(bits, stored)

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        layers = []
        for i, (layer, keep) in enumerate(zip(shape.layers, masks(stored, shape), strict=True)):
            both = []
            for kind in KINDS:
                sizes = (int(keep.sum()), layer.dim(kind))
                entries = taken(stored, f"{i}.{kind}", FLOATS, *sizes)
                x = entries.new_zeros(layer.sizes(kind))
                x[keep] = entries
                both.append(x)
            layers.append(layer.filled(both[0], both[1], None if keep.all() else keep))
        return shape.filled(tuple(layers))


@dataclass(frozen=True)
class TokenEviction(Eviction):
    """The tokens of each KV head with the highest scores stay.

    keep: share of the tokens. sink_tokens, recent_tokens: the first ones of the text and the most
    recent ones, which stay in any case; where not all of them can, the first ones go before.
    """

    keep: float = 0.5
    sink_tokens: int = 4
    recent_tokens: int = 0

    @property
    def by_layer(self) -> bool:
        return True

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UsageError(f"`keep` is {self.keep:g}", "it takes a share above 0, at most 1")
        for name in ("sink_tokens", "recent_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"`{name}` is {getattr(self, name)}", "it takes 0 or more tokens")

    @abstractmethod
    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        """Of each layer (kv_heads, tokens), higher for what should stay."""

    def n_recent(self, n_kept: int) -> int:
        """How many of the kept tokens are the most recent ones."""
        return self.recent_tokens

    def keeps(self, cache: KVCache) -> list[torch.Tensor]:
        both = zip(cache.layers, self.scores(cache), strict=True)
        return [self._kept(layer, scores) for layer, scores in both]

    def _kept(self, layer: LayerKV, scores: torch.Tensor) -> torch.Tensor:
        n = layer.n_tokens
        n_kept = max(1, round(self.keep * n))
        places = torch.arange(n, device=scores.device)
        # Ranks have no ties; of equal scores the more recent token stays.
        order = scores.argsort(dim=1, stable=True).argsort(1)
        order = torch.where(places >= n - self.n_recent(n_kept), n + places, order)
        first = layer.positions.to(places.device) < self.sink_tokens
        order = torch.where(first, 3 * n - places, order)
        keep = torch.zeros_like(scores, dtype=torch.bool)
        return keep.scatter(1, order.topk(n_kept, dim=1).indices, True)


@dataclass(frozen=True)
class Recent(TokenEviction):
    """The most recent tokens stay, and the first (Xiao et al., StreamingLLM, arXiv 2309.17453)."""

    name: ClassVar[str] = "recent"

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        return [
            torch.arange(layer.n_tokens, device=layer.keys.device).expand(layer.n_heads, -1)
            for layer in cache.layers
        ]


@dataclass(frozen=True)
class KeyNorm(TokenEviction):
    """Tokens stay whose keys have the lowest norms (Devoto et al., arXiv 2406.11430)."""

    name: ClassVar[str] = "key_norm"

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        return [-layer.keys.float().norm(dim=-1) for layer in cache.layers]


@dataclass(frozen=True)
class RandomTokens(TokenEviction):
    """Whichever tokens stay: the control that a score has to beat."""

    name: ClassVar[str] = "random"
    seed: int = 0

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        return [self._drawn(layer) for layer in cache.layers]

    def _drawn(self, layer: LayerKV) -> torch.Tensor:
        generator = torch.Generator().manual_seed(10_000 * self.seed + layer.index)
        shape = (layer.n_heads, layer.n_tokens)
        return torch.rand(shape, generator=generator).to(layer.keys.device)


@dataclass(frozen=True)
class Attention(TokenEviction):
    """Tokens stay that receive the most attention, mean over the queries that can see them."""

    name: ClassVar[str] = "attention"

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        return [_measured(layer, "attention") for layer in cache.layers]


@dataclass(frozen=True)
class Importance(TokenEviction):
    """The most important tokens of the text stay, the same in all layers and heads: by the score
    that the token pictures show."""

    name: ClassVar[str] = "importance"
    # Of the terms of the score: key norm, value norm, attention energy
    weights: tuple[float, ...] = field(
        default_factory=lambda: tuple(config.IMPORTANCE_WEIGHTS[term] for term in TERMS)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", tuple(self.weights))  # a list where read from a file

    @property
    def by_layer(self) -> bool:
        return False  # the score is a mean over layers

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        for layer in cache.layers:
            _measured(layer, "attention")
        weights = dict(zip(TERMS, self.weights, strict=True))
        positions, score = importance(cache, weights)
        return [
            score[torch.searchsorted(positions, layer.positions.cpu())]
            .to(layer.keys.device)
            .expand(layer.n_heads, -1)
            for layer in cache.layers
        ]


@dataclass(frozen=True)
class HeavyHitters(TokenEviction):
    """Half of the kept tokens are the most recent ones, half those that received the most attention
    in all, summed over the queries (Zhang et al., H2O, arXiv 2306.14048).

    recent_tokens: at least so many of the most recent ones.
    """

    name: ClassVar[str] = "heavy_hitter"

    def n_recent(self, n_kept: int) -> int:
        return max(n_kept // 2, self.recent_tokens)

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        return [self._received(layer) for layer in cache.layers]

    def _received(self, layer: LayerKV) -> torch.Tensor:
        mean = _measured(layer, "attention")
        # What is still cached was seen by every query since: a window forgets what is not.
        seen_by = layer.positions[-1] + 1 - layer.positions
        return mean * seen_by.to(mean.device)


@dataclass(frozen=True)
class SnapKV(TokenEviction):
    """Tokens stay that the last queries of the text look at, or that stand near such ones: their
    mean attention, of which each token gets the largest among `POOLED` neighbours (Li et al.,
    SnapKV, arXiv 2404.14469). The last queries are those of `LayerKV.recent_attention`;
    recent_tokens: as many as these, the paper's window, which stays."""

    name: ClassVar[str] = "snapkv"
    recent_tokens: int = 32

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        return [self._looked_at(layer) for layer in cache.layers]

    def _looked_at(self, layer: LayerKV) -> torch.Tensor:
        seen = _measured(layer, "recent_attention").float()
        # What the window gives to itself must not lift its neighbours.
        places = torch.arange(layer.n_tokens, device=seen.device)
        seen = seen * (places < layer.n_tokens - self.recent_tokens)
        return torch.nn.functional.max_pool1d(seen, POOLED, 1, POOLED // 2)


@dataclass(frozen=True)
class KeyDiff(TokenEviction):
    """Tokens stay whose keys are the least like the others': the lowest cosine with the mean of the
    normalised keys of their head (Park et al., KeyDiff, arXiv 2504.15364)."""

    name: ClassVar[str] = "key_diff"
    recent_tokens: int = 32

    def scores(self, cache: KVCache) -> list[torch.Tensor]:
        return [self._difference(layer.keys) for layer in cache.layers]

    def _difference(self, keys: torch.Tensor) -> torch.Tensor:
        unit = torch.nn.functional.normalize(keys.float(), dim=-1)
        return -torch.nn.functional.cosine_similarity(unit, unit.mean(1, keepdim=True), dim=-1)


def masks(stored: Tensors, shape: CacheShape) -> list[torch.Tensor]:
    """Takes out of each layer (kv_heads, tokens), True where an entry stays."""
    return [
        take_codes(stored, f"{i}.keep", 1, (layer.n_heads, layer.n_tokens)).bool()
        for i, layer in enumerate(shape.layers)
    ]


EVICTIONS: tuple[type[TokenEviction], ...] = (
    Recent,
    KeyNorm,
    RandomTokens,
    Attention,
    Importance,
    HeavyHitters,
    SnapKV,
    KeyDiff,
)


def _measured(layer: LayerKV, name: str) -> torch.Tensor:
    """(kv_heads, tokens) attention that was measured while the model ran."""
    attention: torch.Tensor | None = getattr(layer, name)
    if attention is None:
        raise UsageError(
            f"Layer {layer.index} does not show its attention",
            "take an eviction that does without, such as key_diff or recent",
        )
    return attention
