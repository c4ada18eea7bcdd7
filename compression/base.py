"""The contract of every compressor: what is stored, how many bytes that is, and the way back."""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch

from compression.parts import BOTH, Part, Words
from compression.stored import FLOATS, Tensors, digest, nbytes, refuse_left, taken
from data.cache import BYTES_PER_ENTRY, KINDS, KVCache, LayerKV
from data.rotary import Rotary


@dataclass(frozen=True)
class LayerShape:
    """What is known of a layer without its content; positions are `start`, start + 1, ..."""

    index: int
    kind: str
    n_heads: int
    n_tokens: int
    key_dim: int
    value_dim: int
    start: int
    dtype: str
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        sizes = (self.n_heads, self.n_tokens, self.key_dim, self.value_dim)
        if min(sizes) < 1 or min(self.index, self.start) < 0:
            raise ValueError(f"layer {self.index} claims sizes of {sizes} from {self.start} on")
        if self.rotary is not None and 2 * len(self.rotary.frequencies) > self.key_dim:
            raise ValueError(f"layer {self.index} turns more than its {self.key_dim} dimensions")

    @classmethod
    def of(cls, layer: LayerKV) -> "LayerShape":
        return cls(
            index=layer.index,
            kind=layer.kind,
            n_heads=layer.n_heads,
            n_tokens=layer.n_tokens,
            key_dim=layer.keys.shape[2],
            value_dim=layer.values.shape[2],
            start=int(layer.positions[0]),
            dtype=str(layer.keys.dtype).removeprefix("torch."),
            rotary=layer.rotary,
        )

    def dim(self, kind: str) -> int:
        return {"key": self.key_dim, "value": self.value_dim}[kind]

    def sizes(self, kind: str) -> tuple[int, int, int]:
        """(heads, tokens, dim) of the keys or the values."""
        return self.n_heads, self.n_tokens, self.dim(kind)

    @property
    def n_entries(self) -> int:
        return self.n_heads * self.n_tokens * (self.key_dim + self.value_dim)

    @property
    def positions(self) -> torch.Tensor:
        return torch.arange(self.start, self.start + self.n_tokens)

    def rotated(self, keys: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Keys (heads, tokens, dim) after rotary embedding at these (tokens,) positions, or at
        those of the layer."""
        if self.rotary is None:
            raise ValueError(f"it is not known what rotates the keys of layer {self.index}")
        return self.rotary.rotated(keys, self.positions if positions is None else positions)

    def filled(
        self, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor | None = None
    ) -> LayerKV:
        """The layer with this content, in its own dtype."""
        dtype = getattr(torch, self.dtype)
        return LayerKV(
            keys.to(dtype),
            values.to(dtype),
            self.positions,
            self.index,
            self.kind,
            keep=keep,
            rotary=self.rotary,
        )


@dataclass(frozen=True)
class CacheShape:
    """What is known of a cache without its keys and values: the text and the model are given."""

    layers: tuple[LayerShape, ...]
    token_ids: tuple[int, ...]
    n_prompt: int
    model: str

    def __post_init__(self) -> None:
        indices = [layer.index for layer in self.layers]
        if not indices or indices != sorted(set(indices)):
            raise ValueError("layers of a cache are 1 or more, each once, in the model's order")
        n = len(self.token_ids)
        if any(layer.start + layer.n_tokens > n for layer in self.layers):
            raise ValueError(f"a layer holds tokens beyond the {n} of the text")
        if not 0 < self.n_prompt <= n:
            raise ValueError(f"n_prompt {self.n_prompt} of {n} tokens")

    @classmethod
    def of(cls, cache: KVCache) -> "CacheShape":
        shapes = tuple(LayerShape.of(layer) for layer in cache.layers)
        return cls(shapes, tuple(cache.token_ids.tolist()), cache.n_prompt, cache.model)

    @property
    def n_entries(self) -> int:
        return sum(layer.n_entries for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Original bytes: 16 bits for every entry."""
        return BYTES_PER_ENTRY * self.n_entries

    def filled(self, layers: tuple[LayerKV, ...]) -> KVCache:
        return KVCache(layers, torch.tensor(self.token_ids), self.n_prompt, self.model)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a method has learned of a model on other texts, and stores once for all texts.

    learned_from: which texts those were, in words.
    """

    tensors: Tensors
    learned_from: str

    @cached_property
    def identity(self) -> str:
        """A hash of the content, by which a compressed text names what restores it."""
        return digest(self.tensors)


@dataclass(frozen=True)
class Compressor(ABC):
    """A method; the fields of its dataclass are its settings. Names stand in registry.py."""

    name: ClassVar[str]
    # Those that cannot do without one have a field of this name.
    calibration: ClassVar[Calibration | None] = None
    # What its tensors hold, by what follows `<layer>.<kind>.`, or `<layer>.`, in their names
    called: ClassVar[Words] = {}
    learns: ClassVar[str] = "coded"  # which one of a model they take

    @abstractmethod
    def encode(self, cache: KVCache) -> Tensors:
        """Everything that must be kept of a cache in 16 bits, each tensor in the dtype in which it
        is kept, contiguous and owning its memory."""

    @abstractmethod
    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        """The cache from what `encode` gave, and nothing else; takes what it uses out of `stored`.
        Raises ValueError for what is not as `encode` would have given it."""

    def part(self, name: str, of: "Compressed") -> Part:
        """What the tensor of this name is of, among what is stored of a cache."""
        place, _, rest = name.partition(".")
        kind, _, rest_of_kind = rest.partition(".")
        layer = of.shape.layers[int(place)].index
        if kind in KINDS:
            return Part(self.called[rest_of_kind], (layer,), kind)
        return Part(self.called[rest], (layer,), BOTH)

    def learned_part(self, name: str, shape: CacheShape) -> Part:
        """The same of a tensor of its calibration."""
        raise ValueError(f"{self.name} has learned no {name}")

    def settings(self) -> dict[str, Any]:
        """The fields that say how, as JSON can hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}

    @property
    def per_model_nbytes(self) -> int:
        """Bytes stored once per model and not with each text."""
        return 0 if self.calibration is None else nbytes(self.calibration.tensors)

    @property
    def by_layer(self) -> bool:
        """Whether it treats layers apart: of each it stores what it would store of that one alone.
        Then a cache can go through it layer after layer."""
        return False

    def compress(self, cache: KVCache) -> "Compressed":
        """What is stored of a cache as it is served, in 16 bits, whatever dtype a run computes
        in."""
        served = cache.in_16_bits()
        return Compressed(self, self.encode(served), CacheShape.of(served))

    def words(self) -> str:
        """The settings that are set, as `name=value`."""
        chosen = {k: v for k, v in self.settings().items() if v not in (None, 0, ())}
        return " ".join(f"{k}={v}" for k, v in chosen.items())


@dataclass(frozen=True)
class Compressed:
    """A compressed cache. `nbytes` counts what `stored` holds; there is nothing else to restore
    from."""

    compressor: Compressor
    stored: Tensors
    shape: CacheShape

    @property
    def nbytes(self) -> int:
        return nbytes(self.stored)

    @property
    def ratio(self) -> float:
        """Original bytes, 16 bits an entry, over stored bytes."""
        return self.shape.nbytes / self.nbytes

    @property
    def ledger(self) -> Counter[Part]:
        """Of what is stored, the bytes of each part."""
        parts: Counter[Part] = Counter()
        for name, tensor in self.stored.items():
            parts[self.compressor.part(name, self)] += nbytes({name: tensor})
        return parts

    @property
    def learned(self) -> Counter[Part]:
        """Of what is stored once for the model, the bytes of each part."""
        parts: Counter[Part] = Counter()
        calibration = self.compressor.calibration
        for name, tensor in {} if calibration is None else calibration.tensors.items():
            parts[self.compressor.learned_part(name, self.shape)] += nbytes({name: tensor})
        return parts

    def restore(self) -> KVCache:
        left = dict(self.stored)
        cache = self.compressor.decode(left, self.shape)
        refuse_left(left)
        if tuple(LayerShape.of(layer) for layer in cache.layers) != self.shape.layers:
            raise ValueError(f"{self.compressor.name} did not restore the shapes of the cache")
        return cache


@dataclass(frozen=True)
class Uncompressed(Compressor):
    """The cache itself, in 16 bits: what every method is compared with."""

    name: ClassVar[str] = "none"
    called: ClassVar[Words] = {"": "entries in 16 bits"}

    @property
    def by_layer(self) -> bool:
        return True

    def encode(self, cache: KVCache) -> Tensors:
        return {
            f"{i}.{kind}": layer.tensor(kind).clone()
            for i, layer in enumerate(cache.layers)
            for kind in ("key", "value")
        }

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        return shape.filled(
            tuple(
                layer.filled(
                    *(
                        taken(stored, f"{i}.{kind}", FLOATS, *layer.sizes(kind))
                        for kind in ("key", "value")
                    )
                )
                for i, layer in enumerate(shape.layers)
            )
        )
