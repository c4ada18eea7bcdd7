"""What most methods share: the first and the most recent tokens stay as they are, keys may be taken
as they were before rotary embedding, and what lies between is compressed, most often place by
place: the keys, or the values, of one cached layer by themselves.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch

from compression.base import Compressed, Compressor
from compression.parts import PLAIN, Part
from compression.shapes import CacheShape, LayerShape
from compression.stored import FLOATS, Tensors, nbytes, refuse_left, taken, under
from config import UsageError
from data.cache import BYTES_PER_ENTRY, KINDS, KVCache, LayerKV
from data.rotary import NOT_ROTATED

ENDS = "ends."  # begins the names of plain tokens
Place = tuple[int, str]  # which cached layer, and key or value
Shape = tuple[int, int, int]  # heads, tokens, dim
Middles = dict[Place, torch.Tensor]  # (heads, tokens, dim) in float32 each; none without tokens
Shapes = dict[Place, Shape]


def content(layer: LayerKV, kind: str, unrotated: bool) -> torch.Tensor:
    """Keys or values (heads, tokens, dim) in float32, keys before rotary embedding if asked."""
    if kind == "key" and unrotated:
        return layer.unrotated_keys()
    return layer.tensor(kind).float()


@dataclass(frozen=True, kw_only=True)
class BetweenEnds(Compressor):
    """sink_tokens, recent_tokens: first and most recent tokens, which are stored in 16 bits.
    unrotated_keys: compress keys as they were before rotary embedding, which is redone after."""

    sink_tokens: int = 0
    recent_tokens: int = 0
    unrotated_keys: bool = False

    def __post_init__(self) -> None:
        for name in ("sink_tokens", "recent_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"`{name}` is {getattr(self, name)}", "it takes 0 or more tokens")

    @abstractmethod
    def encode_middles(self, middles: Middles) -> Tensors:
        """What is stored of them, by names that do not begin with ENDS."""

    @abstractmethod
    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        """The way back, for places of these shapes."""

    def encode(self, cache: KVCache) -> Tensors:
        stored: Tensors = {}
        middles: Middles = {}
        for i, layer in enumerate(cache.layers):
            span = self.span(LayerShape.of(layer))
            for kind in KINDS:
                x = layer.tensor(kind)
                if span.stop - span.start < layer.n_tokens:
                    outside = [x[:, : span.start], x[:, span.stop :]]
                    stored[f"{ENDS}{i}.{kind}"] = torch.cat(outside, dim=1)
                if span.stop > span.start:
                    middles[i, kind] = content(layer, kind, self.unrotated_keys)[:, span]
        encoded = self.encode_middles(middles) if middles else {}
        return stored | {name: tensor.contiguous() for name, tensor in encoded.items()}

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        spans = [self.span(layer) for layer in shape.layers]
        shapes = {
            (i, kind): (layer.n_heads, span.stop - span.start, layer.dim(kind))
            for i, (layer, span) in enumerate(zip(shape.layers, spans, strict=True))
            for kind in KINDS
            if span.stop > span.start
        }
        middles = self.decode_middles(stored, shapes) if shapes else {}
        layers = []
        for i, (layer, span) in enumerate(zip(shape.layers, spans, strict=True)):
            if self.unrotated_keys and (i, "key") in middles:
                middles[i, "key"] = layer.rotated(middles[i, "key"], layer.positions[span])
            both = (
                _joined(
                    stored, f"{ENDS}{i}.{kind}", middles.get((i, kind)), layer.sizes(kind), span
                )
                for kind in KINDS
            )
            layers.append(layer.filled(*both))
        return shape.filled(tuple(layers))

    def bits_by_token(self, stored: Tensors, shape: CacheShape) -> torch.Tensor | None:
        """16 for each entry of the ends; entries between share the others."""
        if not self.sink_tokens and not self.recent_tokens:
            return None
        between = shape.entries_by_token([self.span(layer) for layer in shape.layers])
        bits = 8 * BYTES_PER_ENTRY * (shape.entries_by_token() - between)
        left = 8 * nbytes(stored) - bits.sum()
        return bits + between * left / between.sum().clamp(min=1)

    def part(self, name: str, of: Compressed) -> Part:
        if not name.startswith(ENDS):
            return super().part(name, of)
        place, kind = name.removeprefix(ENDS).split(".")
        return Part(PLAIN, (of.shape.layers[int(place)].index,), kind)

    def span(self, layer: LayerShape) -> slice:
        """The tokens of a layer between its ends."""
        start = min(self.sink_tokens, layer.n_tokens)
        return slice(start, max(start, layer.n_tokens - self.recent_tokens))

    def is_idle(self, cache: KVCache) -> bool:
        """Whether all tokens of a cache are among those that stay as they are."""
        spans = [self.span(LayerShape.of(layer)) for layer in cache.layers]
        return all(span.start == span.stop for span in spans)

    def refuse_idle(self, cache: KVCache) -> None:
        """Raise UsageError where this setting would leave all of a cache as it is, or its keys."""
        if self.is_idle(cache):
            most = max(layer.n_tokens for layer in cache.layers)
            raise UsageError(
                f"`sink_tokens` {self.sink_tokens} and `recent_tokens` {self.recent_tokens} leave "
                f"none of the {most} cached tokens to compress",
                "lower them",
            )
        if self.unrotated_keys and all(layer.rotary == NOT_ROTATED for layer in cache.layers):
            raise UsageError(
                f"The keys that {cache.model} caches are not rotated", "leave out `unrotated_keys`"
            )


def _joined(
    stored: Tensors, name: str, middle: torch.Tensor | None, shape: Shape, span: slice
) -> torch.Tensor:
    """(heads, tokens, dim) in float32, from its ends and what lies between them."""
    heads, n_tokens, dim = shape
    n_plain = n_tokens - (span.stop - span.start)
    if middle is not None and not n_plain:
        return middle
    ends = taken(stored, name, FLOATS, heads, n_plain, dim).float()
    if middle is None:
        return ends
    return torch.cat([ends[:, : span.start], middle, ends[:, span.start :]], dim=1)


@dataclass(frozen=True, kw_only=True)
class PlaceByPlace(BetweenEnds):
    """Stores each place of the cache by itself."""

    @property
    def by_layer(self) -> bool:
        return True

    @abstractmethod
    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        """What is stored of x (heads, tokens, dim), which is this place of the cache."""

    @abstractmethod
    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        """(heads, tokens, dim) in float32 from its parts, which it takes out."""

    def encode_middles(self, middles: Middles) -> Tensors:
        return {
            part_name(place, name): part
            for place, x in middles.items()
            for name, part in self.parts(x, place).items()
        }

    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        middles: Middles = {}
        for place, shape in shapes.items():
            parts = of_place(stored, place)
            middles[place] = self.whole(parts, shape, place)
            refuse_left(parts)
        return middles


def part_name(place: Place, name: str) -> str:
    return f"{place[0]}.{place[1]}.{name}"


def of_place(stored: Tensors, place: Place) -> Tensors:
    """Takes out what is stored under `<layer>.<kind>.`, by the rest of its name."""
    return under(stored, part_name(place, ""))
