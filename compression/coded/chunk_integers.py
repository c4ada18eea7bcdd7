"""Between what layers hold of a chunk and the integers that are coded, with what both sides must
know of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compression.coded import rans
from compression.coded.blocks import Block, blocks_of, classes_of, spread
from compression.coded.chunk_bytes import Chunk
from compression.coded.coefficients import integers_of, restore
from compression.coded.groups import Group
from compression.coded.transform import Transform, level_of_mean
from compression.methods.place_by_place import Middles
from compression.shapes import LayerShape
from compression.stored import refuse_left
from data.cache import LayerKV


@dataclass(frozen=True)
class Quantised:
    """skips: of each group how many of the chunk's first tokens it does not hold. levels:
    (1 + tokens,) int16 of the mean and the tokens. codes: (columns,) uint8. integers, classes:
    (n,)."""

    skips: list[int]
    levels: torch.Tensor
    codes: torch.Tensor
    integers: np.ndarray
    classes: np.ndarray


def quantised(
    transform: Transform, layers: Sequence[LayerKV], n_sinks: int, n_tokens: int, step: float
) -> Quantised:
    """A chunk before the entropy coder, without its sinks."""
    levels = transform.levels_without_queries(layers, n_tokens)
    levels = torch.cat([level_of_mean(levels), levels])
    skips = [n_tokens - layers[group.layers[0]].n_tokens for group in transform.groups]
    codes = [torch.zeros(g.columns, dtype=torch.uint8) for g in transform.groups]
    integers, of_integers = [np.zeros(0, np.int32)], [np.zeros(0, np.uint8)]
    for g, group, tokens in _coded(transform, skips, n_sinks, n_tokens):
        held = slice(tokens.start - skips[g], None)
        code, q, of_q = integers_of(layers, group, held, levels[_with_mean(tokens)], step)
        codes[g] = code.cpu()
        integers.append(q)
        of_integers.append(of_q)
    return Quantised(
        skips, levels, torch.cat(codes), np.concatenate(integers), np.concatenate(of_integers)
    )


def restore_into(
    places: Middles, chunk: Chunk, transform: Transform, layers: Sequence[LayerShape]
) -> None:
    """places: of each (heads, tokens, dim), all that it holds of the chunk; what stands behind the
    sinks is written. Raises ValueError for integers that do not end where they began."""
    device = next(iter(places.values())).device
    columns = [group.columns for group in transform.groups]
    levels = torch.from_numpy(chunk.levels.astype(np.int16)).to(device)
    codes = torch.from_numpy(chunk.codes).to(device).split(columns)
    of_groups = list(_coded(transform, chunk.skips.tolist(), chunk.n_sinks, chunk.n_tokens))
    with_mean = [levels[_with_mean(tokens)] for *_, tokens in of_groups]
    laid_out = [
        blocks_of(codes[g], of_group, group.bands)
        for (g, group, _), of_group in zip(of_groups, with_mean, strict=True)
    ]
    left = chunk.stream

    def read(every: Sequence[Block]) -> torch.Tensor:
        integers = rans.decode(left, classes_of(every), transform.tables)
        return torch.from_numpy(integers).to(device)

    rotaries = [layer.rotary for layer in layers]
    for (_, group, tokens), of_group, of_blocks in zip(
        of_groups, with_mean, spread(laid_out, read), strict=True
    ):
        positions = torch.arange(chunk.start + tokens.start, chunk.start + tokens.stop)
        into = {place: places[place][:, -len(positions) :] for place in group.places}
        restore(of_blocks, of_group, chunk.step, group, rotaries, positions, into)
    refuse_left(left)


def first_coded(first: int, n_sinks: int, n_tokens: int) -> int:
    """The first token of the chunk that is coded where those before `first` are not held: sinks
    are the first tokens of a text, and in no window that has forgotten some."""
    return min(n_tokens, n_sinks if first < n_sinks else first)


def _coded(
    transform: Transform, skips: Sequence[int], n_sinks: int, n_tokens: int
) -> Iterator[tuple[int, Group, slice]]:
    """The groups with tokens that are coded: number, group, those tokens of the chunk."""
    for g, group in enumerate(transform.groups):
        first = first_coded(skips[g], n_sinks, n_tokens)
        if first < n_tokens:
            yield g, group, slice(first, n_tokens)


def _with_mean(tokens: slice) -> list[int]:
    """The places of levels for the mean and these tokens."""
    return [0, *range(1 + tokens.start, 1 + tokens.stop)]
