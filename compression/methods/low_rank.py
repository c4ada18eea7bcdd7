"""Fewer directions, shared by the heads of a layer or by several layers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

import torch

from compression.base import Compressed
from compression.methods.place_by_place import BetweenEnds, Middles, Place, Shapes, part_name
from compression.methods.spectra import gram_of, leading
from compression.parts import Part, Words
from compression.stored import FLOATS, Tensors, taken
from config import UsageError
from data.cache import KINDS, by_head, in_16_bits, wide

AnyShapes = Mapping[Place, tuple[int, ...]]  # (heads, tokens, dim), as tensors say it too


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
    called: ClassVar[Words] = {"tokens": "factor of tokens", "dims": "factor of dimensions"}
    keep: float | None = 0.5
    energy: float | None = None

    @property
    def by_layer(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [share for share in (self.keep, self.energy) if share is not None]
        if len(given) != 1:
            raise UsageError("A share to keep or an energy", f"{len(given)} were given, give one")
        if not 0 < given[0] <= 1:
            raise UsageError(f"A kept share of {given[0]:g} was given", "above 0, at most 1")

    def sharing(self, shapes: AnyShapes) -> list[list[Place]]:
        """Places that share their factor of tokens."""
        return [[place] for place in shapes]

    def encode_middles(self, middles: Middles) -> Tensors:
        stored: Tensors = {}
        for places in self.sharing({place: x.shape for place, x in middles.items()}):
            x = torch.cat([wide(middles[place]) for place in places], dim=1)
            tokens, dims = factors(x, self.keep, self.energy)
            stored[part_name(places[0], "tokens")] = in_16_bits(tokens)
            stored[part_name(places[0], "dims")] = in_16_bits(dims)
        return stored

    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        middles: Middles = {}
        for places in self.sharing(shapes):
            widths = [shapes[place][0] * shapes[place][2] for place in places]
            n_tokens = shapes[places[0]][1]
            tokens = taken(stored, part_name(places[0], "tokens"), FLOATS, n_tokens, None).float()
            sizes = (tokens.shape[1], sum(widths))
            dims = taken(stored, part_name(places[0], "dims"), FLOATS, *sizes).float()
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

    @property
    def by_layer(self) -> bool:
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 1:
            raise UsageError(
                f"Groups of {self.group} layers were asked for", "1 or more, such as 4"
            )

    def part(self, name: str, of: Compressed) -> Part:
        """What is stored under the first layer of a group is of all up to the next group's."""
        part = super().part(name, of)
        if not name.endswith(tuple(self.called)):
            return part
        layers = of.shape.layers
        starts = [i for i, _ in enumerate(layers) if f"{i}.{part.kind}.dims" in of.stored]
        first = int(name.partition(".")[0])
        end = next((i for i in starts if i > first), len(layers))
        spans = [(x.index, self.span(x)) for x in layers[first:end]]
        return replace(part, layers=tuple(i for i, span in spans if span.start < span.stop))

    def sharing(self, shapes: AnyShapes) -> list[list[Place]]:
        groups: list[list[Place]] = []
        for kind in KINDS:
            of_kind = [place for place in shapes if place[1] == kind]
            for _, run in groupby(of_kind, key=lambda place: shapes[place][1]):
                places = list(run)
                starts = range(0, len(places), self.group)
                groups += [places[start : start + self.group] for start in starts]
        return groups


def factors(
    x: torch.Tensor, keep: float | None, energy: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, r) and (r, width) whose product is the best approximation of rank r of x (tokens,
    width): r is a share `keep` of all ranks, or the smallest that keeps `energy`."""
    flat = x.shape[0] < x.shape[1]
    tall = x.T if flat else x
    # From the Gram matrix of the shorter mode
    vectors, values = leading(gram_of(tall))
    if keep is not None:
        rank = max(1, round(keep * len(values)))
    else:
        kept = values.clamp(min=0).cumsum(0)
        rank = min(len(values), 1 + int((kept < (energy or 1.0) * kept[-1]).sum()))
    basis = vectors[:, :rank]  # (shorter, r)
    long, short = (tall.double() @ basis).float(), basis.float().T
    return (short.T, long.T) if flat else (long, short)
