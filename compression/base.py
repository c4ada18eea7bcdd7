"""The contract of every compressor: what is stored, how many bytes that is, and the way back."""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch

from compression import file_parts
from compression.parts import BOTH, Part, Words
from compression.shapes import CacheShape, LayerShape
from compression.stored import FLOATS, Tensors, digest, nbytes, refuse_left, taken
from data.cache import KINDS, KVCache


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
    # Whether it gives the cache as it is served, which needs no file
    as_served: ClassVar[bool] = False

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

    def bits_by_token(self, stored: Tensors, shape: CacheShape) -> torch.Tensor | None:
        """(tokens,) float64: the bits that are stored of each token of the text, those that are of
        none of them shared out evenly, so that they add up to those of `stored`. None where all
        cached entries share them evenly, as they do where what is stored tells no tokens apart."""
        return None

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
    """A compressed cache: `stored` and `shape` are all that there is to restore it from. `nbytes`
    are those of `stored`; `stored_nbytes`, which count, are of all."""

    compressor: Compressor
    stored: Tensors
    shape: CacheShape

    @property
    def nbytes(self) -> int:
        return nbytes(self.stored)

    def header(self, **facts: str) -> dict[str, str]:
        """What a file of it says in words."""
        method, calibration = self.compressor, self.compressor.calibration
        identity = None if calibration is None else calibration.identity
        return file_parts.header(method.name, method.settings(), identity, facts)

    @property
    def header_nbytes(self) -> int:
        """What a file without facts takes beside the tensors: settings, shapes, names, token
        ids."""
        return file_parts.header_nbytes(self.stored, self.shape, self.header())

    @property
    def file_nbytes(self) -> int:
        """All bytes of a file without facts."""
        return self.nbytes + self.header_nbytes

    @property
    def stored_nbytes(self) -> int:
        """Those of the file; of a cache as it is served, which needs none, its own."""
        return self.nbytes if self.compressor.as_served else self.file_nbytes

    @property
    def ratio(self) -> float:
        """Original bytes, 16 bits an entry, over stored bytes."""
        return self.shape.nbytes / self.stored_nbytes

    @property
    def bits_by_token(self) -> torch.Tensor | None:
        """As `Compressor.bits_by_token`, with the header: they add up to those of all that is
        stored."""
        bits = self.compressor.bits_by_token(self.stored, self.shape)
        beside = 8 * (self.stored_nbytes - self.nbytes)
        return None if bits is None else bits + beside / len(bits)

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
    """The cache itself, in 16 bits: what every method is compared with. It counts as it is served,
    in memory and without a header, so its ratio is 1; a file of it has one all the same."""

    name: ClassVar[str] = "none"
    as_served: ClassVar[bool] = True
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
