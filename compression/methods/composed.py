"""Fewer tokens, and those that stay in fewer bits: an eviction followed by any other method."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from compression.base import Compressed, Compressor
from compression.methods.evictions import Eviction, masks
from compression.methods.packing import pack
from compression.parts import Part
from compression.shapes import CacheShape, LayerShape
from compression.stored import Tensors, nbytes, refuse_left, shared_out, under
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV
from data.rotary import NOT_ROTATED

THEN = "then."  # begins the names of what the second method stores


@dataclass(frozen=True)
class Composed(Compressor):
    """What an eviction keeps, compressed by another method; and one bit per head and token.

    The second method sees the kept tokens of each head as neighbours at 0, 1, ...; where it asks
    for unrotated keys, each is turned back from the place it had, and turned forward to it after.
    """

    name: ClassVar[str] = "composed"
    eviction: Eviction
    then: Compressor

    def __post_init__(self) -> None:
        first, second = (getattr(m, "name", m) for m in (self.eviction, self.then))
        follows = isinstance(self.then, Compressor) and not isinstance(
            self.then, Eviction | Composed
        )
        if not isinstance(self.eviction, Eviction) or not follows:
            raise UsageError(
                f"{first} followed by {second} was asked for",
                "an eviction such as snapkv comes first, and a method that evicts nothing follows",
            )
        object.__setattr__(self, "calibration", self.then.calibration)

    @property
    def by_layer(self) -> bool:
        return self.eviction.by_layer and self.then.by_layer

    def settings(self) -> dict[str, Any]:
        return {
            name: {"name": method.name, **method.settings()}
            for name, method in (("eviction", self.eviction), ("then", self.then))
        }

    def part(self, name: str, of: Compressed) -> Part:
        if not name.startswith(THEN):
            return self.eviction.part(name, of)
        inner = under(dict(of.stored), THEN)
        return self.then.part(name.removeprefix(THEN), Compressed(self.then, inner, of.shape))

    def learned_part(self, name: str, shape: CacheShape) -> Part:
        return self.then.learned_part(name, shape)

    @property
    def _unrotated(self) -> bool:
        return getattr(self.then, "unrotated_keys", False)

    def encode(self, cache: KVCache) -> Tensors:
        keeps = self.eviction.keeps(cache)
        both = zip(cache.layers, keeps, strict=True)
        kept = replace(cache, layers=tuple(self._gathered(*each) for each in both))
        stored = {f"{i}.keep": pack(keep.byte(), 1) for i, keep in enumerate(keeps)}
        return stored | {THEN + name: tensor for name, tensor in self.then.encode(kept).items()}

    def bits_by_token(self, stored: Tensors, shape: CacheShape) -> torch.Tensor | None:
        """Kept entries share what the second method stores; None where that tells tokens apart, for
        neighbours there are other tokens in each head."""
        left = dict(stored)
        keeps = masks(left, shape)
        both = list(zip(shape.layers, keeps, strict=True))
        kept = replace(shape, layers=tuple(_shape_of_kept(*each) for each in both))
        inner = under(left, THEN)
        if self.then.bits_by_token(inner, kept) is not None:
            return None
        bits = torch.zeros(len(shape.token_ids), dtype=torch.float64)
        per_entry = 8 * nbytes(inner) / kept.n_entries
        for layer, keep in both:
            of_kept = per_entry * (layer.key_dim + layer.value_dim)
            bits[layer.positions] += layer.n_heads + of_kept * keep.sum(0).cpu()
        return shared_out(bits, stored)

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        keeps = masks(stored, shape)
        both = list(zip(shape.layers, keeps, strict=True))
        kept = replace(shape, layers=tuple(_shape_of_kept(*each) for each in both))
        inner = under(stored, THEN)
        back = self.then.decode(inner, kept)
        refuse_left(inner)
        layers = (self._spread(*each, some) for each, some in zip(both, back.layers, strict=True))
        return shape.filled(tuple(layers))

    def _gathered(self, layer: LayerKV, keep: torch.Tensor) -> LayerKV:
        """The kept tokens of each head side by side, keys unrotated if the second method asks."""
        counts = keep.sum(1)
        if counts[0] == 0 or (counts != counts[0]).any():
            raise UsageError(
                f"{self.eviction.name} does not keep the same number of tokens, 1 or more, in "
                f"each head of layer {layer.index}",
                f"{self.then.name} cannot follow it",
            )

        def some(x: torch.Tensor) -> torch.Tensor:
            return torch.unflatten(x[keep], 0, (layer.n_heads, -1))

        keys = layer.unrotated_keys().to(layer.keys.dtype) if self._unrotated else layer.keys
        return LayerKV(
            keys=some(keys),
            values=some(layer.values),
            positions=torch.arange(int(counts[0]), device=layer.positions.device),
            index=layer.index,
            kind=layer.kind,
            rotary=NOT_ROTATED,
        )

    def _spread(self, layer: LayerShape, keep: torch.Tensor, kept: LayerKV) -> LayerKV:
        """The kept tokens of each head at the places they had."""
        spread = []
        for kind in KINDS:
            entries = kept.tensor(kind)
            x = entries.new_zeros(layer.n_heads, layer.n_tokens, layer.dim(kind))
            x[keep] = entries.flatten(0, 1)
            spread.append(x)
        if self._unrotated:
            spread[0] = layer.rotated(spread[0].float())
        return layer.filled(spread[0], spread[1], None if keep.all() else keep)


def _shape_of_kept(layer: LayerShape, keep: torch.Tensor) -> LayerShape:
    counts = keep.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(f"heads of layer {layer.index} keep different numbers of tokens")
    return replace(layer, n_tokens=int(counts[0]), start=0, rotary=NOT_ROTATED)
