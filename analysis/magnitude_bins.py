"""Bins of |x| around the sparsity threshold, read off the bits of |x| / threshold: its exponent and
leading mantissa bits."""

import math

import torch

OCTAVE_BITS = 5  # fine steps of 1/32 within a factor of two, put together to 4 bins:
OCTAVE_STARTS = (0, 6, 13, 22)  # 2^(k/4) - 1 in 32nds, rounded: bins of nearly equal log width
OCTAVES_BELOW = 10  # below the threshold; smaller magnitudes share the first bin
MANTISSA_BITS, EXPONENT_BIAS = 23, 127  # of float32


def n_octaves(percentage: float) -> int:
    """Factors of two that are told apart, where the threshold is that % of the maximum."""
    return OCTAVES_BELOW + _above(percentage)


def _above(percentage: float) -> int:
    """Factors of two from the threshold to beyond the maximum."""
    return math.floor(math.log2(100 / percentage)) + 1


def n_fine(octaves: int) -> int:
    """Fine bins, of which the first holds all smaller magnitudes."""
    return 1 + (octaves << OCTAVE_BITS)


def fine_counts(
    ratio: torch.Tensor, octaves: int, times: torch.Tensor | None = None
) -> torch.Tensor:
    """(fine bins,) entries of |x| / threshold, float32, in each fine bin; overwrites `ratio`.

    times: how often each entry counts, in float64; once where not given.
    A float's exponent and leading mantissa bits, read as one integer, number its bin. Division
    rounds monotonically, so 1 is an exact edge.
    """
    first = (EXPONENT_BIAS - OCTAVES_BELOW) << OCTAVE_BITS
    fine = ratio.view(torch.int32).bitwise_right_shift_(MANTISSA_BITS - OCTAVE_BITS)
    fine.sub_(first - 1).clamp_(0, octaves << OCTAVE_BITS)
    return torch.bincount(fine.flatten(), times, minlength=n_fine(octaves)).long().cpu()


def counts(fine: torch.Tensor) -> torch.Tensor:
    """(bins,), 1 + 4 x octaves: entries per bin, of those per fine bin."""
    ends = (*OCTAVE_STARTS[1:], 1 << OCTAVE_BITS)
    by_octave = fine[1:].view(-1, 1 << OCTAVE_BITS)
    bins = [by_octave[:, a:b].sum(1) for a, b in zip(OCTAVE_STARTS, ends, strict=True)]
    return torch.cat([fine[:1], torch.stack(bins, dim=1).flatten()])


def magnitude_edges(threshold: float, percentage: float) -> torch.Tensor:
    """(bins + 1,) edges of the magnitude bins: 0, then 4 to each factor of two up to beyond the
    maximum; the threshold is one of them."""
    exponents = torch.arange(-OCTAVES_BELOW, _above(percentage), dtype=torch.float64)
    steps = 1 + torch.tensor(OCTAVE_STARTS, dtype=torch.float64) / (1 << OCTAVE_BITS)
    edges = (2.0 ** exponents[:, None] * steps).flatten().tolist()
    last = 2.0 ** _above(percentage)
    return threshold * torch.tensor([0.0, *edges, last], dtype=torch.float64)
