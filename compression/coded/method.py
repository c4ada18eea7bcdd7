"""`coded`: a cache as entropy-coded integers, in a basis in which errors cost nats.

Keys before rotary embedding and values x of a few layers at once, less the mean of all texts,
are taken to coefficients c = U^T A (x - mean): A is the root of the Fisher information of the
model's predictions, so that an error of the same size costs as much in every direction, and U
decorrelates; the first coefficients of all layers are turned together once more. One step sets
rate and distortion: q = round(c sqrt(w) / step), w the weight of a token by the attention that it
receives, or its age, and by how unlike others its keys are; the text's own mean is coded as one
more token, which weighs more than all. How large a column is, is stored in a byte, as is each
token's weight; both pick the table that codes q. Transform coding of caches: KVTC (arXiv
2511.01815); here errors are measured in what the model predicts, tokens have their own precision,
several layers share a basis, and the coder is per entry.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from compression.base import Calibration, Compressed, Compressor
from compression.coded import named, rans
from compression.coded.blocks import Block, blocks_of, classes_of, spread
from compression.coded.coefficients import integers_of, restore
from compression.coded.segments import Segment, segments, span
from compression.coded.token_weights import is_watched
from compression.coded.transform import Transform, fitting, level_of_mean, read
from compression.deflated import deflated_tensor, inflated_tensor
from compression.methods.place_by_place import Middles, Place
from compression.parts import Part
from compression.shapes import CacheShape, LayerShape
from compression.stored import FLOATS, Tensors, refuse_left, shared_out, taken, under
from config import UsageError
from data.cache import BYTES_PER_ENTRY, KINDS, KVCache

FINE, MIDDLE, COARSE = 3.5e-5, 7e-5, 1.4e-4  # steps in sqrt(nats)
MOST = 1e30  # of a step and of what one is divided by, so that float32 holds both


@dataclass(frozen=True)
class Coded(Compressor):
    """step: of the integers, in sqrt(nats) for a token of mean weight; half as large costs about a
    bit more per coefficient for a quarter of the KL divergence.
    sink_tokens: the first tokens of each layer, which are stored in 16 bits."""

    name: ClassVar[str] = "coded"
    step: float = MIDDLE
    sink_tokens: int = 1
    # A field here, of the class elsewhere: which it is tells who is calibrated.
    calibration: Calibration = field(kw_only=True, compare=False, repr=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        refuse_step(self.step)
        if self.sink_tokens < 0:
            raise UsageError(f"`sink_tokens` is {self.sink_tokens}", "it takes 0 or more tokens")

    def part(self, name: str, of: Compressed) -> Part:
        return self.learned_part(name, of.shape)

    def learned_part(self, name: str, shape: CacheShape) -> Part:
        return named.part(name, read(self.calibration).groups, shape)

    def encode(self, cache: KVCache) -> Tensors:
        shape = CacheShape.of(cache)
        transform = self._transform(shape)
        levels = self._levels(cache, transform)
        stored = {
            f"ends.{i}.{kind}": _kept(layer.tensor(kind)[:, : self.sink_tokens])
            for i, layer in enumerate(cache.layers)
            for kind in KINDS
            if self.sink_tokens
        }
        for segment in self._segments(transform, shape):
            stored["levels"] = levels.to(cache.layers[0].keys.device, torch.int8)
            part = self._encoded(cache, segment, levels, transform)
            stored |= {f"{segment.prefix}{name}": tensor for name, tensor in part.items()}
        return stored

    def _encoded(
        self, cache: KVCache, segment: Segment, levels: torch.Tensor, transform: Transform
    ) -> Tensors:
        """What is stored of the tokens of a segment."""
        mean_level = level_of_mean(levels[segment.tokens])
        codes, integers, symbol_classes = [], [], []
        for group, tokens in segment.groups:
            start = int(cache.layers[group.layers[0]].positions[0])
            places = slice(tokens.start - start, tokens.stop - start)
            with_mean = torch.cat([mean_level, levels[tokens]])
            code, q, of_q = integers_of(cache.layers, group, places, with_mean, self.step)
            codes.append(code)
            integers.append(q)
            symbol_classes.append(of_q)
        return {
            "mean_level": mean_level.to(torch.int8),
            "codes": self.written_codes(torch.cat(codes)),
            **self.written(np.concatenate(integers), np.concatenate(symbol_classes), transform),
        }

    def decode(self, stored: Tensors, shape: CacheShape) -> KVCache:
        transform = self._transform(shape)
        restored: Middles = {}  # in the layers' own dtype, filled as it is decoded
        parts = self._segments(transform, shape)
        if parts:
            n_tokens = len(shape.token_ids)
            levels = taken(stored, "levels", (torch.int8,), n_tokens).to(torch.int16)
            for segment in parts:
                part = under(stored, segment.prefix) if segment.prefix else stored
                self._decode_into(restored, part, segment, levels, transform, shape)
                if segment.prefix:
                    refuse_left(part)
        layers = (
            layer.filled(*(self._joined(stored, restored, i, kind, layer) for kind in KINDS))
            for i, layer in enumerate(shape.layers)
        )
        return shape.filled(tuple(layers))

    def _decode_into(
        self,
        restored: Middles,
        stored: Tensors,
        segment: Segment,
        levels: torch.Tensor,
        transform: Transform,
        shape: CacheShape,
    ) -> None:
        """Put what is stored of the tokens of a segment in its place."""
        with_mean, laid_out = self._read_blocks(stored, segment, levels)
        coded = spread(laid_out, lambda blocks: self.read(stored, blocks, transform))
        rotaries = [layer.rotary for layer in shape.layers]
        parts = zip(segment.groups, with_mean, coded, strict=True)
        for (group, tokens), of_group, blocks in parts:
            into = {
                place: _room_of(restored, place, tokens, shape, levels) for place in group.places
            }
            positions = torch.arange(tokens.start, tokens.stop)
            restore(blocks, of_group, self.step, group, rotaries, positions, into)

    def _read_blocks(
        self, stored: Tensors, segment: Segment, levels: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[list[Block]]]:
        """Of each group the (1 + tokens,) levels, that of the mean first, and the blocks that these
        and the codes of magnitude tell."""
        columns = [group.columns for group, _ in segment.groups]
        codes = self.read_codes(stored, sum(columns)).to(levels.device).split(columns)
        mean_level = taken(stored, "mean_level", (torch.int8,), 1).to(levels)
        with_mean = [torch.cat([mean_level, levels[tokens]]) for _, tokens in segment.groups]
        parts = zip(segment.groups, codes, with_mean, strict=True)
        laid_out = [blocks_of(code, of_group, group.bands) for (group, _), code, of_group in parts]
        return with_mean, laid_out

    def bits_by_token(self, stored: Tensors, shape: CacheShape) -> torch.Tensor:
        """Of the first tokens 16 for each entry, of the others those of their integers; magnitudes
        and the integers of the mean are of none."""
        transform, left = self._transform(shape), dict(stored)
        sinks = [slice(0, self.sink_tokens)] * len(shape.layers)
        bits = 8 * BYTES_PER_ENTRY * shape.entries_by_token(sinks)
        for segment in self._segments(transform, shape):
            part = under(left, segment.prefix) if segment.prefix else left
            levels = left["levels"].to(torch.int16)
            for tokens, of_integers in self._spent(part, segment, levels, transform):
                bits[tokens] += of_integers
        return shared_out(bits, stored)

    def _spent(
        self, stored: Tensors, segment: Segment, levels: torch.Tensor, transform: Transform
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Of each group its tokens in the text, and the (tokens,) bits of their integers."""
        with_mean, laid_out = self._read_blocks(stored, segment, levels)
        coded = spread(laid_out, lambda blocks: self.costs(stored, blocks, transform))
        parts = zip(segment.groups, with_mean, coded, strict=True)
        for (_, tokens), of_group, blocks in parts:
            bits = torch.zeros(len(of_group), dtype=torch.float64)
            for block, of_integers in blocks:
                bits[block.rows.cpu()] = block.filled(of_integers).sum(0).cpu().double()
            yield tokens, bits[1:]

    def _joined(
        self, stored: Tensors, restored: Middles, i: int, kind: str, layer: LayerShape
    ) -> torch.Tensor:
        """(heads, tokens, dim): the sinks as stored, then what was restored."""
        whole = restored.get((i, kind))
        if not self.sink_tokens and whole is not None:
            return whole
        heads, n_tokens, dim = layer.sizes(kind)
        n_sinks = min(self.sink_tokens, n_tokens)
        sinks = taken(stored, f"ends.{i}.{kind}", FLOATS, heads, n_sinks, dim)
        if whole is None:
            return sinks
        whole[:, :n_sinks] = sinks
        return whole

    def _levels(self, cache: KVCache, transform: Transform) -> torch.Tensor:
        if transform.watched and not is_watched(cache):
            raise UsageError(
                f"The attention in the cache of {cache.model} was not measured, and `coded` is as "
                "precise as tokens are looked at",
                "prefill with probe=True",
            )
        return transform.levels(cache)

    def written_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """What is stored of (columns,) uint8 codes of magnitude."""
        return deflated_tensor(codes.diff(prepend=codes.new_zeros(1)))

    def read_codes(self, stored: Tensors, n_columns: int) -> torch.Tensor:
        """The (columns,) codes, out of what is stored."""
        content = taken(stored, "codes", (torch.uint8,), None)
        return inflated_tensor(content, n_columns).cumsum(0, dtype=torch.uint8)

    def written(
        self, integers: np.ndarray, symbol_classes: np.ndarray, transform: Transform
    ) -> Tensors:
        """What is stored of (n,) integers whose (n,) classes both encoder and decoder know."""
        return rans.encode(integers, symbol_classes, transform.tables)

    def read(self, stored: Tensors, blocks: Sequence[Block], transform: Transform) -> torch.Tensor:
        """The (n,) integers of these blocks, where those are."""
        integers = rans.decode(stored, classes_of(blocks), transform.tables)
        return torch.from_numpy(integers).to(blocks[0].rows.device)

    def costs(self, stored: Tensors, blocks: Sequence[Block], transform: Transform) -> torch.Tensor:
        """(n,) float32: the bits that each of these integers takes."""
        of_symbols = classes_of(blocks)
        integers = rans.decode(stored, of_symbols, transform.tables)
        bits = rans.costs(integers, of_symbols, transform.tables)
        return torch.from_numpy(bits).to(blocks[0].rows.device)

    def _transform(self, shape: CacheShape) -> Transform:
        """What was learned of this model; raises UsageError where it was of another."""
        transform = fitting(self.calibration, shape.layers, shape.model)
        spans = [{span(shape.layers[i]) for i in group.layers} for group in transform.groups]
        if any(len(of_group) > 1 for of_group in spans):
            raise UsageError(
                f"Layers of {shape.model} that were calibrated together hold different tokens of "
                "this text, for their windows differ",
                "take a shorter context or another method",
            )
        return transform

    def _segments(self, transform: Transform, shape: CacheShape) -> list[Segment]:
        return list(segments(transform.groups, shape, self.sink_tokens))


def refuse_step(step: float) -> None:
    if not 1 / MOST < step < MOST:
        raise UsageError(
            f"A step of {step:g} was given",
            f"above 0, such as {FINE:g} (fine) to {COARSE:g} (coarse)",
        )


def _kept(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _room_of(
    restored: Middles, place: Place, tokens: slice, shape: CacheShape, like: torch.Tensor
) -> torch.Tensor:
    """(heads, tokens, dim), a view: where what a place holds of these positions is restored, in the
    dtype of its layer, on the device of `like`."""
    i, kind = place
    layer = shape.layers[i]
    if place not in restored:
        dtype = getattr(torch, layer.dtype)
        restored[place] = torch.empty(layer.sizes(kind), dtype=dtype, device=like.device)
    return restored[place][:, tokens.start - layer.start : tokens.stop - layer.start]
