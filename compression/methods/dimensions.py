"""Fewer embedding dimensions: what each token stores is projected onto fewer directions.

One file for the ways to choose them, which differ in what describes the directions and in who
shares them: dimensions of one head that go together (MergedDims), dimensions left out
(DroppedDims), one basis for all heads of a layer (EmbeddingFactor), and one over heads and
dimensions (PCA), fitted on the text itself or once for the model (CalibratedPCA).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from compression.base import Calibration
from compression.methods.dim_groups import group_dims, group_directions
from compression.methods.packing import pack, take_codes
from compression.methods.place_by_place import (
    Middles,
    Place,
    PlaceByPlace,
    Shape,
    content,
    part_name,
)
from compression.methods.spectra import gram_of, leading
from compression.parts import Part, Words
from compression.shapes import CacheShape
from compression.stored import FLOATS, Tensors, refuse_beyond, taken
from config import UsageError
from data.cache import KINDS, KVCache, by_head, in_16_bits, wide


@dataclass(frozen=True)
class Projection(PlaceByPlace):
    """keep: share of the dimensions that stay."""

    keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise UsageError(f"A kept share of {self.keep:g} was given", "above 0, at most 1")

    def n_kept(self, n: int) -> int:
        """How many of n directions stay."""
        return max(1, round(self.keep * n))


@dataclass(frozen=True)
class MergedDims(Projection):
    """Dimensions of one head that go together over tokens are stored as one, with a
    least-squares scale for each member.

    keep: merge until this share of the dimensions is stored, the most alike first.
    similarity: instead, merge all with at least this |cosine| over tokens (of either sign; not the
        correlation, since no mean is stored and a shared offset is something to share).
    largest: dimensions in a group at most.
    """

    name: ClassVar[str] = "merged_dims"
    called: ClassVar[Words] = {
        "merged": "merged dimensions",
        "groups": "indices",
        "scales": "scales",
    }
    similarity: float = 0.0
    largest: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep * self.largest < 1:
            raise UsageError(
                f"Keeping {self.keep:g} of the dimensions takes groups of more than {self.largest}",
                "raise LARGEST_DIM_GROUP in config.py, or keep more",
            )

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        n_kept = 1 if self.similarity else self.n_kept(x.shape[2])
        groups = group_dims(x, n_kept, self.similarity, self.largest)  # (heads, dim)
        scales = group_directions(x, groups)  # (heads, dim)
        offsets = torch.nn.functional.pad((groups.amax(1) + 1).cumsum(0), (1, 0))[:-1]
        ids = (groups + offsets[:, None]).flatten()  # (heads x dim,)
        merged = torch.zeros(x.shape[1], int(ids.max()) + 1, device=x.device)
        merged.index_add_(1, ids, wide(x) * scales.flatten())
        return {
            "merged": in_16_bits(merged),
            "groups": ids.to(torch.uint8 if merged.shape[1] <= 256 else torch.int16),
            "scales": in_16_bits(scales),
        }

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        heads, tokens, dim = shape
        merged = taken(parts, "merged", FLOATS, tokens, None)
        groups = taken(parts, "groups", (torch.uint8, torch.int16), heads * dim)
        scales = taken(parts, "scales", FLOATS, heads, dim).float()
        refuse_beyond(groups, merged.shape[1], "a group")
        return by_head(merged.float()[:, groups.long()] * scales.flatten(), heads)


@dataclass(frozen=True)
class DroppedDims(Projection):
    """Dimensions of a head with the most entries below `percentage` % of the largest in the cache
    are not stored and read as zero.

    sparser: drop those of which a larger share than this is below, instead of a share `keep`.
    at_random: drop as many, but whichever; a control. The value is the seed, from 1.
    """

    name: ClassVar[str] = "dropped_dims"
    called: ClassVar[Words] = {"kept": "mask of dimensions", "entries": "kept dimensions"}
    percentage: float = 1.0
    sparser: float = 0.0
    at_random: int = 0

    @property
    def by_layer(self) -> bool:
        return False  # the largest |entry| is the cache's, and a draw goes by the layer's place

    def encode_middles(self, middles: Middles) -> Tensors:
        peaks = {
            kind: max(x.abs().amax().item() for (_, k), x in middles.items() if k == kind)
            for kind in KINDS
        }
        return {
            part_name(place, name): part
            for place, x in middles.items()
            for name, part in self._dense(x, place, peaks[place[1]]).items()
        }

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        return self._dense(x, place, x.abs().amax().item())

    def _dense(self, x: torch.Tensor, place: Place, peak: float) -> Tensors:
        """What is stored where the largest |entry| of the kind in the cache is `peak`."""
        below = (x.abs() < peak * self.percentage / 100).float().mean(1)  # (heads, dim)
        energy = x.square().mean(1)
        rank = below - energy / energy.amax().clamp(min=1e-30) / (2 * x.shape[1])  # breaks ties
        order = rank.argsort(dim=1, stable=True).argsort(1)  # 0: the densest
        n_kept = torch.full((len(x), 1), self.n_kept(x.shape[2]), device=x.device)
        if self.sparser:
            n_kept = (below <= self.sparser).sum(1, keepdim=True)
        if self.at_random:
            generator = torch.Generator().manual_seed(1000 * self.at_random + _number(place))
            order = torch.rand(order.shape, generator=generator).argsort(1).to(x.device)
        kept = order < n_kept
        return {"kept": pack(kept.byte(), 1), "entries": in_16_bits(wide(x)[:, kept.flatten()])}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        kept = take_codes(parts, "kept", 1, (shape[0] * shape[2],)).bool()
        entries = taken(parts, "entries", FLOATS, shape[1], int(kept.sum()))
        x = torch.zeros(shape[1], len(kept), device=kept.device)
        x[:, kept] = entries.float()
        return by_head(x, shape[0])


def _number(place: Place) -> int:
    """A different number for the keys and values of each layer."""
    return 2 * place[0] + KINDS.index(place[1])


@dataclass(frozen=True)
class EmbeddingFactor(Projection):
    """A Tucker decomposition of the embedding mode alone: one orthonormal factor for all heads."""

    name: ClassVar[str] = "embedding_factor"
    called: ClassVar[Words] = {"core": "coordinates", "factor": "basis"}

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        rows = x.flatten(0, 1)  # (heads x tokens, dim)
        rank = min(self.n_kept(x.shape[2]), len(rows))
        factor = _leading(rows, rank)
        return {"core": in_16_bits(x @ factor), "factor": in_16_bits(factor)}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        core = taken(parts, "core", FLOATS, shape[0], shape[1], None)
        factor = taken(parts, "factor", FLOATS, shape[2], core.shape[2])
        return core.float() @ factor.float().T


@dataclass(frozen=True)
class PCA(Projection):
    """Principal directions of a layer over heads x dimensions, fitted on the text itself and stored
    with it. No mean is taken off: it would be one direction more."""

    name: ClassVar[str] = "pca"
    called: ClassVar[Words] = {"scores": "coordinates", "basis": "basis"}

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        rows = wide(x)
        basis = _leading(rows, min(self.n_kept(rows.shape[1]), len(rows)))
        return {"scores": in_16_bits(rows @ basis), "basis": in_16_bits(basis)}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        scores = taken(parts, "scores", FLOATS, shape[1], None)
        basis = taken(parts, "basis", FLOATS, shape[0] * shape[2], scores.shape[1])
        return by_head(scores.float() @ basis.float().T, shape[0])


@dataclass(frozen=True)
class CalibratedPCA(Projection):
    """The same with a basis fitted once for the model, on other texts."""

    name: ClassVar[str] = "calibrated_pca"
    called: ClassVar[Words] = {"scores": "coordinates"}
    learns: ClassVar[str] = "pca"
    # A field here, of the class elsewhere: which it is tells who is calibrated.
    calibration: Calibration = field(kw_only=True, compare=False, repr=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = {
            place: basis[:, : self.n_kept(len(basis))]
            for place, basis in self.calibration.tensors.items()
        }
        object.__setattr__(self, "calibration", replace(self.calibration, tensors=kept))

    @property
    def by_layer(self) -> bool:
        return False  # a basis is of a layer's place in the cache

    def learned_part(self, name: str, shape: CacheShape) -> Part:
        place, kind = name.split(".")
        return Part("basis", (shape.layers[int(place)].index,), kind)

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        basis = self.calibration.tensors[f"{place[0]}.{place[1]}"].to(x.device).float()
        return {"scores": in_16_bits(wide(x) @ basis)}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        bases, name = dict(self.calibration.tensors), f"{place[0]}.{place[1]}"
        basis = taken(bases, name, FLOATS, shape[0] * shape[2], None)
        scores = taken(parts, "scores", FLOATS, shape[1], basis.shape[1])
        return by_head(scores.float() @ basis.to(scores.device).float().T, shape[0])


def fitted_bases(caches: Iterable[KVCache], unrotated_keys: bool, learned_from: str) -> Calibration:
    """All principal directions (heads x dim, heads x dim) of each layer's keys and values over
    these caches of one model, largest first, in 16 bits. What is fitted on a text does not count
    for that text: it would be its own."""
    grams: Tensors = {}
    for cache in caches:
        for i, layer in enumerate(cache.layers):
            for kind in KINDS:
                gram = gram_of(wide(content(layer, kind, unrotated_keys)))
                place = f"{i}.{kind}"
                grams[place] = grams[place] + gram if place in grams else gram
    bases = {
        place: in_16_bits(leading(gram)[0]).cpu().contiguous() for place, gram in grams.items()
    }
    return Calibration(bases, learned_from)


def _leading(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """(dim, rank): the orthonormal directions with the most energy of rows (n, dim)."""
    return leading(gram_of(rows), rank)[0].float()
