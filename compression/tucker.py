"""Tucker decomposition of each layer's keys and values along tokens and embedding dimensions."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.base import CacheShape, Compressor, LayerShape, Tensors
from compression.ranks import choose_ranks
from compression.tucker_math import rebuilt, tucker2
from config import RunConfig, UsageError
from data.cache import KINDS, KVCache, in_16_bits
from data.rotary import NOT_ROTATED, Rotary

SWEEPS = 3  # HOOI sweeps; more change the fourth digit of the error


@dataclass(frozen=True)
class Tucker(Compressor):
    """Tucker-2 per layer, keys and values apart; the head mode stays whole.

    token_rank, embedding_rank: the same for all layers; or None, with `energy` (the share of each
        tensor's squared norm to keep) or `target_ratio` (of the decomposed part, spent over layers
        where the error falls fastest) to choose them per layer.
    sink_tokens, recent_tokens: first and most recent tokens that are stored as they are.
    unrotated_keys: decompose keys as they were before rotary embedding, which is redone after.
    """

    name: ClassVar[str] = "tucker"
    token_rank: int | None = 32
    embedding_rank: int | None = 32
    energy: float | None = None
    target_ratio: float | None = None
    sink_tokens: int = 0
    recent_tokens: int = 0
    unrotated_keys: bool = False

    @classmethod
    def from_run(cls, run: RunConfig) -> "Tucker":
        """The setting that a run's flags ask for."""
        chooses = run.energy is not None or run.target_ratio is not None
        return cls(
            token_rank=None if chooses else run.token_rank,
            embedding_rank=None if chooses else run.embedding_rank,
            energy=run.energy,
            target_ratio=run.target_ratio,
            sink_tokens=run.sink_tokens,
            recent_tokens=run.recent_tokens,
            unrotated_keys=run.unrotated_keys,
        )

    def __post_init__(self) -> None:
        chosen = [self.energy is not None, self.target_ratio is not None]
        if sum(chosen) > 1:
            raise UsageError("--energy and --target_ratio were both given: ranks follow from one.")
        if not any(chosen) and None in (self.token_rank, self.embedding_rank):
            raise UsageError("Tucker needs both ranks, or --energy or --target_ratio.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"--energy is {self.energy}: it takes a share above 0, at most 1.")
        if self.target_ratio is not None and not 1 <= self.target_ratio < math.inf:
            raise UsageError(f"--target_ratio is {self.target_ratio}: it takes a ratio from 1.")
        for name in ("token_rank", "embedding_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}: it takes 1 or more.")
        for name in ("sink_tokens", "recent_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} is {getattr(self, name)}: it takes 0 or more tokens.")

    def encode(self, cache: KVCache) -> Tensors:
        spans = [_decomposed(LayerShape.of(layer), self) for layer in cache.layers]
        stored: Tensors = {}
        middles = {}
        for i, (layer, span) in enumerate(zip(cache.layers, spans, strict=True)):
            for kind in KINDS:
                x = layer.tensor(kind)
                outside = torch.cat([x[:, : span.start], x[:, span.stop :]], dim=1)
                if outside.numel():
                    stored[f"{i}.{kind}.plain"] = outside
                if span.stop > span.start:
                    turned_back = kind == "key" and self.unrotated_keys
                    middle = layer.unrotated_keys() if turned_back else x.float()
                    middles[i, kind] = middle[:, span]
        ranks = self._ranks(middles)
        for group in _alike(middles, ranks):
            stacked = torch.stack([middles[key] for key in group])
            parts = tucker2(stacked, *ranks[group[0]], SWEEPS)
            for name, part in zip(("core", "tokens", "dims"), parts, strict=True):
                for (i, kind), tensor in zip(group, part, strict=True):
                    stored[f"{i}.{kind}.{name}"] = in_16_bits(tensor).contiguous()
        return stored

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        layers = []
        for i, layer in enumerate(shape.layers):
            span = _decomposed(layer, self)
            turn = layer.rotary if self.unrotated_keys else NOT_ROTATED
            keys = _restored(stored, f"{i}.key", layer, "key", span, turn)
            values = _restored(stored, f"{i}.value", layer, "value", span, NOT_ROTATED)
            layers.append(layer.filled(keys, values))
        return shape.filled(tuple(layers))

    def refuse_idle(self, cache: KVCache) -> None:
        """Raise UsageError where this setting would leave all of a cache as it is, or its keys."""
        spans = [_decomposed(LayerShape.of(layer), self) for layer in cache.layers]
        if all(span.start == span.stop for span in spans):
            most = max(layer.n_tokens for layer in cache.layers)
            raise UsageError(
                f"--sink_tokens {self.sink_tokens} and --recent_tokens {self.recent_tokens} leave "
                f"none of the {most} cached tokens to decompose: lower them."
            )
        if self.unrotated_keys and all(layer.rotary == NOT_ROTATED for layer in cache.layers):
            raise UsageError(
                f"The keys that {cache.model} caches are not rotated: leave out --unrotated_keys."
            )

    def _ranks(self, middles: dict) -> dict:
        """(token_rank, embedding_rank) of each tensor (heads, tokens, dim)."""
        if self.energy is not None or self.target_ratio is not None:
            return choose_ranks(middles, self.energy, self.target_ratio)
        for (i, kind), x in middles.items():
            where = f"the {kind}s of cached layer {i}"
            _refuse_ranks(where, self.token_rank, self.embedding_rank, *x.shape)
        return dict.fromkeys(middles, (self.token_rank, self.embedding_rank))


def _refuse_ranks(
    where: str, token_rank: int, embedding_rank: int, heads: int, tokens: int, dim: int
) -> None:
    """Raise UsageError for ranks that a tensor (heads, tokens, dim) does not have."""
    if not 1 <= embedding_rank <= min(dim, heads * tokens):
        raise UsageError(
            f"--embedding_rank is {embedding_rank}: {where}, {dim} dimensions over {heads} x "
            f"{tokens} entries, allow 1 to {min(dim, heads * tokens)}."
        )
    largest = min(tokens, heads * embedding_rank)
    if not 1 <= token_rank <= largest:
        raise UsageError(
            f"--token_rank is {token_rank}: {where}, {tokens} tokens between the plain ones with "
            f"{heads} heads at embedding rank {embedding_rank}, allow 1 to {largest}; --energy "
            "chooses ranks layer by layer."
        )


def _decomposed(layer: LayerShape, settings: Tucker) -> slice:
    """The tokens of a layer between its first and its most recent ones."""
    start = min(settings.sink_tokens, layer.n_tokens)
    return slice(start, max(start, layer.n_tokens - settings.recent_tokens))


def _alike(middles: dict, ranks: dict) -> list[list]:
    """Keys of `middles` in groups of one shape and rank, which are decomposed together."""
    groups: dict = {}
    for key, x in middles.items():
        groups.setdefault((key[1], x.shape, ranks[key]), []).append(key)
    return list(groups.values())


def _restored(
    stored: Tensors, prefix: str, layer: LayerShape, kind: str, span: slice, turn: Rotary
) -> torch.Tensor:
    """(kv_heads, tokens, dim) float32; `turn` rotates what was decomposed."""
    device = next(iter(stored.values())).device
    x = torch.empty(layer.n_heads, layer.n_tokens, layer.dim(kind), device=device)
    if f"{prefix}.plain" in stored:
        plain = stored[f"{prefix}.plain"].float()
        x[:, : span.start] = plain[:, : span.start]
        x[:, span.stop :] = plain[:, span.start :]
    if f"{prefix}.core" in stored:
        parts = [stored[f"{prefix}.{name}"].float() for name in ("core", "tokens", "dims")]
        x[:, span] = turn.rotated(rebuilt(*parts), layer.positions[span])
    return x
