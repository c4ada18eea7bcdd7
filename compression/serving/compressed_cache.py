"""A cache for `generate` of transformers that is small between the turns of a chat.

While the model runs, its layers hold what those of `DynamicCache` do. `rest` takes all whole chunks
of tokens but a recent window out of them and keeps their bytes; what asks for keys or values next
brings them back. A chunk is coded once: what came back from it is not coded again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from compression.coded.chunked import CHUNK_TOKENS, CodedChunks, between, ends_of_chunks
from compression.coded.chunks import ChunkCodec
from config import UsageError
from data.cache import KINDS, LayerKV
from data.inventory import leaves

RECENT_TOKENS = 64


class RestingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of whose tokens the first `n_resting` may be elsewhere. Whoever is to change it has
    them brought back."""

    def __init__(self, cache: "CompressedCache") -> None:
        super().__init__()
        self.cache = cache
        self.n_resting = 0

    def get_seq_length(self) -> int:
        held: int = super().get_seq_length()
        return self.n_resting + held

    def update(self, *states: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.cache.wake()
        both: tuple[torch.Tensor, torch.Tensor] = super().update(*states, **named)
        return both

    def crop(self, tokens_to_remove: int) -> None:
        self.cache.wake()
        super().crop(tokens_to_remove)
        self.cache.forget_chunks_beyond(self.get_seq_length())

    def reset(self) -> None:
        self.n_resting = 0
        super().reset()
        self.cache.forget_chunks_beyond(0)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.cache.wake()
        super().reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.cache.wake()
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.cache.wake()
        super().batch_select_indices(indices)


class CompressedCache(DynamicCache):  # type: ignore[misc]
    """Of one conversation. codec: of the model of this `config`. chunk_tokens: of each chunk.
    recent_tokens: the fewest that stay as they are.

    Layers that keep a window, a state or keys of an index stay as they are.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        codec: ChunkCodec,
        chunk_tokens: int = CHUNK_TOKENS,
        recent_tokens: int = RECENT_TOKENS,
    ) -> None:
        super().__init__(config=config)
        self.codec = codec
        self.method = CodedChunks(
            codec.step, chunk_tokens, recent_tokens, calibration=codec.calibration
        )
        self.chunks: list[bytes] = []
        for shape in codec.layers:
            if type(self.layers[shape.index]) is DynamicLayer:
                self.layers[shape.index] = RestingLayer(self)

    def rest(self) -> None:
        """Between turns: take what whole chunks hold out of the layers."""
        self.wake()
        resting = list(self._resting())
        if not resting or not resting[0].get_seq_length():
            return
        if resting[0].keys.shape[0] > 1:
            raise UsageError(
                f"The cache holds {resting[0].keys.shape[0]} sequences",
                "give each conversation a cache of its own",
            )
        n_tokens, size = resting[0].get_seq_length(), self.method.chunk_tokens
        ends = ends_of_chunks(n_tokens, size, self.method.recent_tokens)
        layers = list(self._held(n_tokens))
        for end in ends[len(self.chunks) :]:
            self.chunks.append(
                self.codec.encode_layers(between(layers, end - size, end), end - size, size)
            )
        n_resting = len(self.chunks) * size
        for part in layers:
            layer = self.layers[part.index]
            if isinstance(layer, RestingLayer):
                recent = (part.tensor(kind)[None, :, n_resting:].clone() for kind in KINDS)
                layer.keys, layer.values = recent
                layer.n_resting = n_resting

    def wake(self) -> None:
        """Bring back what rests."""
        resting = [layer for layer in self._resting() if layer.n_resting]
        if not resting:
            return
        for layer in resting:
            for kind in KINDS:
                recent = getattr(layer, f"{kind}s")
                whole = recent.new_empty((*recent.shape[:2], layer.n_resting, recent.shape[3]))
                setattr(layer, f"{kind}s", torch.cat([whole, recent], dim=2).to(layer.dtype))
            layer.n_resting = 0
        for k, chunk in enumerate(self.chunks):
            start = k * self.method.chunk_tokens
            for part in self.codec.decode_layers(chunk, resting[0].keys.device):
                layer = self.layers[part.index]
                for kind in KINDS if isinstance(layer, RestingLayer) else ():
                    held = getattr(layer, f"{kind}s")[0, :, start : start + part.n_tokens]
                    held.copy_(part.tensor(kind))

    def forget_chunks_beyond(self, n_tokens: int) -> None:
        del self.chunks[n_tokens // self.method.chunk_tokens :]

    @property
    def nbytes(self) -> int:
        """What the conversation holds now: bytes of chunks, and every tensor of the layers."""
        tensors = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for layer in self.layers
            for name, part in vars(layer).items()
            if name != "cache"
            for _, x in leaves(part)
            if isinstance(x, torch.Tensor)
        }
        return sum(map(len, self.chunks)) + sum(tensors.values())

    def _resting(self) -> Iterator[RestingLayer]:
        return (layer for layer in self.layers if isinstance(layer, RestingLayer))

    def _held(self, n_tokens: int) -> Iterator[LayerKV]:
        """What the codec is given, as it is served; of layers that stay as they are, nothing."""
        for shape in self.codec.layers:
            layer = self.layers[shape.index]
            keys, values = layer.keys[0], layer.values[0]
            if not isinstance(layer, RestingLayer):
                keys, values = keys[:, :0], values[:, :0]
            start = n_tokens - keys.shape[1]
            positions = torch.arange(start, n_tokens, device=keys.device)
            layer = LayerKV(keys, values, positions, shape.index, shape.kind, rotary=shape.rotary)
            yield layer.in_16_bits()
