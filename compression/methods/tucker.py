"""Tucker decomposition of each layer's keys and values along tokens and embedding dimensions, its
core and factors in 16 bits or in packed codes."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.methods.packing import pack, take_codes
from compression.methods.place_by_place import (
    BetweenEnds,
    Middles,
    Place,
    Shape,
    Shapes,
    of_place,
    part_name,
)
from compression.methods.quantisers import symmetric
from compression.methods.tucker_math import rebuilt, tucker2
from compression.methods.tucker_ranks import Ranks, choose_ranks
from compression.parts import Words
from compression.stored import FLOATS, Tensors, refuse_left, taken
from config import UsageError
from data.cache import in_16_bits

PARTS = {"core": "core", "tokens": "factor of tokens", "dims": "factor of dimensions"}
FACTORS = ("tokens", "dims")
SWEEPS = 3  # HOOI sweeps; more change the fourth digit of the error


@dataclass(frozen=True)
class Tucker(BetweenEnds):
    """Tucker-2 per layer, keys and values apart; the head mode stays whole.

    token_rank, embedding_rank: the same for all layers; or None, with `energy` (the share of each
        tensor's squared norm to keep) or `target_ratio` (of the decomposed part, spent over layers
        where the error falls fastest) to choose them per layer.
    """

    name: ClassVar[str] = "tucker"
    called: ClassVar[Words] = PARTS
    token_rank: int | None = 32
    embedding_rank: int | None = 32
    energy: float | None = None
    target_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [self.energy is not None, self.target_ratio is not None]
        if sum(chosen) > 1:
            raise UsageError("`energy` and `target_ratio` were both given", "ranks follow from one")
        if not any(chosen) and None in (self.token_rank, self.embedding_rank):
            raise UsageError("Tucker needs both ranks, or `energy` or `target_ratio`")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"`energy` is {self.energy}", "it takes a share above 0, at most 1")
        if self.target_ratio is not None and not 1 <= self.target_ratio < math.inf:
            raise UsageError(f"`target_ratio` is {self.target_ratio}", "it takes a ratio from 1")
        for name in ("token_rank", "embedding_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}", "it takes 1 or more")

    def encode_middles(self, middles: Middles) -> Tensors:
        stored: Tensors = {}
        ranks = self._ranks(middles)
        for group in _alike(middles, ranks):
            stacked = torch.stack([middles[place] for place in group])
            parts = tucker2(stacked, *ranks[group[0]], SWEEPS)
            for name, part in zip(PARTS, parts, strict=True):
                for place, tensor in zip(group, part, strict=True):
                    stored[part_name(place, name)] = in_16_bits(tensor)
        return stored

    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        return {place: _rebuilt(of_place(stored, place), shape) for place, shape in shapes.items()}

    def _ranks(self, middles: Middles) -> Ranks:
        """(token_rank, embedding_rank) of each tensor (heads, tokens, dim)."""
        if self.energy is not None or self.target_ratio is not None:
            return choose_ranks(middles, self.energy, self.target_ratio)
        ranks = (self.token_rank or 0, self.embedding_rank or 0)
        for (i, kind), x in middles.items():
            _refuse_ranks(f"the {kind}s of cached layer {i}", *ranks, *x.shape)
        return dict.fromkeys(middles, ranks)


@dataclass(frozen=True)
class QuantisedTucker(Tucker):
    """Tucker's core and factors in packed codes of `bits` bits, symmetric around zero, with a
    16-bit scale for each column (of the core: each column of each head).

    Ranks are chosen as Tucker chooses them, for numbers of 16 bits: a `target_ratio` is exceeded.
    """

    name: ClassVar[str] = "tucker_quantised"
    called: ClassVar[Words] = {
        f"{name}.codes": f"integers of the {words}" for name, words in PARTS.items()
    } | {f"{name}.scale": f"scales of the {words}" for name, words in PARTS.items()}
    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise UsageError(f"Tucker was asked for codes of {self.bits} bits", "2 to 8, such as 8")

    def encode_middles(self, middles: Middles) -> Tensors:
        stored: Tensors = {}
        for name, tensor in super().encode_middles(middles).items():
            codes, scale = symmetric(tensor.float(), self.bits, -2)
            stored[f"{name}.codes"] = pack(self._from_zero(codes), self.bits)
            stored[f"{name}.scale"] = scale
        return stored

    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        plain: Tensors = {}
        for place, (heads, n_tokens, dim) in shapes.items():
            parts = of_place(stored, place)
            columns = {name: taken(parts, f"{name}.scale", FLOATS, 1, None) for name in FACTORS}
            ranks = [len(columns[name][0]) for name in FACTORS]
            columns["core"] = taken(parts, "core.scale", FLOATS, heads, 1, ranks[1])
            sizes = {
                "core": (heads, *ranks),
                "tokens": (n_tokens, ranks[0]),
                "dims": (dim, ranks[1]),
            }
            for name, size in sizes.items():
                codes = take_codes(parts, f"{name}.codes", self.bits, size).float()
                scale = columns[name].float()
                plain[part_name(place, name)] = (codes - self._largest()) * scale
            refuse_left(parts)
        return super().decode_middles(plain, shapes)

    def _largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def _from_zero(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes + self._largest()).to(torch.uint8)


def _rebuilt(parts: Tensors, shape: Shape) -> torch.Tensor:
    """(heads, tokens, dim) in float32 from core and factors."""
    heads, n_tokens, dim = shape
    core = taken(parts, "core", FLOATS, heads, None, None)
    ranks = core.shape[1:]
    if ranks[0] > n_tokens or ranks[1] > dim:
        raise ValueError(f"a core of ranks {tuple(ranks)} for {n_tokens} tokens of {dim}")
    tokens = taken(parts, "tokens", FLOATS, n_tokens, ranks[0])
    dims = taken(parts, "dims", FLOATS, dim, ranks[1])
    refuse_left(parts)
    return rebuilt(core.float(), tokens.float(), dims.float())


def _refuse_ranks(
    where: str, token_rank: int, embedding_rank: int, heads: int, tokens: int, dim: int
) -> None:
    """Raise UsageError for ranks that a tensor (heads, tokens, dim) does not have."""
    most = min(dim, heads * tokens)
    if not 1 <= embedding_rank <= most:
        raise UsageError(
            f"`embedding_rank` {embedding_rank} is none that {where} can have, {dim} dimensions "
            f"over {heads} x {tokens} entries",
            f"give 1 to {most}",
        )
    most = min(tokens, heads * embedding_rank)
    if not 1 <= token_rank <= most:
        raise UsageError(
            f"`token_rank` {token_rank} is none that {where} can have, {tokens} tokens between the "
            f"plain ones with {heads} heads at embedding rank {embedding_rank}",
            f"give 1 to {most}, or `energy`, which chooses ranks layer by layer",
        )


def _alike(middles: Middles, ranks: Ranks) -> list[list[Place]]:
    """Places in groups of one kind, shape and rank, which are decomposed together."""
    groups: dict[tuple[str, torch.Size, tuple[int, int]], list[Place]] = {}
    for place, x in middles.items():
        groups.setdefault((place[1], x.shape, ranks[place]), []).append(place)
    return list(groups.values())
