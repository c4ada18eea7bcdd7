"""Which coefficients of a group are coded, and in which order: block by block of tokens of like
weight, in each the first columns alone, for tokens that weigh little need few. What is not in a
block is never touched. Both sides tell it from codes of magnitude and levels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from compression.coded.transform import classes, is_stored

# Tokens at once: the heaviest, of which there are few, then blocks each twice as large as the one
# before, up to what makes a product of matrices fast.
FEWEST, MOST = 64, 256


@dataclass(frozen=True, eq=False)
class Block:
    """rows: (n,) places among the levels: 0 is the mean over tokens, in the first block alone, and
    t + 1 is token t. most: how many of its first columns each band has integers in. classes:
    (columns, n) uint8 of those, band after band. coded: (columns, n), where an integer stands."""

    rows: torch.Tensor
    most: list[int]
    classes: torch.Tensor
    coded: torch.Tensor

    @cached_property
    def n_coded(self) -> int:
        return int(self.coded.sum())

    @property
    def symbol_classes(self) -> np.ndarray:
        """(integers,) uint8, column by column."""
        return self.chosen(self.classes)

    def chosen(self, x: torch.Tensor) -> np.ndarray:
        """(integers,) of (columns, n), column by column, where the coder runs. Numpy picks them out
        faster on the CPU, an accelerator does so before they are moved."""
        if x.device.type == "cpu":
            picked: np.ndarray = x.numpy()[self.coded.numpy()]
            return picked
        moved: np.ndarray = x[self.coded].cpu().numpy()
        return moved

    def filled(self, integers: torch.Tensor) -> torch.Tensor:
        """(columns, n) float32 of the (integers,), 0 where there is none."""
        whole = torch.zeros(self.coded.shape, device=integers.device)
        return whole.masked_scatter_(self.coded, integers.float())


def blocks_of(codes: torch.Tensor, levels: torch.Tensor, bands: Sequence[int]) -> list[Block]:
    """The mean with the heaviest tokens, then the others, from the (columns,) codes of magnitude of
    these bands and the (1 + tokens,) levels, that of the mean first."""
    first, *others = (1 + tokens for tokens in alike(levels[1:]))
    rows = [torch.cat([first.new_zeros(1), first]), *others]
    return [_block(codes, levels, bands, of_block) for of_block in rows]


def alike(levels: torch.Tensor) -> Sequence[torch.Tensor]:
    """The places of tokens with these levels in blocks of like weight, the heaviest first."""
    sizes: list[int] = []
    left = len(levels)
    while left:
        size = min(MOST, FEWEST << len(sizes))
        sizes.append(size if left - size > FEWEST else left)  # few are no block of their own
        left -= sizes[-1]
    places: Sequence[torch.Tensor] = levels.argsort(descending=True, stable=True).split(sizes)
    return places


def first_columns(x: torch.Tensor, bands: Sequence[int], most: Sequence[int]) -> torch.Tensor:
    """Of (columns, ...) the first of each band, so many."""
    return torch.cat([band[:n] for band, n in zip(x.split(list(bands)), most, strict=True)])


def spread(
    of_groups: Sequence[Sequence[Block]], read: Callable[[Sequence[Block]], torch.Tensor]
) -> list[list[tuple[Block, torch.Tensor]]]:
    """The blocks of each group, each with what `read` gives for its integers, out of the
    (integers,) of all blocks."""
    every = [block for group in of_groups for block in group]
    parts = iter(read(every).split([block.n_coded for block in every]))
    return [[(block, next(parts)) for block in group] for group in of_groups]


def classes_of(blocks: Sequence[Block]) -> np.ndarray:
    """(integers,) uint8 of all of them."""
    return np.concatenate([np.zeros(0, np.uint8), *(block.symbol_classes for block in blocks)])


def _block(
    codes: torch.Tensor, levels: torch.Tensor, bands: Sequence[int], rows: torch.Tensor
) -> Block:
    stored = is_stored(classes(codes, levels[rows].max()[None]))[:, 0]
    most = [_last(band) for band in stored.split(list(bands))]
    of_entries = classes(first_columns(codes, bands, most), levels[rows])
    return Block(rows, most, of_entries, is_stored(of_entries))


def _last(stored: torch.Tensor) -> int:
    """How many of the (columns,) there are up to the last that is stored."""
    places = stored.nonzero()
    return int(places[-1]) + 1 if len(places) else 0
