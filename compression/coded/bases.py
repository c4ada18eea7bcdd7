"""An orthonormal basis in few bits, more of them for columns that hold more.

It is kept as the reflections that make it up (Householder, 1958), of which each has a number less
than the one before it: a basis of n columns can be turned in n (n - 1) / 2 ways only. Their numbers
are integers of a step, entropy coded by how large those of a column are in each place. However
coarse they are, each is made a reflection again, so that what is read is orthonormal.

What a column is off its direction picks up energy of the others, and they of it: an error of one
that holds much costs all. So steps are the shorter the wider a column's coefficients spread, as
reverse water-filling has it: every column leaks the same. docs/codec.md says what it costs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compression.coded import rans, tables
from compression.deflated import deflated_tensor, inflated_tensor
from compression.stored import Tensors, refuse_left, taken

# Of the steps; the first that there is room for is taken, and finer ones gain nothing.
COARSENESS = (0.35, 0.5, 0.7, 1, 1.4, 2, 2.8)
WIDEST = 2  # steps are no longer than this many times that of the usual column of the last quarter
CODED = {"state": (torch.int32,), "words": (torch.int16,)}  # always there of what rans.py stores
# What is kept: (width, columns) orthonormal columns, the (columns,) standard deviations of their
# coefficients, which fall, and how many of the rows are of each place.
Directions = tuple[torch.Tensor, torch.Tensor, Sequence[int]]


def fitting(
    directions: Sequence[Directions], room: float, frequencies: np.ndarray | None = None
) -> tuple[list[Tensors], np.ndarray]:
    """What is stored of each basis, with steps as short as `room` bytes allow, or the longest; and
    the tables of their integers, which are counted where none are given."""
    reflections = [_reflections(basis) for basis, *_ in directions]
    for coarseness in COARSENESS:
        quantised = [
            _quantised(of_basis, _steps(spread, coarseness), sizes)
            for of_basis, (_, spread, sizes) in zip(reflections, directions, strict=True)
        ]
        counts = sum((each.counts for each in quantised), np.zeros((1, 1)))
        of_all = tables.frequencies(counts) if frequencies is None else frequencies
        n_bytes = sum(each.classes.numel() + 2 * len(each.steps) for each in quantised)
        if n_bytes + tables.n_bytes(counts, of_all) <= room:
            break
    coder = rans.Tables(of_all)
    return [each.stored(coder) for each in quantised], of_all


def orthonormal(stored: Tensors, sizes: Sequence[int], coder: rans.Tables) -> torch.Tensor:
    """(width, columns) float32, out of what is stored; columns may have the other sign. Takes out
    what is stored, raises ValueError for what `fitting` has not given."""
    width = sum(sizes)
    steps = _steps_of(stored, width)
    classes = inflated_tensor(taken(stored, "classes", (torch.uint8,), None), len(sizes) * width)
    classes = classes.view(len(sizes), width).cumsum(1, dtype=torch.uint8)
    if (classes >= tables.N_CLASSES).any():
        raise ValueError("a basis has numbers of no class")
    coded = _coded(classes, sizes)
    integers = rans.decode(stored, _of_entries(classes, sizes)[coded].numpy(), coder)
    below = torch.zeros(width, width)
    below[coded] = torch.from_numpy(integers).float()
    return _product(below.mul_(steps))


def refuse_misfit(stored: Tensors, width: int) -> None:
    """Take out what is of a basis of so many columns, or of none; raise ValueError for tensors that
    are not stored of one. What they hold is for `orthonormal` to refuse, which takes longer."""
    if width:
        _steps_of(stored, width)
        taken(stored, "classes", (torch.uint8,), None)
        for name, dtypes in CODED.items():
            taken(stored, name, dtypes, rans.n_stored(stored, name))
        if "escapes" in stored:
            taken(stored, "escapes", (torch.int16, torch.int32), None)
    refuse_left(stored)


@dataclass(frozen=True)
class _Quantised:
    """steps: (columns,) float16. classes: (places, columns) uint8. integers: (n,) int32 of those
    entries that are coded. of_integers: (n,) uint8, their classes."""

    steps: torch.Tensor
    classes: torch.Tensor
    integers: np.ndarray
    of_integers: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return tables.counted(self.integers, self.of_integers)

    def stored(self, coder: rans.Tables) -> Tensors:
        first = self.classes.new_zeros(len(self.classes), 1)
        differences = self.classes.diff(prepend=first, dim=1)
        return {"steps": self.steps, "classes": deflated_tensor(differences)} | rans.encode(
            self.integers, self.of_integers, coder
        )


def _quantised(reflections: torch.Tensor, steps: torch.Tensor, sizes: Sequence[int]) -> _Quantised:
    whole = reflections / steps.float()
    below = torch.ones_like(whole).tril(-1)
    place = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    energy, n = (
        torch.zeros(len(sizes), len(whole)).index_add_(0, place, x)
        for x in (whole.square() * below, below)
    )
    octaves = torch.log2((energy / n.clamp(min=1)).sqrt().clamp(min=1e-9))
    classes = (4 * octaves).round().clamp(tables.LOWEST, tables.HIGHEST) - tables.LOWEST
    classes = classes.to(torch.uint8)
    coded = _coded(classes, sizes)
    integers = whole[coded].round().numpy().astype(np.int32)
    return _Quantised(steps, classes, integers, _of_entries(classes, sizes)[coded].numpy())


def _of_entries(classes: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """(width, columns), from those of (places, columns)."""
    return classes.repeat_interleave(torch.tensor(sizes), dim=0)


def _coded(classes: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """(width, columns): which entries have integers, all of them below the diagonal."""
    return _of_entries(classes >= tables.SKIPPED - tables.LOWEST, sizes).tril(-1)


def _steps(spread: torch.Tensor, coarseness: float) -> torch.Tensor:
    """(columns,) float16, so that what a column spreads times its step is the same for all that
    spread as wide as half the usual one of the last quarter."""
    usual = spread[-max(1, len(spread) // 4) :].median().clamp(min=1e-30)
    of_usual = 2 * coarseness / math.sqrt(len(spread))
    return (of_usual * usual / torch.maximum(spread, usual / WIDEST)).clamp(min=1e-7).half()


def _steps_of(stored: Tensors, width: int) -> torch.Tensor:
    steps = taken(stored, "steps", (torch.float16,), width)
    if not (steps > 0).all() or not steps.isfinite().all():
        raise ValueError("a basis has steps that are not above 0")
    return steps.float()


def _reflections(basis: torch.Tensor) -> torch.Tensor:
    """(width, columns): below the diagonal w of each reflection 1 - w w'. On the diagonal, w is
    what makes its square 2."""
    vectors, scales = torch.geqrf(basis.float())
    return vectors.tril(-1) * scales.clamp(min=0).sqrt()


def _product(below: torch.Tensor) -> torch.Tensor:
    """(width, columns) of reflections, what was below the diagonal of each. Its square is at most
    1 there: the diagonal is chosen so."""
    below *= below.square().sum(0).clamp(min=1).rsqrt()
    diagonal = (2 - below.square().sum(0)).sqrt()
    vectors = below / diagonal + torch.eye(len(below))
    product: torch.Tensor = torch.linalg.householder_product(vectors, diagonal.square())
    return product
