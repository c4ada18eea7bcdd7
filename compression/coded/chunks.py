"""A chunk of a cache as bytes that stand alone: for engines, which hand over rotated keys of some
hundred tokens and no queries, and want them back, from anywhere, or a refusal.

The coder is that of `coded` under three constraints. A chunk knows no other: its mean is coded as
one more token, which weighs more than all, and magnitudes are its own. It knows no queries: a
token's weight follows from its keys. It says what it is: chunk_bytes.py has the bytes. What each
constraint costs stands in docs/codec.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from compression.base import Calibration
from compression.coded import chunk_bytes, rans
from compression.coded.chunk_bytes import MOST_TOKENS, Chunk, damaged
from compression.coded.chunk_integers import first_coded, quantised, restore_into
from compression.coded.method import MIDDLE
from compression.coded.transform import Transform, fitting
from compression.shapes import LayerShape
from config import UsageError
from data.cache import KINDS, LayerKV

ANY_MODEL = 64 * "0"  # where what holds the chunks says of which model they are
SINKS = 1  # tokens of a text's first chunk that stay in 16 bits
DTYPES = (torch.float16, torch.bfloat16)  # of layers, by what stands in the bytes
OfLayers = Sequence[torch.Tensor]  # of each layer (heads, tokens, dim)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ChunkCodec:
    """layers: those of the model that cache keys and values; what they say of tokens is moot.
    model: its identity, 64 hexadecimal digits, or ANY_MODEL. step: as of `coded`."""

    layers: tuple[LayerShape, ...]
    model: str
    calibration: Calibration = field(compare=False, repr=False)
    step: float = MIDDLE

    def encode(self, keys: OfLayers, values: OfLayers, positions: torch.Tensor) -> bytes:
        """Of each layer keys, after rotary embedding, and values (heads, tokens, dim), at (tokens,)
        positions that follow each other. Raises UsageError for what is no chunk of this model."""
        if not len(keys) == len(values) == len(self.layers):
            raise UsageError(
                f"A chunk holds keys of {len(keys)} layers and values of {len(values)}",
                f"the model caches {len(self.layers)}",
            )
        if len(positions) and (positions.diff() != 1).any():
            raise UsageError("The positions of a chunk do not follow each other", "cut it there")
        layers = [
            LayerKV(k, v, positions, shape.index, shape.kind, rotary=shape.rotary)
            for shape, k, v in zip(self.layers, keys, values, strict=True)
        ]
        start = int(positions[0]) if len(positions) else 0
        return self.encode_layers(layers, start, len(positions))

    def decode(
        self, data: bytes | memoryview, device: torch.device = CPU
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values as `encode` was given them, up to what coding costs, on `device`. Raises
        UsageError for a chunk that is damaged, of another model or of another calibration."""
        layers = self.decode_layers(data, device)
        return [layer.keys for layer in layers], [layer.values for layer in layers]

    def encode_layers(self, layers: Sequence[LayerKV], start: int, n_tokens: int) -> bytes:
        """What the layers hold of `n_tokens` from `start` on; the first of them may be missing
        where a window has forgotten them."""
        layers = [layer.in_16_bits() for layer in layers]
        self._refuse(layers, start, n_tokens)
        n_sinks = SINKS if start == 0 else 0
        found = quantised(self.transform, layers, n_sinks, n_tokens, self.step)
        coded = rans.encode(found.integers, found.classes, self.transform.tables)
        return chunk_bytes.written(
            Chunk(
                self.model,
                self.calibration.identity,
                self.step,
                start,
                n_tokens,
                n_sinks,
                np.array(found.skips, np.uint16),
                np.array([DTYPES.index(layer.keys.dtype) for layer in layers], np.uint8),
                found.levels.numpy().astype(np.int8),
                found.codes.numpy(),
                coded["state"].numpy(),
                coded["words"].numpy(),
                coded.get("escapes", torch.zeros(0, dtype=torch.int16)).numpy(),
                self._sinks(layers, n_tokens, n_sinks),
            )
        )

    def decode_layers(self, data: bytes | memoryview, device: torch.device = CPU) -> list[LayerKV]:
        """The inverse of `encode_layers`."""
        self._refuse_another(*chunk_bytes.identities(data))
        columns = [group.columns for group in self.transform.groups]
        chunk = chunk_bytes.read(data, len(columns), len(self.layers), sum(columns))
        try:
            layers = list(self._with_sinks(chunk, device))
            places = {(i, kind): x.tensor(kind) for i, x in enumerate(layers) for kind in KINDS}
            restore_into(places, chunk, self.transform, self.layers)
            if not all(map(_is_finite, places.values())):
                raise ValueError("its numbers are not finite")
            return layers
        except ValueError as error:
            raise damaged(error) from None

    def _with_sinks(self, chunk: Chunk, device: torch.device) -> Iterator[LayerKV]:
        """The layers with room for what they hold of the chunk, sinks in their place."""
        skips = {
            i: int(chunk.skips[g])
            for g, group in enumerate(self.transform.groups)
            for i in group.layers
        }
        sinks = torch.from_numpy(chunk.sinks).to(device)
        for i, shape in enumerate(self.layers):
            if chunk.dtypes[i] >= len(DTYPES):
                raise ValueError(f"layer {shape.index} is of no known dtype")
            dtype = DTYPES[chunk.dtypes[i]]
            first = min(skips[i], chunk.n_tokens)
            n_plain = first_coded(first, chunk.n_sinks, chunk.n_tokens) - first
            n_held = chunk.n_tokens - first
            both = []
            for kind in KINDS:
                sizes = (shape.n_heads, n_plain, shape.dim(kind))
                plain, sinks = sinks[: math.prod(sizes)], sinks[math.prod(sizes) :]
                if len(plain) < math.prod(sizes):
                    raise ValueError("its first tokens are not all there")
                room = torch.empty(
                    (shape.n_heads, n_held, shape.dim(kind)), dtype=dtype, device=device
                )
                room[:, :n_plain] = plain.view(dtype).view(sizes)
                both.append(room)
            positions = torch.arange(first, chunk.n_tokens, device=device) + chunk.start
            keys, values = both
            yield LayerKV(keys, values, positions, shape.index, shape.kind, rotary=shape.rotary)
        if len(sinks):
            raise ValueError("it holds more first tokens than it says")

    def _sinks(self, layers: Sequence[LayerKV], n_tokens: int, n_sinks: int) -> np.ndarray:
        """The first tokens of those layers that hold them, in 16 bits."""
        parts = []
        for layer in layers:
            first = n_tokens - layer.n_tokens
            n_plain = first_coded(first, n_sinks, n_tokens) - first
            for kind in KINDS:
                plain = layer.tensor(kind)[:, :n_plain].to(layer.keys.dtype)
                parts.append(plain.cpu().contiguous().view(torch.int16).flatten().numpy())
        return np.concatenate(parts)

    @property
    def mean_keys(self) -> list[torch.Tensor]:
        """(heads, dim) of each layer, before rotary embedding, over all texts."""
        return self.transform.mean_keys(self.layers)

    @cached_property
    def transform(self) -> Transform:
        return fitting(self.calibration, self.layers, "this model")

    def _refuse(self, layers: Sequence[LayerKV], start: int, n_tokens: int) -> None:
        if not 0 < n_tokens <= MOST_TOKENS or start < 0:
            raise UsageError(
                f"A chunk of {n_tokens} tokens from position {start} on was given",
                f"it holds 1 to {MOST_TOKENS}, from 0 on",
            )
        for layer, shape in zip(layers, self.layers, strict=True):
            sizes = (layer.n_heads, layer.keys.shape[2], layer.values.shape[2])
            due = (shape.n_heads, shape.key_dim, shape.value_dim)
            if sizes != due or layer.n_tokens > n_tokens:
                raise UsageError(
                    f"Layer {shape.index} of a chunk of {n_tokens} tokens holds {layer.n_tokens}, "
                    f"its heads, key and value dimensions are {sizes}",
                    f"those of the model are {due}",
                )
            if not all(_is_finite(layer.tensor(kind)) for kind in KINDS):
                raise UsageError(
                    f"Layer {shape.index} of the chunk holds NaN or Inf", "compress finite numbers"
                )

        held = [{layers[i].n_tokens for i in group.layers} for group in self.transform.groups]
        if any(len(of_group) > 1 for of_group in held):
            raise UsageError(
                "Layers that were calibrated together hold different tokens of a chunk, for their "
                "windows differ",
                "compress shorter texts",
            )

    def _refuse_another(self, model: str, calibration: str) -> None:
        ours = {"model": self.model, "calibration": self.calibration.identity}
        for what, of_chunk in (("model", model), ("calibration", calibration)):
            if ours[what] not in (of_chunk, ANY_MODEL):
                raise UsageError(
                    f"The chunk is of {what} {of_chunk[:12]}..., and this codec of "
                    f"{ours[what][:12]}...",
                    f"decode it with the codec of its own {what}",
                )


def _is_finite(x: torch.Tensor) -> bool:
    """Of 16 bits: no exponent is all ones. `isfinite` takes seven times as long for them."""
    largest = torch.tensor(torch.finfo(x.dtype).max, dtype=x.dtype).view(torch.int16)
    magnitudes = x.view(torch.int16) & 0x7FFF  # they grow with the number
    return x.numel() == 0 or bool(magnitudes.max() <= int(largest))
