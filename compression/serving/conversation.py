"""A conversation in a file: chunks, and the tokens after them as they are until they fill one.

A chunk is coded once. Only the tokens of a last one that was not whole, as `store` leaves it, are
coded again when it is.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from compression.base import Compressed
from compression.coded.chunked import CHUNK, CodedChunks, ends_of_chunks
from compression.coded.chunks import ANY_MODEL, ChunkCodec
from compression.serving.compressed_cache import RECENT_TOKENS, CompressedCache, RestingLayer
from compression.shapes import CacheShape
from config import UsageError
from data.cache import KINDS


def refuse_unrested(config: PreTrainedConfig, compressed: Compressed) -> None:
    """Raise UsageError for a stored cache that does not rest in a `CompressedCache` whole."""
    if not isinstance(compressed.compressor, CodedChunks):
        raise UsageError(
            f"The prompt is stored as {compressed.compressor.name}, and what is added to it cannot "
            "be stored with it",
            "store the prompt as coded_chunks",
        )
    layers = DynamicCache(config=config).layers
    if len(layers) != len(compressed.shape.layers) or any(
        type(layer) is not DynamicLayer for layer in layers
    ):
        raise UsageError(
            f"{compressed.shape.model} keeps a window or a state in some layers, and what is added "
            "to a stored prompt cannot be stored with it",
            "store the whole text as a prompt",
        )


def opened(
    config: PreTrainedConfig, compressed: Compressed, own: Sequence[DynamicLayer]
) -> CompressedCache:
    """What `generate` goes on with; whole chunks are at hand for when it rests. own: the layers of
    the model's own cache, which tell where theirs are and in which dtype.

    Raises UsageError as `refuse_unrested`, and what `restore` raises.
    """
    refuse_unrested(config, compressed)
    method, shape = compressed.compressor, compressed.shape
    assert isinstance(method, CodedChunks)
    restored = compressed.restore()  # tells whether all is there
    codec = ChunkCodec(shape.layers, ANY_MODEL, method.calibration, method.step)
    past = CompressedCache(config, codec, method.chunk_tokens, RECENT_TOKENS)
    ends = ends_of_chunks(len(shape.token_ids), method.chunk_tokens, method.recent_tokens)
    for k in range(len(ends)):
        past.chunks.append(compressed.stored[f"{CHUNK}{k}"].cpu().numpy().tobytes())
    for layer in restored.layers:
        held, like = past.layers[layer.index], own[layer.index]
        assert isinstance(held, RestingLayer)
        keys, values = (layer.tensor(kind)[None].to(like.device, like.dtype) for kind in KINDS)
        held.lazy_initialization(keys, values)
        held.keys, held.values = keys, values
    return past


def closed(past: CompressedCache, shape: CacheShape, token_ids: torch.Tensor) -> Compressed:
    """What is stored of a conversation of these (tokens,) token ids, all of which were read;
    shape: of what it was opened from."""
    past.rest()
    n_tokens = len(token_ids)
    n_plain = n_tokens - len(past.chunks) * past.method.chunk_tokens
    method = replace(past.method, recent_tokens=min(past.method.recent_tokens, n_plain))
    stored = {
        f"{CHUNK}{k}": torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
        for k, chunk in enumerate(past.chunks)
    }
    for i, layer in enumerate(shape.layers if n_plain else ()):
        held, dtype = past.layers[layer.index], getattr(torch, layer.dtype)
        stored |= {f"{i}.{kind}": getattr(held, f"{kind}s")[0].to(dtype).cpu() for kind in KINDS}
    layers = tuple(replace(layer, n_tokens=n_tokens) for layer in shape.layers)
    grown = replace(shape, layers=layers, token_ids=tuple(token_ids.tolist()), n_prompt=n_tokens)
    return Compressed(method, stored, grown)
