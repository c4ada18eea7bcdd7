"""The contract of every compressor: what is stored, how many bytes that is, and the way back."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import torch

from data.cache import KVCache, LayerKV
from data.rotary import Rotary

Tensors = dict[str, torch.Tensor]


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

    @property
    def positions(self) -> torch.Tensor:
        return torch.arange(self.start, self.start + self.n_tokens)

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

    @classmethod
    def of(cls, cache: KVCache) -> "CacheShape":
        shapes = tuple(LayerShape.of(layer) for layer in cache.layers)
        return cls(shapes, tuple(cache.token_ids.tolist()), cache.n_prompt, cache.model)

    def filled(self, layers: tuple[LayerKV, ...]) -> KVCache:
        return KVCache(layers, torch.tensor(self.token_ids), self.n_prompt, self.model)


def nbytes(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True, eq=False)
class ModelSide:
    """What a method has learned of a model on other texts, and stores once for all texts."""

    tensors: Tensors
    learned_from: str

    @cached_property
    def identity(self) -> str:
        """A hash of the content, by which a compressed text names what restores it."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = torch.empty(tensor.numel(), dtype=tensor.dtype)  # of stride 1
            flat.copy_(tensor.flatten())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Compressor(ABC):
    """A method; the fields of its dataclass are its settings. Names stand in methods.py."""

    name: ClassVar[str]
    model_side: ClassVar["ModelSide | None"] = None  # a field of those that have one

    @abstractmethod
    def encode(self, cache: KVCache) -> Tensors:
        """Everything that must be kept of a cache in 16 bits, each tensor in the dtype in which it
        is kept, contiguous and owning its memory."""

    @abstractmethod
    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        """The cache from what `encode` gave, and nothing else."""

    def settings(self) -> dict:
        """The fields that say how, as JSON can hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}

    @property
    def per_model_nbytes(self) -> int:
        """Bytes stored once per model and not with each text."""
        return 0 if self.model_side is None else nbytes(self.model_side.tensors)

    def compress(self, cache: KVCache) -> "Compressed":
        return Compressed(self, self.encode(cache), CacheShape.of(cache))


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

    def restore(self) -> KVCache:
        return self.compressor.decode(self.stored, self.shape)


@dataclass(frozen=True)
class Uncompressed(Compressor):
    """The cache itself, in 16 bits: what every method is compared with."""

    name: ClassVar[str] = "none"

    def encode(self, cache: KVCache) -> Tensors:
        return {
            f"{i}.{kind}": layer.tensor(kind).clone()
            for i, layer in enumerate(cache.layers)
            for kind in ("key", "value")
        }

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        layers = (
            layer.filled(stored[f"{i}.key"], stored[f"{i}.value"])
            for i, layer in enumerate(shape.layers)
        )
        return shape.filled(tuple(layers))
