"""From what a group of layers holds to the integers that are coded, and back: the arithmetic of
`coded`, all tokens of a part of the text at a time."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from compression.coded.blocks import MOST, Block, alike, blocks_of, classes_of, first_columns
from compression.coded.groups import Group
from compression.coded.products import Products, fast_dtype
from compression.coded.transform import classes, is_stored, magnitudes, rows, scales
from compression.methods.place_by_place import Middles
from config import UsageError
from data.cache import LayerKV, by_head
from data.rotary import Rotary

# Of the tokens beyond the first block, that magnitudes of columns are told by: at even distances,
# and the largest, for a few tokens like no others may be all that there is in a column.
SAMPLED, LARGE = 128, 32
LARGE_MEAN = 4  # times the deviations from it: a chunk's mean counts for its column's magnitude
LARGEST = 2.0**31 - 1  # |integer| that can be coded
# From this step on products are in 16 bits where the hardware has them. On the default model that
# adds 6 % to the KL divergence at this step and 2 to 3 % at 2e-4, for half of the time.
FAST_FROM = 7e-5
OfTokens = tuple[torch.Tensor, torch.Tensor]  # (tokens,) their places, (tokens, width)


def integers_of(
    layers: Sequence[LayerKV], group: Group, tokens: slice, levels: torch.Tensor, step: float
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """What is coded of these of the tokens of a group: codes of magnitude (columns,) uint8, and of
    the coefficients that are stored the integers (n,) int32 and their classes (n,) uint8, block by
    block: of the mean over tokens, and of what is left of each token.

    levels: (1 + tokens,) int16, that of the mean first. A block of tokens that weigh little is
    taken to its first columns alone.
    """
    x = rows(layers, group.places, tokens)  # (tokens, width)
    levels = levels.to(x.device)
    products = _products(group, x.device, step)
    x -= products.mean
    mean = x.mean(0)
    x -= mean
    heaviest, *lighter = alike(levels[1:])
    of_first = products.coefficients(torch.cat([mean[None], x[heaviest]]))  # (columns, tokens)
    means, of_heaviest = of_first[:, 0], of_first[:, 1:]
    codes = torch.maximum(
        magnitudes(_root_mean_squares(x, products, lighter, of_heaviest), step),
        magnitudes(means.abs() / LARGE_MEAN, step),
    )
    codes[~is_stored(classes(codes, levels.max()[None]))[:, 0]] = 0
    left = (means - _restored_mean(means, codes, levels[:1], step))[:, None]
    of_heaviest += left
    first, *others = blocks_of(codes, levels, group.bands)
    integers = [_rounded(first_columns(of_first, group.bands, first.most), first, levels, step)]
    for block in others:
        off_mean = products.coefficients(x[block.rows - 1], block.most)
        off_mean += first_columns(left, group.bands, block.most)
        integers.append(_rounded(off_mean, block, levels, step))
    return codes, np.concatenate(integers), classes_of([first, *others])


def _root_mean_squares(
    x: torch.Tensor, products: Products, lighter: list[torch.Tensor], of_heaviest: torch.Tensor
) -> torch.Tensor:
    """(columns,) over all tokens. Those beyond the heaviest, of which the coefficients are at hand,
    are told by some of them, but never below what those alone come to. lighter: their places, block
    by block."""
    energy = of_heaviest.square().sum(1)
    if lighter:
        others = torch.cat(lighter)
        norms = torch.linalg.vector_norm(x[others], dim=1)
        large = others[norms.topk(min(LARGE, len(others))).indices]
        some = others[:: -(-len(others) // SAMPLED)]
        both = products.coefficients(x[torch.cat([some, large])]).square()
        of_some, of_large = (part.sum(1) for part in both.split([len(some), len(large)], dim=1))
        energy += torch.maximum(of_some * (len(others) / len(some)), of_large)
    return (energy / len(x)).sqrt()


def _restored_mean(
    means: torch.Tensor, codes: torch.Tensor, level: torch.Tensor, step: float
) -> torch.Tensor:
    """(columns,) the mean as it will be restored."""
    scale = scales(level, step)
    kept = is_stored(classes(codes, level))[:, 0]
    return torch.where(kept, (means * scale).round() / scale, 0.0)


def _rounded(
    coefficients: torch.Tensor, block: Block, levels: torch.Tensor, step: float
) -> np.ndarray:
    """Integers (n,) int32 of a block, in the place of whose (columns, tokens) coefficients they are
    worked out."""
    integers = block.chosen(coefficients.mul_(scales(levels[block.rows], step)).round_())
    if integers.size and max(integers.max(), -integers.min()) >= LARGEST:
        raise UsageError(f"A step of {step:g} is too small for this cache", "give a larger one")
    return integers.astype(np.int32)


def restore(
    coded: Iterable[tuple[Block, torch.Tensor]],
    levels: torch.Tensor,
    step: float,
    group: Group,
    rotaries: Sequence[Rotary | None],
    positions: torch.Tensor,
    into: Middles,
) -> None:
    """Write what the places of a group hold of its tokens into (heads, tokens, dim) of each, keys
    turned to their (tokens,) positions by the rotary embedding of their layer, where it is told.

    coded: the blocks with their integers. levels: (1 + tokens,) int16, that of the mean first.
    """
    positions = positions.to(levels.device)
    embeddings = {each for i in group.layers if (each := rotaries[i]) is not None}
    for tokens, x in _joined(_contents(coded, levels, step, group)):
        turns = {each: each.turn(positions[tokens]) for each in embeddings}
        for (i, kind), part in zip(group.places, x.split(group.widths, dim=1), strict=True):
            place, rotary = into[i, kind], rotaries[i]
            content = by_head(part, len(place))
            if kind == "key" and rotary is not None:
                content = turns[rotary].forward(content)
            place[:, tokens] = content.to(place.dtype)


def _contents(
    coded: Iterable[tuple[Block, torch.Tensor]], levels: torch.Tensor, step: float, group: Group
) -> Iterator[OfTokens]:
    """What all places hold of the tokens of each block, keys before rotary embedding."""
    products = _products(group, levels.device, step)
    mean = products.mean
    for number, (block, integers) in enumerate(coded):
        x = products.content(block.filled(integers), block.most)
        x /= scales(levels[block.rows], step)[:, None]
        tokens = block.rows - 1
        if number == 0:
            mean, x, tokens = mean + x[0], x[1:], tokens[1:]
        x += mean
        yield tokens, x


def _joined(blocks: Iterable[OfTokens]) -> Iterator[OfTokens]:
    """The same, small blocks together: what is done for each place is done as rarely as can be."""
    held: list[OfTokens] = []
    for block in blocks:
        held.append(block)
        if sum(len(tokens) for tokens, _ in held) >= MOST:
            yield _cat(held)
            held = []
    if held:
        yield _cat(held)


def _cat(blocks: Sequence[OfTokens]) -> OfTokens:
    if len(blocks) == 1:
        return blocks[0]
    tokens, x = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return tokens, x


def _products(group: Group, device: torch.device, step: float) -> Products:
    return group.products(device, fast_dtype(device) if step >= FAST_FROM else torch.float32)
