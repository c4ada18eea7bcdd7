"""A conversation in a file: its chunks, each coded once and for all, and the tokens after them."""

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


def opened(config: PreTrainedConfig, compressed: Compressed, like: torch.Tensor) -> CompressedCache:
    """What `generate` goes on with. Whole chunks stay as they are; a last one that is not whole is
    brought back, and is coded again once it is. like: of the dtype and on the device of the
    model's keys. Raises UsageError as `refuse_unrested`."""
    refuse_unrested(config, compressed)
    method, shape = compressed.compressor, compressed.shape
    assert isinstance(method, CodedChunks)
    codec = ChunkCodec(shape.layers, ANY_MODEL, method.calibration, method.step)
    past = CompressedCache(config, codec, method.chunk_tokens, RECENT_TOKENS)
    ends = ends_of_chunks(len(shape.token_ids), method.chunk_tokens, method.recent_tokens)
    for k in range(len(ends)):
        past.chunks.append(compressed.stored[f"{CHUNK}{k}"].cpu().numpy().tobytes())
    n_resting = len(ends) * method.chunk_tokens
    for layer in compressed.restore().layers:
        held = past.layers[layer.index]
        assert isinstance(held, RestingLayer)
        recent = (layer.tensor(kind)[None, :, n_resting:].to(like, copy=True) for kind in KINDS)
        keys, values = recent
        held.lazy_initialization(keys, values)
        held.keys, held.values, held.n_resting = keys, values, n_resting
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
