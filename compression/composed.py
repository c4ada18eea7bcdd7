"""Fewer tokens, and those that stay in fewer bits: an eviction followed by any other method."""

import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import ClassVar

import torch

from compression.base import CacheShape, Compressor, LayerShape, ModelSide, Tensors
from compression.bits import packed, unpacked
from compression.pruning import Eviction
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV
from data.rotary import NOT_ROTATED

THEN = "then."  # begins the names of what the second method stores


@dataclass(frozen=True)
class Composed(Compressor):
    """What an eviction keeps, compressed by another method; and one bit per head and token.

    eviction, then: `name` and settings of each. The second method sees the kept tokens of each
    head as neighbours at 0, 1, ...; where it asks for unrotated keys, each is turned back from
    the place it had, and turned forward to it after.
    model_side: what the second method has learned of the model, if it does.
    """

    name: ClassVar[str] = "composed"
    eviction: dict
    then: dict
    model_side: ModelSide | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("eviction", "then"):  # as they come back from a file
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))
        first, second = self._eviction, self._then
        if not isinstance(first, Eviction) or isinstance(second, Eviction):
            raise UsageError(
                f"{first.name} followed by {second.name} was asked for: an eviction such as snapkv "
                "comes first, and a method that evicts nothing follows."
            )
        object.__setattr__(self, "model_side", second.model_side)

    def __hash__(self) -> int:
        return hash(json.dumps(self.settings(), sort_keys=True))

    @cached_property
    def _eviction(self) -> Compressor:
        return _made(self.eviction)

    @cached_property
    def _then(self) -> Compressor:
        return _made(self.then, self.model_side)

    @property
    def _unrotated(self) -> bool:
        return getattr(self._then, "unrotated_keys", False)

    def encode(self, cache: KVCache) -> Tensors:
        keeps = [self._eviction.kept(layer) for layer in cache.layers]
        both = zip(cache.layers, keeps, strict=True)
        kept = replace(cache, layers=tuple(self._gathered(*each) for each in both))
        stored = {f"{i}.keep": packed(keep) for i, keep in enumerate(keeps)}
        return stored | {THEN + name: tensor for name, tensor in self._then.encode(kept).items()}

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        keeps = [
            unpacked(stored[f"{i}.keep"], (layer.n_heads, layer.n_tokens))
            for i, layer in enumerate(shape.layers)
        ]
        both = list(zip(shape.layers, keeps, strict=True))
        kept = replace(shape, layers=tuple(_shape_of_kept(*each) for each in both))
        inner = {n.removeprefix(THEN): x for n, x in stored.items() if n.startswith(THEN)}
        back = self._then.decode(inner, kept)
        layers = (self._spread(*each, some) for each, some in zip(both, back.layers, strict=True))
        return shape.filled(tuple(layers))

    def _gathered(self, layer: LayerKV, keep: torch.Tensor) -> LayerKV:
        """The kept tokens of each head side by side, keys unrotated if the second method asks."""
        counts = keep.sum(1)
        if counts[0] == 0 or (counts != counts[0]).any():
            raise UsageError(
                f"{self._eviction.name} does not keep the same number of tokens, 1 or more, in "
                f"each head of layer {layer.index}: {self._then.name} cannot follow it."
            )

        def some(x: torch.Tensor) -> torch.Tensor:
            return x[keep].unflatten(0, (layer.n_heads, -1))

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
            spread[0] = layer.rotary.rotated(spread[0].float(), layer.positions)
        return layer.filled(*spread, keep=None if keep.all() else keep)


def _shape_of_kept(layer: LayerShape, keep: torch.Tensor) -> LayerShape:
    return replace(layer, n_tokens=int(keep[0].sum()), start=0, rotary=NOT_ROTATED)


def _made(setting: dict, model_side: ModelSide | None = None) -> Compressor:
    """The method of a `name` and settings."""
    from compression.methods import METHODS  # the registry holds this method, too

    settings = dict(setting)
    name = settings.pop("name", None)
    if name not in METHODS or name == Composed.name:
        others = ", ".join(other for other in METHODS if other != Composed.name)
        raise UsageError(f"A composed method was given {name}: it takes two of {others}.")
    if "model_side" not in (f.name for f in fields(METHODS[name])):
        return METHODS[name](**settings)
    if model_side is None:
        raise UsageError(f"{name} has to learn of the model on other texts before it is composed.")
    return METHODS[name](**settings, model_side=model_side)
