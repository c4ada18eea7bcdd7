"""Second moments of keys and values, summed over tokens and texts: all that energy spectra take.

A head's moment is (dim, dim) whatever the number of tokens. Heads are kept apart: those of a layer
side by side would take its square of kv_heads x dim, which is 134 MB a layer for 32 heads of 128.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from config import UsageError
from data import cache as stored
from data.cache import KVCache, LayerKV

KINDS = ("key", "unrotated_key", "value")
MOST_FLOATS = 1 << 20  # of keys or values that are held in float64 at a time: 8 MiB


@dataclass(frozen=True)
class HeadMoments:
    """Sums over the tokens that each KV head of one layer holds, of its keys or values x (dim,).

    squares: (kv_heads, dim, dim) of x x^T. sums: (kv_heads, dim) of x. Both in float64. tokens:
    (kv_heads,) how many x there were.
    """

    layer: int
    kind: str
    squares: torch.Tensor
    sums: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def of(cls, layer: LayerKV, kind: str, most_floats: int = MOST_FLOATS) -> "HeadMoments":
        """Reads the layer in blocks of tokens, so that of one in a file no more is in memory."""
        x = layer.tensor(_stored_as(kind))
        heads, n_tokens, dim = x.shape
        squares = torch.zeros(heads, dim, dim, dtype=torch.float64)
        sums = torch.zeros(heads, dim, dtype=torch.float64)
        n_block = max(1, most_floats // (heads * dim))
        for first in range(0, n_tokens, n_block):
            block = _block(layer, kind, slice(first, first + n_block))
            squares += block.mT @ block
            sums += block.sum(1)
        kept = torch.full((heads,), n_tokens) if layer.keep is None else layer.keep.sum(1).cpu()
        return cls(layer.index, kind, squares, sums, kept)

    @property
    def dim(self) -> int:
        return self.sums.shape[1]

    @property
    def shape(self) -> tuple[int, str, int, int]:
        """What has to agree for two to be added."""
        return (self.layer, self.kind, *self.sums.shape)

    @cached_property
    def energies(self) -> torch.Tensor:
        """(kv_heads, dim), the largest first: squares of the singular values of the head's
        (tokens, dim)."""
        ascending: torch.Tensor = torch.linalg.eigvalsh(self.squares)
        return _without_rounding(ascending.flip(1))

    def directions(self, n: int) -> torch.Tensor:
        """(kv_heads, dim, n) as columns: the right singular vectors of the largest energies."""
        ascending: torch.Tensor = torch.linalg.eigh(self.squares)[1]
        return ascending[:, :, -n:].flip(2)

    @property
    def centred_energies(self) -> torch.Tensor:
        """(kv_heads, dim), of x less its mean over tokens."""
        means = self.sums / self.tokens[:, None].clamp(min=1)
        centred = self.squares - means[:, :, None] * self.sums[:, None]
        largest = self.squares.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)  # what was cancelled
        return _without_rounding(torch.linalg.eigvalsh(centred).flip(1), largest)

    @property
    def mean_energies(self) -> torch.Tensor:
        """(kv_heads,) what the mean over tokens, put in place of every x, has of the energy."""
        return self.sums.square().sum(1) / self.tokens.clamp(min=1)

    def __add__(self, other: "HeadMoments") -> "HeadMoments":
        return HeadMoments(
            self.layer,
            self.kind,
            self.squares + other.squares,
            self.sums + other.sums,
            self.tokens + other.tokens,
        )


@dataclass(frozen=True)
class Moments:
    """Of every layer and kind of one model's caches, over `texts` of them; `a + b` is of both.

    The order of the sum matters to rounding alone. Raises UsageError where layers, kinds, heads or
    dimensions differ.
    """

    parts: tuple[HeadMoments, ...]
    texts: int = 1

    @classmethod
    def of(cls, cache: KVCache, most_floats: int = MOST_FLOATS) -> "Moments":
        layers = _layers_and_kinds(cache)
        return cls(tuple(HeadMoments.of(layer, kind, most_floats) for layer, kind in layers))

    def __add__(self, other: "Moments") -> "Moments":
        shapes, others = ([part.shape for part in x.parts] for x in (self, other))
        if shapes != others:
            raise UsageError(
                f"Second moments of {_in_words(shapes, others)} cannot be added to those of "
                f"{_in_words(others, shapes)}",
                "add up texts of one model",
            )
        pairs = zip(self.parts, other.parts, strict=True)
        return Moments(tuple(a + b for a, b in pairs), self.texts + other.texts)


def _layers_and_kinds(cache: KVCache) -> Iterator[tuple[LayerKV, str]]:
    """Unrotated keys too, of the layers where it is known what rotated them, if any are."""
    rotated = any(x.rotary is not None and bool(x.rotary.frequencies) for x in cache.layers)
    for layer in cache.layers:
        for kind in KINDS if rotated and layer.rotary is not None else stored.KINDS:
            yield layer, kind


def _stored_as(kind: str) -> str:
    return "key" if kind == "unrotated_key" else kind


def _block(layer: LayerKV, kind: str, places: slice) -> torch.Tensor:
    """(kv_heads, block, dim) in float64, on the cpu, since some devices lack it; 0 where an entry
    was evicted."""
    x = layer.tensor(_stored_as(kind))[:, places].cpu()
    if kind == "unrotated_key":
        if layer.rotary is None:
            raise ValueError(f"it is not known what rotated the keys of layer {layer.index}")
        x = layer.rotary.unrotated(x.float(), layer.positions[places].cpu())
    x = x.double()
    if layer.keep is not None:
        x = x.masked_fill(~layer.keep[:, places, None].cpu(), 0)
    return x


def _without_rounding(energies: torch.Tensor, largest: torch.Tensor | None = None) -> torch.Tensor:
    """(kv_heads, dim) with 0 where there is nothing but the rounding of the largest."""
    largest = energies[:, :1] if largest is None else largest
    rounding = energies.shape[1] * torch.finfo(torch.float64).eps * largest
    return torch.where(energies > rounding, energies, 0)


def _in_words(
    shapes: list[tuple[int, str, int, int]], others: list[tuple[int, str, int, int]]
) -> str:
    """The first thing in which `shapes` differ from the others."""
    differ = [shape for shape in shapes if shape not in others]
    if not differ:
        return f"{len(shapes)} tensors"
    layer, kind, heads, dim = differ[0]
    return f"layer {layer}'s {kind}s of {heads} KV heads x {dim}"
