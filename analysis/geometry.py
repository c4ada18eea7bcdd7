"""How alike tensors of tokens are, for many of them at once: cosines, linear CKA, subspaces.

Cosines ask whether one is a multiple of another; CKA and subspaces whether both arrange the tokens
alike in any coordinates. A matrix holds all pairs of n tensors.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch

MOST_FLOATS = 1 << 24  # of token kernels held at a time: 64 MiB
SWEEPS, EXTRA_DIRECTIONS = 6, 32  # of the search for leading directions; off by 1e-4 at most


def centred(x: torch.Tensor) -> torch.Tensor:
    """(units, tokens, width) less its mean over tokens; exactly 0 where it is constant."""
    return x - x.mean(1, keepdim=True, dtype=torch.float64).float()


def row_cosines(rows: torch.Tensor) -> torch.Tensor:
    """(n, n) cosines of the rows of (n, width)."""
    return _normalised(_gram([rows]))


def cosines(units: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n, n) cosines of the n tensors that stand in (units, ...); NaN where their shapes differ."""
    shapes = [tuple(x.shape[1:]) for x in units for _ in range(len(x))]
    result = torch.full((len(shapes), len(shapes)), torch.nan, dtype=torch.float64)
    for shape in set(shapes):
        same = torch.tensor([i for i, other in enumerate(shapes) if other == shape])
        x = torch.cat([x for x in units if tuple(x.shape[1:]) == shape]).flatten(1)
        result[same[:, None], same] = _normalised(_gram(torch.split(x, 1 << 14, dim=1)))
    return result


def linear_cka(units: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, n) linear CKA of n units that stand centred in (units, tokens, width), each of its width:
    <K, L> / (|K| |L|) of their token kernels K = X X^T (Kornblith et al., arXiv 1905.00414); NaN
    where one is constant.

    Beside it what chance gives, the more the wider: its mean over all orders of one unit's tokens.
    Takes a few rows of all kernels at a time, so that memory does not grow with the units.
    """
    units = [x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) for x in units]
    n_tokens = units[0].shape[1]
    n_rows = max(1, MOST_FLOATS // max(1, n_tokens * sum(len(x) for x in units)))
    gram = _gram(
        torch.cat([(x[:, rows] @ x.mT).flatten(1) for x in units])
        for rows in torch.split(torch.arange(n_tokens), n_rows)
    )
    norm = gram.diagonal().sqrt()  # of kernels whose trace is 1
    chance = 1 / ((n_tokens - 1) * norm[:, None] * norm)
    return _normalised(gram), chance


def _gram(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """(n, n) inner products of n long vectors that are given in parts (n, entries)."""
    return reduce(torch.Tensor.add_, ((part @ part.T).double() for part in parts))


def _normalised(gram: torch.Tensor) -> torch.Tensor:
    """(n, n) inner products -> cosines; NaN where something is 0 and has no direction."""
    norm = gram.diagonal().sqrt()
    return (gram / norm[:, None] / norm).clamp(-1, 1)


def subspace_overlaps(
    units: Sequence[torch.Tensor], rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, n) mean squared cosine of the principal angles between the spaces of tokens that the
    leading left singular vectors of n centred (tokens, width) span, |U^T V|^2 / r, and beside it
    what chance gives. r is `rank`, or less where one of the two has fewer.
    """
    bases, ranks = _token_bases(units, rank)
    # The corner [:r, :r] of a pair's squared cosines sums to |U^T V|^2 of r directions each.
    sums = torch.einsum("apr,bps->abrs", bases, bases).square().cumsum(2).cumsum(3)
    r = torch.minimum(ranks[:, None], ranks)
    unit, corner = torch.arange(len(units)), (r - 1).clamp(min=0)
    overlap = (sums[unit[:, None], unit, corner, corner] / r).clamp(max=1)
    return overlap, r / (len(units[0]) - 1)


def _token_bases(units: Sequence[torch.Tensor], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, tokens, rank) leading left singular vectors of n centred (tokens, width), zeros after
    the last, and how many there are, (n,); directions within rounding of 0 are none.

    By subspace iteration (Halko, Martinsson and Tropp, 0909.4061): complete decompositions would
    take longer than all other measures together.
    """
    n_tokens = len(units[0])
    start = torch.Generator().manual_seed(0)
    q = torch.randn(n_tokens, min(n_tokens, rank + EXTRA_DIRECTIONS), generator=start)
    bases = q.expand(len(units), -1, -1)
    for _ in range(SWEEPS):
        pairs = zip(units, bases, strict=True)
        bases = torch.linalg.qr(torch.stack([x @ (x.T @ q) for x, q in pairs]))[0]
    # Rotated within the space that they span, (rank + extra, width), to the singular vectors.
    inside = [(q.T @ x).double() for x, q in zip(units, bases, strict=True)]
    squares, turns = torch.linalg.eigh(torch.stack([y @ y.T for y in inside]))
    squares, turns = squares.flip(1)[:, :rank], turns.flip(2)[:, :, :rank]
    rounding = n_tokens * torch.finfo(torch.float32).eps
    is_direction = squares > rounding**2 * squares[:, :1]
    return bases.double() @ turns * is_direction[:, None], is_direction.sum(1)
