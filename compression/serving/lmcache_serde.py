"""The chunk codec as a serde of LMCache 0.5.6, by the name `coded`: importing this registers it.

    {"type": "fs", ..., "serde": {"type": "coded", "codec": "model.codec", "chunk_tokens": 256}}

What it was tried with: LMCache's own AsyncSerdeProcessor on the CPU, with tensors [2, layers,
tokens, heads x dim] of one worker that holds all heads. Not with an engine. Look-up keys of
LMCache are hashes, so where a chunk stands is told by its keys, among the multiples of
`chunk_tokens` up to `longest_text`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from lmcache.v1.distributed.serde.async_processor import AsyncSerdeProcessor
from lmcache.v1.distributed.serde.factory import register_serde_factory

from compression.coded import codec_files
from compression.coded.chunk_bytes import split
from compression.coded.chunk_positions import likely_start
from compression.coded.chunks import ChunkCodec
from config import UsageError
from data.cache import by_head, wide

NAME = "coded"
SETTINGS = {"codec", "chunk_tokens", "longest_text", "max_workers"}
SMALLEST_BUFFER = 1 << 16  # bytes: head, codes and states take some, however few the tokens


@dataclass(frozen=True)
class ChunkSerializer:
    """codec: of the model that is served. chunk_tokens: LMCache's own setting of that name.
    longest_text: tokens, up to where a chunk may begin."""

    codec: ChunkCodec
    chunk_tokens: int = 256
    longest_text: int = 1 << 15

    def __post_init__(self) -> None:
        sizes = {(x.n_heads, x.key_dim, x.value_dim) for x in self.codec.layers}
        if len(sizes) > 1 or any(key != value for _, key, value in sizes):
            raise UsageError(
                f"The layers of the codec's model differ in size: {sorted(sizes)}",
                "LMCache hands over one tensor for all, so such a model is not coded there",
            )

    def estimate_serialized_size(self, layout_desc: Any) -> int:
        """Bytes of the chunk as it is, which what is coded stays below; LMCache keeps only as many
        as are written."""
        pairs = zip(layout_desc.shapes, layout_desc.dtypes, strict=True)
        plain: int = sum(math.prod(shape) * dtype.itemsize for shape, dtype in pairs)
        return SMALLEST_BUFFER + plain

    def serialize(self, src: Any, dst: Any, key: Any) -> int:
        """Write a chunk into the bytes of `dst`; how many those are."""
        keys, values = self._layers(src.tensor)
        starts = range(0, self.longest_text, self.chunk_tokens)
        start = likely_start(self.codec, keys, starts)
        data = self.codec.encode(keys, values, torch.arange(start, start + keys[0].shape[1]))
        buffer = dst.tensor.flatten()
        if len(data) > len(buffer):
            raise UsageError(
                f"A coded chunk takes {len(data):,} bytes where {len(buffer):,} are free",
                "make a codec with a larger step",
            )
        buffer[: len(data)].copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return len(data)

    def _layers(self, both: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values (heads, tokens, dim) of each layer."""
        shape = self.codec.layers[0]
        due = (2, len(self.codec.layers), shape.n_heads * shape.key_dim)
        if both.ndim != 4 or (*both.shape[:2], both.shape[3]) != due:
            raise UsageError(
                f"LMCache hands over a tensor of {tuple(both.shape)}",
                f"it takes 2 x {due[1]} layers x tokens x {due[2]} of heads x dim",
            )
        keys, values = ([by_head(x, shape.n_heads) for x in kind] for kind in both)
        return keys, values


@dataclass(frozen=True)
class ChunkDeserializer:
    codec: ChunkCodec

    def deserialize(self, src: Any, dst: Any, key: Any) -> None:
        """Fill `dst` with the chunk that the bytes of `src` begin with; raises UsageError, and
        leaves `dst` as it was, where that is another model's, is damaged or of another length."""
        data = memoryview(src.tensor.flatten().cpu().numpy())
        both = self.codec.decode(next(split(data)), dst.tensor.device)
        whole = torch.stack([torch.stack([wide(x) for x in kind]) for kind in both])
        if whole.shape != dst.tensor.shape:
            raise UsageError(
                f"The chunk is of {tuple(whole.shape)}, and {tuple(dst.tensor.shape)} is asked for",
                "store it again",
            )
        dst.tensor.copy_(whole)


def processor(settings: dict[str, Any]) -> Any:
    """What LMCache calls for with the settings of its configuration."""
    if unknown := sorted(settings.keys() - SETTINGS):
        raise UsageError(
            f"The serde {NAME} has no setting {unknown[0]}", f"it takes {', '.join(SETTINGS)}"
        )
    if "codec" not in settings:
        raise UsageError(f"The serde {NAME} was given no codec", "name the file of one")
    codec = codec_files.load(settings["codec"])
    lengths = {n: int(settings[n]) for n in ("chunk_tokens", "longest_text") if n in settings}
    workers = int(settings.get("max_workers", 1))
    serializer = ChunkSerializer(codec, **lengths)
    return AsyncSerdeProcessor(serializer, ChunkDeserializer(codec), max_workers=workers)


register_serde_factory(NAME, processor)
