"""Central moments of what is seen in blocks: sums of powers about a pivot, in float64.

About a pivot near the mean nothing cancels, and sums of any blocks add up to those of the whole.
"""

import torch


class PowerSums:
    """Of several series, (series, entries) in each block: sums of (x - pivot)^k, k = 1 to 4; the
    pivot is the mean of the first block."""

    def __init__(self) -> None:
        self.n = 0  # entries of a series
        self.pivot = torch.zeros(0)  # (series, 1)
        self.sums = torch.zeros(0)  # (4, series)

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """Take in a block (series, entries) in float64; leaves it less the pivot, in its place."""
        if not self.n:
            self.pivot = x.mean(1, keepdim=True).float().double()  # of equal entries: theirs
            self.sums = torch.zeros(4, len(x), dtype=torch.float64)
        self.n += x.shape[1]
        x -= self.pivot
        square = x.square()
        first, second, third = x.sum(1), square.sum(1), torch.linalg.vecdot(square, x)
        self.sums += torch.stack([first, second, third, square.square_().sum(1)]).cpu()
        return x

    @property
    def offset(self) -> torch.Tensor:
        """(series,) the mean less the pivot."""
        return self.sums[0] / self.n

    @property
    def mean(self) -> torch.Tensor:
        """(series,)"""
        return self.pivot[:, 0].cpu() + self.offset

    def central(self, about: torch.Tensor | None = None) -> torch.Tensor:
        """(2, series) moments 2 and 4 about each series' mean, or about another point."""
        d = self.offset if about is None else about - self.pivot[:, 0].cpu()
        m1, m2, m3, m4 = self.sums / self.n
        second = m2 - 2 * d * m1 + d**2
        fourth = m4 - 4 * d * m3 + 6 * d**2 * m2 - 4 * d**3 * m1 + d**4
        return torch.stack([second, fourth]).clamp(min=0)

    def pooled(self) -> torch.Tensor:
        """(2,) moments 2 and 4 of all series together."""
        return self.central(_mean(self.mean)).mean(1)


def covariance(x: PowerSums, y: PowerSums, products: torch.Tensor) -> torch.Tensor:
    """Of all series together, from the (series,) sums of products of what `add` left of both."""
    within = products / x.n - x.offset * y.offset
    between = (x.mean - _mean(x.mean)) * (y.mean - _mean(y.mean))
    return (within + between).mean()


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Exactly x where all are equal, which n times x over n is not."""
    return x[0] + (x - x[0]).mean()
