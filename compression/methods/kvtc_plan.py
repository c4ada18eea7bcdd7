"""How many bits each principal direction of KVTC gets: the plan with the least squared error on
calibration data within a budget, by dynamic programming over neighbouring columns.

A plan is a row of runs (bits, columns), from the directions of most variance on: 0 bits store
nothing; 8 are E4M3 floats, each column by a scale that is the model's; 4 and 2 are integers between
the smallest and the largest of the run in each token, with a step and a zero in 16 bits.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

BLOCK = 16  # columns: runs begin at multiples of it
SIZES = (1, 4, 16, 64)  # blocks of a run of integers: 16 to 1024 columns
INTEGERS = (2, 4)  # bits
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SIDE_BITS = 32  # a step and a zero
TINY = 1e-30  # stands in for a step of zero where one is divided by

Runs = list[tuple[int, int]]  # (bits, columns)


def min_max(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 codes of x (tokens, columns), and the step and zero (tokens, 1) of each token in
    bfloat16, which never overflows: its rounding is far below a step of so few bits."""
    zero = x.amin(1, keepdim=True).bfloat16()
    step = ((x.amax(1, keepdim=True) - zero.float()) / (2**bits - 1)).clamp(min=0).bfloat16()
    codes = ((x - zero.float()) / step.float().clamp(min=TINY)).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), step, zero


def from_min_max(codes: torch.Tensor, step: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    return codes.float() * step.float() + zero.float()


def as_floats(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x (tokens, columns) in 8-bit floats, each column over its scale."""
    return (x / scales).clamp(-LARGEST, LARGEST).to(FP8)


class Run(NamedTuple):
    """A way to store `blocks` blocks of columns that begin at block `start`. cost: in units of
    SIDE_BITS. error: squared, over all calibration tokens."""

    start: int
    blocks: int
    bits: int
    cost: int
    error: float


def possible_runs(x: torch.Tensor, scales: torch.Tensor) -> Iterator[Run]:
    """All runs of calibration coefficients x (tokens, columns), columns a multiple of BLOCK."""
    n_blocks = x.shape[1] // BLOCK
    by_block = (-1, n_blocks, BLOCK)
    dropped = x.square().view(by_block).sum((0, 2)).tolist()
    in_floats = (as_floats(x, scales).float() * scales - x).square().view(by_block).sum((0, 2))
    for start, (nothing, floats) in enumerate(zip(dropped, in_floats.tolist(), strict=True)):
        yield Run(start, 1, 0, 0, nothing)
        yield Run(start, 1, 8, 8 * BLOCK // SIDE_BITS, floats)
    for size in SIZES:
        for start in range(n_blocks - size + 1):
            part = x[:, start * BLOCK : (start + size) * BLOCK]
            for bits in INTEGERS:
                error = (from_min_max(*min_max(part, bits)) - part).square().sum().item()
                yield Run(start, size, bits, bits * size * BLOCK // SIDE_BITS + 1, error)


def best_plans(runs: Iterable[Run], n_blocks: int, budgets: Iterable[int]) -> list[Runs]:
    """For each budget, in units of SIDE_BITS, the runs over all blocks with the least error."""
    budgets = list(budgets)
    ending: dict[int, list[Run]] = {end: [] for end in range(n_blocks + 1)}
    for run in runs:
        ending[run.start + run.blocks].append(run)
    least = np.full((n_blocks + 1, max(budgets) + 1), np.inf)  # [blocks, budget]
    least[0] = 0
    chosen = np.zeros(least.shape, np.int32)
    for end in range(1, n_blocks + 1):
        for number, run in enumerate(ending[end]):
            within = least.shape[1] - run.cost
            if within <= 0:
                continue
            total = least[run.start, :within] + run.error
            better = total < least[end, run.cost :]
            least[end, run.cost :][better] = total[better]
            chosen[end, run.cost :][better] = number
    return [_walked_back(ending, chosen, n_blocks, budget) for budget in budgets]


def _walked_back(
    ending: dict[int, list[Run]], chosen: np.ndarray, n_blocks: int, budget: int
) -> Runs:
    taken, end = [], n_blocks
    while end:
        run = ending[end][chosen[end, budget]]
        taken.append((run.bits, run.blocks * BLOCK))
        end, budget = run.start, budget - run.cost
    return joined(reversed(taken))


def joined(runs: Iterable[tuple[int, int]]) -> Runs:
    """The same with neighbours in one that need no step of their own, and no end without bits."""
    plan: Runs = []
    for bits, each in groupby(runs, key=lambda run: run[0]):
        sizes = [size for _, size in each]
        plan += [(bits, size) for size in (sizes if bits in INTEGERS else [sum(sizes)])]
    while plan and not plan[-1][0]:
        plan.pop()
    return plan
