"""Sums over the entries of each head that say how its numbers are distributed.

Of 16 bits there are 65,536 numbers. On a CPU it costs less to count how often each occurs, and to
take magnitude, bin and powers once for each, than to take them of every entry: a cache of 16 GiB is
walked in half the time (benchmarks/README.md).
"""

import torch

from analysis import magnitude_bins
from analysis.blocks import Scratch
from analysis.power_sums import PowerSums, over_rows

CODES = 1 << 16

_scratch = Scratch()


class HeadSums:
    """Of x (kv_heads, tokens, dim), sparsity threshold t.

    peak: the maximum of |x|.
    magnitude, square: (kv_heads,) sums of |x| and of x^2, in float64.
    powers: sums of powers of x less a pivot.
    """

    def __init__(self, x: torch.Tensor, threshold: float, octaves: int) -> None:
        self._threshold, self._octaves = threshold, octaves
        self.peak = 0.0
        self.magnitude = torch.zeros(len(x), dtype=torch.float64)
        self.square = torch.zeros(len(x), dtype=torch.float64)
        self.powers = PowerSums(x)
        self._fine_counts = torch.zeros(magnitude_bins.n_fine(octaves), dtype=torch.long)

    @property
    def magnitude_counts(self) -> torch.Tensor:
        """(bins,) entries in each bin of `magnitude_edges`."""
        return magnitude_bins.counts(self._fine_counts)

    def add(self, x: torch.Tensor, magnitude: torch.Tensor, norms: torch.Tensor) -> None:
        """Take in a block (kv_heads, few tokens, dim) less the pivots, its |x| in float32, and its
        norms over dims; overwrites the magnitudes."""
        self.peak = max(self.peak, magnitude.amax().item())
        self.magnitude += over_rows(magnitude.sum(2))
        self.square += over_rows(norms.double().square())
        self.powers.add(x, _scratch)
        ratio = magnitude.div_(self._threshold)
        self._fine_counts += magnitude_bins.fine_counts(ratio, self._octaves)

    def add_counted(self, x: torch.Tensor) -> None:
        """Take in a span (kv_heads, tokens, dim) in 16 bits."""
        of_heads = [_occurring(head) for head in x]
        self.powers.add_counted(of_heads)
        for head, (numbers, times) in enumerate(of_heads):
            magnitude = numbers.abs()
            self.peak = max(self.peak, magnitude.amax().item())
            self.magnitude[head] += magnitude @ times
            self.square[head] += magnitude.square() @ times
            ratio = magnitude.float().div_(self._threshold)
            self._fine_counts += magnitude_bins.fine_counts(ratio, self._octaves, times)


def is_counted(x: torch.Tensor) -> bool:
    """Whether x is counted: elsewhere arithmetic is cheap, and waiting for counts is not."""
    return x.device.type == "cpu" and x.element_size() == 2


def _occurring(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The different numbers in x, of 16 bits, and how often each occurs, both (n,) in float64."""
    codes = _scratch.like(x, "codes").view(torch.int32).flatten()
    codes.copy_(x.reshape(-1).view(torch.int16)).add_(CODES // 2)
    counts = torch.bincount(codes, minlength=CODES)
    occurring = counts.nonzero().squeeze(1)
    numbers = (occurring - CODES // 2).to(torch.int16).view(x.dtype)
    return numbers.double(), counts[occurring].double()
