"""From what a group of layers holds to the integers that are coded, and back: the arithmetic of
`coded`, all tokens of a part of the text at a time."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from compression.coded.blocks import Block, alike, blocks_of, firsts
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
# From this step on most products are as coarse as is fast. At it this adds 6 % to the KL divergence
# of the default model, at 2e-4 2 %, for a bit more than half of the time.
FAST_FROM = 7e-5


def integers_of(
    layers: Sequence[LayerKV], group: Group, tokens: slice, levels: torch.Tensor, step: float
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """What is coded of these of the tokens of a group: codes of magnitude (columns,) uint8, and of
    the coefficients that are stored the integers (n,) int32 and their classes (n,) uint8, block by
    block, first those of the mean over tokens and then what is left of each token.

    levels: (1 + tokens,) int16, that of the mean first. A block of tokens that weigh little is
    taken to its first columns alone.
    """
    x = rows(layers, group.places, tokens)  # (tokens, width)
    levels = levels.to(x.device)
    exact, fast = _exact_and_fast(group, x.device, step)
    x -= exact.mean
    mean = x.mean(0)
    x -= mean
    heaviest = alike(levels[1:])[0]
    both = exact.coefficients(torch.cat([mean[None], x[heaviest]]))
    means, of_heaviest = both[:, :1], both[:, 1:]  # (columns, tokens)
    codes = torch.maximum(
        magnitudes(_root_mean_squares(x, fast, levels[1:], of_heaviest), step),
        magnitudes(means[:, 0].abs() / LARGE_MEAN, step),
    )
    codes[~is_stored(classes(codes, levels.max()[None]))[:, 0]] = 0
    of_mean, first, *others = blocks_of(codes, levels, group.bands)
    left = means - _restored_mean(means, codes, levels[:1], step)
    integers = [_rounded(firsts(means, group.bands, of_mean.most), of_mean, levels, step)]
    for block in (first, *others):
        if block is first:
            off_mean = firsts(of_heaviest, group.bands, block.most)
        else:
            off_mean = fast.coefficients(x[block.rows - 1], block.most)
        off_mean += firsts(left, group.bands, block.most)
        integers.append(_rounded(off_mean, block, levels, step))
    of_integers = [block.chosen(block.classes) for block in (of_mean, first, *others)]
    return codes, np.concatenate(integers), np.concatenate(of_integers)


def _root_mean_squares(
    x: torch.Tensor, products: Products, levels: torch.Tensor, of_heaviest: torch.Tensor
) -> torch.Tensor:
    """(columns,) over all tokens; those beyond the heaviest, of which the coefficients are at hand,
    are told by some of them, but never below what those alone come to."""
    energy = of_heaviest.square().sum(1)
    _, *lighter = alike(levels)
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
    """(columns, 1) the mean as it will be restored."""
    scale = scales(level, step)
    return torch.where(is_stored(classes(codes, level)), (means * scale).round() / scale, 0.0)


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

    coded: the blocks with their integers, that of the mean first. levels: (1 + tokens,) int16.
    """
    exact, fast = _exact_and_fast(group, levels.device, step)
    positions, mean = positions.to(levels.device), exact.mean
    for number, (block, integers) in enumerate(coded):
        products = exact if number < 2 else fast
        x = products.content(block.filled(integers), block.most)  # (tokens, width)
        x = torch.addcdiv(mean, x, scales(levels[block.rows], step)[:, None])
        if number == 0:
            mean = x
            continue
        tokens = block.rows - 1
        for (i, kind), part in zip(group.places, x.split(group.widths, dim=1), strict=True):
            place, rotary = into[i, kind], rotaries[i]
            content = by_head(part, len(place))
            if kind == "key" and rotary is not None:
                content = rotary.rotated(content, positions[tokens])
            place.index_copy_(1, tokens, content.to(place.dtype))


def _exact_and_fast(group: Group, device: torch.device, step: float) -> tuple[Products, Products]:
    """For the mean, whose errors all tokens have in common, and the heaviest; and for the others,
    which most of the work is for."""
    dtype = fast_dtype(device) if step >= FAST_FROM else torch.float32
    return group.products(device), group.products(device, dtype)
