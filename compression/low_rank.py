"""Fewer directions, shared by the heads of a layer or by several layers; and Tucker in few bits."""

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch

from compression.base import Tensors
from compression.between import BetweenEnds, Middles, Place, Shapes, by_head, of_place, wide
from compression.packing import pack, unpack
from compression.quantisers import symmetric
from compression.tucker import Tucker
from config import UsageError
from data.cache import KINDS, in_16_bits


@dataclass(frozen=True)
class SVD(BetweenEnds):
    """Truncated singular value decomposition of each layer's keys and values as (tokens, heads x
    dim), with a factor (tokens, r) and one (r, heads x dim) in 16 bits: what Palu decomposes in
    the weights (arXiv 2407.21118), here in the cache of the text itself. The shorter mode's factor
    is orthonormal, the singular values stand in the other.

    keep: share of the singular values that stay; or None, with `energy`, the share of each
        tensor's squared norm to keep, which chooses the rank layer by layer.
    """

    name: ClassVar[str] = "svd"
    keep: float | None = 0.5
    energy: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [share for share in (self.keep, self.energy) if share is not None]
        if len(given) != 1:
            raise UsageError(f"A share to keep or an energy: {len(given)} were given, give one.")
        if not 0 < given[0] <= 1:
            raise UsageError(f"A kept share of {given[0]:g} was given: above 0, at most 1.")

    def sharing(self, shapes: Shapes) -> list[list[Place]]:
        """Places that share their factor of tokens."""
        return [[place] for place in shapes]

    def encode_middles(self, middles: Middles) -> Tensors:
        stored: Tensors = {}
        for places in self.sharing({place: x.shape for place, x in middles.items()}):
            x = torch.cat([wide(middles[place]) for place in places], dim=1)
            tokens, dims = factors(x, self.keep, self.energy)
            stored[_of(places[0], "tokens")] = in_16_bits(tokens)
            stored[_of(places[0], "dims")] = in_16_bits(dims)
        return stored

    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        middles: Middles = {}
        for places in self.sharing(shapes):
            tokens, dims = (stored[_of(places[0], name)].float() for name in ("tokens", "dims"))
            widths = [shapes[place][0] * shapes[place][2] for place in places]
            for place, some in zip(places, dims.split(widths, dim=1), strict=True):
                middles[place] = by_head(tokens @ some, shapes[place][0])
        return middles


@dataclass(frozen=True)
class CrossLayerSVD(SVD):
    """The same for `group` consecutive cached layers side by side, (tokens, layers x heads x dim):
    they share the factor of tokens, each has its own of dims (Chang et al., xKV, arXiv 2503.18893).
    Keys and values apart; layers that cache other tokens than the one before start a new group."""

    name: ClassVar[str] = "cross_layer_svd"
    group: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 1:
            raise UsageError(f"Groups of {self.group} layers were asked for: 1 or more, such as 4.")

    def sharing(self, shapes: Shapes) -> list[list[Place]]:
        found = []
        for kind in KINDS:
            of_kind = [place for place in shapes if place[1] == kind]
            for _, run in groupby(of_kind, key=lambda place: shapes[place][1]):
                places = list(run)
                starts = range(0, len(places), self.group)
                found += [places[start : start + self.group] for start in starts]
        return found


def factors(
    x: torch.Tensor, keep: float | None, energy: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, r) and (r, width) whose product is the best approximation of rank r of x (tokens,
    width): r is a share `keep` of all ranks, or the smallest that keeps `energy`."""
    flat = x.shape[0] < x.shape[1]
    tall = (x.T if flat else x).double()
    # From the Gram matrix of the shorter mode; in double precision, since it squares x.
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if energy is None:
        rank = max(1, round(keep * len(values)))
    else:
        kept = values.cumsum(0)
        rank = min(len(values), 1 + int((kept < energy * kept[-1]).sum()))
    basis = vectors[:, :rank]  # (shorter, r)
    long, short = (tall @ basis).float(), basis.float().T
    return (short.T, long.T) if flat else (long, short)


@dataclass(frozen=True)
class QuantisedTucker(Tucker):
    """Tucker's core and factors in packed codes of `bits` bits, symmetric around zero, with a
    16-bit scale for each column (of the core: each column of each head).

    Ranks are chosen as Tucker chooses them, for numbers of 16 bits: a `target_ratio` is exceeded.
    """

    name: ClassVar[str] = "tucker_quantised"
    bits: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise UsageError(f"Tucker was asked for codes of {self.bits} bits: 2 to 8, such as 8.")

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
            ranks = [parts[f"{name}.scale"].shape[-1] for name in ("tokens", "dims")]
            sizes = {
                "core": (heads, *ranks),
                "tokens": (n_tokens, ranks[0]),
                "dims": (dim, ranks[1]),
            }
            for name, size in sizes.items():
                codes = unpack(parts[f"{name}.codes"], self.bits, size).float()
                scale = parts[f"{name}.scale"].float()
                plain[_of(place, name)] = (codes - self._largest()) * scale
        return super().decode_middles(plain, shapes)

    def _largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def _from_zero(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes + self._largest()).to(torch.uint8)


def _of(place: Place, name: str) -> str:
    return f"{place[0]}.{place[1]}.{name}"
