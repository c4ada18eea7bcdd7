"""Tucker decomposition of each layer's keys and values along tokens and embedding dimensions."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.base import Tensors
from compression.between import BetweenEnds, Middles, Shapes
from compression.ranks import choose_ranks
from compression.tucker_math import rebuilt, tucker2
from config import RunConfig, UsageError
from data.cache import in_16_bits

SWEEPS = 3  # HOOI sweeps; more change the fourth digit of the error


@dataclass(frozen=True)
class Tucker(BetweenEnds):
    """Tucker-2 per layer, keys and values apart; the head mode stays whole.

    token_rank, embedding_rank: the same for all layers; or None, with `energy` (the share of each
        tensor's squared norm to keep) or `target_ratio` (of the decomposed part, spent over layers
        where the error falls fastest) to choose them per layer.
    """

    name: ClassVar[str] = "tucker"
    token_rank: int | None = 32
    embedding_rank: int | None = 32
    energy: float | None = None
    target_ratio: float | None = None

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
        super().__post_init__()
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

    def encode_middles(self, middles: Middles) -> Tensors:
        stored: Tensors = {}
        ranks = self._ranks(middles)
        for group in _alike(middles, ranks):
            stacked = torch.stack([middles[place] for place in group])
            parts = tucker2(stacked, *ranks[group[0]], SWEEPS)
            for name, part in zip(("core", "tokens", "dims"), parts, strict=True):
                for (i, kind), tensor in zip(group, part, strict=True):
                    stored[f"{i}.{kind}.{name}"] = in_16_bits(tensor)
        return stored

    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        return {
            (i, kind): rebuilt(
                *(stored[f"{i}.{kind}.{name}"].float() for name in ("core", "tokens", "dims"))
            )
            for i, kind in shapes
        }

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


def _alike(middles: dict, ranks: dict) -> list[list]:
    """Keys of `middles` in groups of one shape and rank, which are decomposed together."""
    groups: dict = {}
    for key, x in middles.items():
        groups.setdefault((key[1], x.shape, ranks[key]), []).append(key)
    return list(groups.values())
