"""`coded_chunks`: a cache as chunks that each stand alone, coded without queries, as engines hold
them; the most recent tokens stay in 16 bits, until they fill a chunk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch

from compression.base import Calibration, Compressed, Compressor
from compression.coded import named
from compression.coded.chunk_bytes import MOST_TOKENS
from compression.coded.chunks import ANY_MODEL, ChunkCodec
from compression.coded.method import MIDDLE, refuse_step
from compression.coded.transform import fitting, read
from compression.parts import BOTH, PLAIN, Part, Words
from compression.shapes import CacheShape, LayerShape
from compression.stored import FLOATS, Tensors, taken
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV

CHUNK_TOKENS = 256  # as LMCache cuts them
CHUNK = "chunks."  # begins their names


def ends_of_chunks(n_tokens: int, chunk_tokens: int, recent_tokens: int) -> list[int]:
    """Where the chunks of a text end: all are whole, and none has one of the last
    `recent_tokens`."""
    return list(range(chunk_tokens, n_tokens - recent_tokens + 1, chunk_tokens))


@dataclass(frozen=True)
class CodedChunks(Compressor):
    """step: as of `coded`. chunk_tokens: of each chunk; a last one is shorter where no recent
    tokens are to stay. recent_tokens: the fewest that stay in 16 bits."""

    name: ClassVar[str] = "coded_chunks"
    called: ClassVar[Words] = {"": PLAIN}
    step: float = MIDDLE
    chunk_tokens: int = CHUNK_TOKENS
    recent_tokens: int = 0
    calibration: Calibration = field(kw_only=True, compare=False, repr=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        refuse_step(self.step)
        if not 0 < self.chunk_tokens <= MOST_TOKENS or self.recent_tokens < 0:
            raise UsageError(
                f"`chunk_tokens` is {self.chunk_tokens} and `recent_tokens` {self.recent_tokens}",
                f"chunks are of 1 to {MOST_TOKENS} tokens, and 0 or more stay in 16 bits",
            )

    def part(self, name: str, of: Compressed) -> Part:
        if not name.startswith(CHUNK):
            return super().part(name, of)
        return Part("chunks", tuple(layer.index for layer in of.shape.layers), BOTH)

    def learned_part(self, name: str, shape: CacheShape) -> Part:
        return named.part(name, read(self.calibration).groups, shape)

    def encode(self, cache: KVCache) -> Tensors:
        codec = self._codec(tuple(LayerShape.of(layer) for layer in cache.layers), cache.model)
        chunks = self._chunks(cache.n_tokens)
        stored: Tensors = {}
        for k, (start, end) in enumerate(chunks):
            chunk = codec.encode_layers(between(cache.layers, start, end), start, end - start)
            as_tensor = torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
            stored[f"{CHUNK}{k}"] = as_tensor.to(cache.layers[0].keys.device)
        for i, layer in enumerate(between(cache.layers, _end(chunks), cache.n_tokens)):
            if layer.n_tokens:
                stored |= {f"{i}.{kind}": layer.tensor(kind).clone() for kind in KINDS}
        return stored

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        codec = self._codec(shape.layers, shape.model)
        n_tokens = len(shape.token_ids)
        chunks = self._chunks(n_tokens)
        parts = [
            self._decoded(taken(stored, f"{CHUNK}{k}", (torch.uint8,), None), codec, shape, *span)
            for k, span in enumerate(chunks)
        ]
        layers = []
        for i, layer in enumerate(shape.layers):
            n_plain = n_tokens - max(_end(chunks), layer.start)
            both = []
            for kind in KINDS:
                held = [part[i].tensor(kind) for part in parts]
                if n_plain:
                    sizes = (layer.n_heads, n_plain, layer.dim(kind))
                    held.append(taken(stored, f"{i}.{kind}", FLOATS, *sizes))
                both.append(torch.cat(held, dim=1))
            layers.append(layer.filled(*both))
        return shape.filled(tuple(layers))

    def _decoded(
        self, chunk: torch.Tensor, codec: ChunkCodec, shape: CacheShape, start: int, end: int
    ) -> list[LayerKV]:
        """The layers of a chunk, in which they must hold what is due of these positions."""
        layers = codec.decode_layers(chunk.cpu().numpy().tobytes(), chunk.device)
        for held, layer in zip(layers, shape.layers, strict=True):
            due = torch.arange(min(end, max(start, layer.start)), end)
            if not torch.equal(held.positions.cpu(), due):
                raise ValueError(f"a chunk is not of positions {start} to {end - 1}")
        return layers

    def _codec(self, layers: tuple[LayerShape, ...], model: str) -> ChunkCodec:
        fitting(self.calibration, layers, model)
        return ChunkCodec(layers, ANY_MODEL, self.calibration, self.step)

    def _chunks(self, n_tokens: int) -> list[tuple[int, int]]:
        """Where each begins and ends."""
        ends = ends_of_chunks(n_tokens, self.chunk_tokens, self.recent_tokens)
        if not self.recent_tokens and n_tokens % self.chunk_tokens:
            ends.append(n_tokens)
        return list(pairwise([0, *ends]))


def between(layers: Sequence[LayerKV], start: int, end: int) -> list[LayerKV]:
    """What they hold of these positions of the text."""
    ends = torch.tensor([start, end])
    places = (torch.searchsorted(layer.positions.cpu(), ends).tolist() for layer in layers)
    return [layer.between(slice(*held)) for layer, held in zip(layers, places, strict=True)]


def _end(chunks: Sequence[tuple[int, int]]) -> int:
    return chunks[-1][1] if chunks else 0
