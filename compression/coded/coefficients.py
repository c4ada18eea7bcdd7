"""From what a group of layers holds to the integers that are coded, and back: the arithmetic of
`coded`, all tokens of a part of the text at a time."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from compression.coded.groups import Group
from compression.coded.transform import classes, is_stored, magnitudes, rows, scales
from compression.methods.place_by_place import Middles
from compression.shapes import LayerShape
from config import UsageError
from data.cache import LayerKV, by_head

# Tokens of like weight at once, for those that weigh little need few columns: the heaviest, of
# which there are few, then blocks twice as large each, up to what makes a product of matrices fast.
FEWEST, MOST = 16, 256
# Of the tokens beyond the first block, that magnitudes of columns are told by: at even distances,
# and the largest, for a few tokens like no others may be all that there is in a column.
SAMPLED, LARGE = 128, 32
LARGE_MEAN = 4  # times the deviations from it: a chunk's mean counts for its column's magnitude
LARGEST = 2.0**31 - 1  # |integer| that can be coded


def integers_of(
    layers: Sequence[LayerKV], group: Group, tokens: slice, levels: torch.Tensor, step: float
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """What is coded of these of the tokens of a group: codes of magnitude (columns,) uint8, and of
    the coefficients that are stored the integers (n,) int32 and their classes (n,) uint8, column by
    column, in each first that of the mean over tokens and then what is left of each token.

    levels: (1 + tokens,) int16, that of the mean first. A block of tokens that weigh little is
    taken to its first columns alone.
    """
    x = rows(layers, group.places, tokens)  # (tokens, width)
    group, levels = group.on(x.device), levels.to(x.device)
    x -= group.mean
    mean = x.mean(0)
    x -= mean
    of_mean, levels = levels[:1], levels[1:]
    blocks = _alike(levels)
    bands = group.coefficients(torch.cat([mean[None], x[blocks[0]]]))
    means = torch.cat([band[:, 0] for band in bands])  # (columns,)
    heaviest = [band[:, 1:] for band in bands]  # of each (columns, tokens of the block)
    codes = torch.maximum(
        magnitudes(_root_mean_squares(x, group, blocks, torch.cat(heaviest)), step),
        magnitudes(means.abs() / LARGE_MEAN, step),
    )
    codes[~is_stored(classes(codes, torch.maximum(of_mean, levels.max())))[:, 0]] = 0
    rounded = _rounded(means, codes, of_mean, step)
    live = [_live(band != 0) for band in codes.split(group.bands)]
    codes_of_live, rounded_of_live, left = (
        _firsts(each, group.bands, live) for each in (codes, rounded, means - rounded)
    )
    whole = x.new_zeros((sum(live), 1 + len(levels)))
    whole[:, 0] = rounded_of_live
    parts = list(zip(whole.split(live), left[:, None].split(live), strict=True))
    for block in blocks:
        most = _most(codes, levels[block], group)
        of_block = heaviest if block is blocks[0] else group.coefficients(x[block], most)
        for (band, of_mean_left), coefficients, n in zip(parts, of_block, most, strict=True):
            band[:n].index_copy_(1, 1 + block, coefficients[:n] + of_mean_left[:n])
    return codes, *_rounded_integers(whole, codes_of_live, torch.cat([of_mean, levels]), step)


def _root_mean_squares(
    x: torch.Tensor, group: Group, blocks: Sequence[torch.Tensor], heaviest: torch.Tensor
) -> torch.Tensor:
    """(columns,) over all tokens; those beyond the heaviest, of which the coefficients are at hand,
    are told by some of them, but never below what those alone come to."""
    energy = heaviest.square().sum(1)
    if len(blocks) > 1:
        others = torch.cat(list(blocks[1:]))
        norms = torch.linalg.vector_norm(x[others], dim=1)
        large = others[norms.topk(min(LARGE, len(others))).indices]
        some = others[:: -(-len(others) // SAMPLED)]
        both = torch.cat(group.coefficients(x[torch.cat([some, large])])).square()
        of_some, of_large = (part.sum(1) for part in both.split([len(some), len(large)], dim=1))
        energy += torch.maximum(of_some * (len(others) / len(some)), of_large)
    return (energy / len(x)).sqrt()


def _rounded(
    mean: torch.Tensor, codes: torch.Tensor, level: torch.Tensor, step: float
) -> torch.Tensor:
    """(columns,) the mean as it will be restored."""
    scale = scales(level, step)
    kept = is_stored(classes(codes, level))[:, 0]
    return torch.where(kept, (mean * scale).round() / scale, 0.0)


def _rounded_integers(
    coefficients: torch.Tensor, codes: torch.Tensor, levels: torch.Tensor, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Integers (n,) int32 and classes (n,) uint8 of the (columns, tokens) that are stored, in whose
    place they are worked out."""
    entry_classes = classes(codes, levels)
    coded = is_stored(entry_classes)
    symbols = _chosen(coefficients.mul_(scales(levels, step)).round_(), coded)
    if symbols.size and max(symbols.max(), -symbols.min()) >= LARGEST:
        raise UsageError(f"A step of {step:g} is too small for this cache", "give a larger one")
    return symbols.astype(np.int32), _chosen(entry_classes, coded)


def spread(
    entry_classes: Sequence[torch.Tensor], read: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """(columns, tokens) float32 of each group whose entries have these classes: the integers that
    `read` gives for the (n,) classes of all symbols, 0 where there is no symbol."""
    coded = [is_stored(each) for each in entry_classes]
    symbols = [each[is_coded] for each, is_coded in zip(entry_classes, coded, strict=True)]
    integers = read(torch.cat(symbols)).split([len(each) for each in symbols])
    for is_coded, part in zip(coded, integers, strict=True):
        whole = torch.zeros(is_coded.shape, device=part.device)
        yield whole.masked_scatter_(is_coded, part.float())


def restored_places(
    coefficients: torch.Tensor,
    codes: torch.Tensor,
    levels: torch.Tensor,
    group: Group,
    layers: Sequence[LayerShape],
) -> Middles:
    """(heads, tokens, dim) of each place of a group from its (columns, 1 + tokens) coefficients,
    those of their mean first. They are zero beyond the last column that is stored: early for tokens
    that weigh little."""
    group = group.on(levels.device)
    x = coefficients.new_empty(len(levels), len(group.mean))
    for tokens in _alike(levels):
        most = _most(codes, levels[tokens], group)
        bands = zip(coefficients.split(group.bands), most, strict=True)
        x[tokens] = group.content([band[:n].index_select(1, tokens) for band, n in bands])
    x = x[1:].add_(x[0] + group.mean)
    parts = zip(group.places, x.split(group.widths, dim=1), strict=True)
    return {(i, kind): by_head(part, layers[i].n_heads) for (i, kind), part in parts}


def _chosen(x: torch.Tensor, coded: torch.Tensor) -> np.ndarray:
    """(n,) those that are marked, where the coder runs. Numpy picks them out faster on the CPU, an
    accelerator does so before they are moved."""
    if x.device.type == "cpu":
        chosen: np.ndarray = x.numpy()[coded.numpy()]
        return chosen
    moved: np.ndarray = x[coded].cpu().numpy()
    return moved


def _alike(levels: torch.Tensor) -> Sequence[torch.Tensor]:
    """The places of tokens in blocks of like weight, the heaviest first."""
    sizes: list[int] = []
    left = len(levels)
    while left:
        sizes.append(min(left, MOST, FEWEST << len(sizes)))
        left -= sizes[-1]
    blocks: Sequence[torch.Tensor] = levels.argsort(descending=True, stable=True).split(sizes)
    return blocks


def _most(codes: torch.Tensor, levels: torch.Tensor, group: Group) -> list[int]:
    """In each band of a group with these (columns,) codes, how many of the first columns tokens of
    these levels have integers in."""
    stored = is_stored(classes(codes, levels.max()[None]))[:, 0]
    return [_live(band) for band in stored.split(group.bands)]


def _firsts(x: torch.Tensor, bands: Sequence[int], live: Sequence[int]) -> torch.Tensor:
    """Of (columns,) the first of each band, as many as are live."""
    return torch.cat([band[:n] for band, n in zip(x.split(list(bands)), live, strict=True)])


def _live(kept: torch.Tensor) -> int:
    """How many of the (columns,) there are up to the last that is kept."""
    places = kept.nonzero()
    return int(places[-1]) + 1 if len(places) else 0
