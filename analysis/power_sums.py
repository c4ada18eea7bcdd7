"""Central moments of what is seen in blocks: sums of powers about a pivot.

About a pivot near the mean nothing cancels, and sums of any blocks add up to those of the whole.
Powers of entries are taken in float32 and summed over a row's dims in it; rows are summed in
float64, and powers of counted numbers are taken in it.
"""

from collections.abc import Sequence

import torch

from analysis.blocks import Scratch

PIVOT_TOKENS = 64  # whose mean is the pivot, whatever the blocks are
POWERS = 4


class PowerSums:
    """Of each head of x (kv_heads, tokens, dim): sums of (x - pivot)^k, k = 1 to 4."""

    def __init__(self, x: torch.Tensor) -> None:
        first = x[:, :PIVOT_TOKENS].cpu().double()
        self.n = 0  # entries of a head
        self.pivot = first.mean((1, 2), keepdim=True).float()  # of equal entries: theirs
        self.sums = torch.zeros(POWERS, len(x), dtype=torch.float64)

    def centre(self, x: torch.Tensor) -> torch.Tensor:
        """x (kv_heads, few tokens, dim) in float32 less the pivots, in its own memory."""
        return x.sub_(self.pivot.to(x.device))

    def add(self, x: torch.Tensor, scratch: Scratch) -> None:
        """Take in a block (kv_heads, few tokens, dim) in float32, less the pivots."""
        self.n += x.shape[1] * x.shape[2]
        square = torch.mul(x, x, out=scratch.like(x, "square"))
        rows = [x.sum(2), square.sum(2)]
        rows.append(torch.mul(square, x, out=scratch.like(x, "cube")).sum(2))
        rows.append(square.mul_(square).sum(2))
        self.sums += over_rows(torch.stack(rows))

    def add_counted(self, of_heads: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take in each head's different numbers, and how often each occurs, both (n,) in
        float64."""
        self.n += int(of_heads[0][1].sum().item())
        for head, (numbers, times) in enumerate(of_heads):
            powers = torch.stack([numbers - self._pivot[head]] * POWERS).cumprod(0)  # (powers, n)
            self.sums[:, head] += powers @ times

    @property
    def offset(self) -> torch.Tensor:
        """(kv_heads,) the mean less the pivot."""
        return self.sums[0] / self.n

    @property
    def mean(self) -> torch.Tensor:
        """(kv_heads,)"""
        return self._pivot + self.offset

    @property
    def _pivot(self) -> torch.Tensor:
        return self.pivot[:, 0, 0].double()

    def central(self, about: torch.Tensor | None = None) -> torch.Tensor:
        """(2, kv_heads) moments 2 and 4 about each head's mean, or about another point."""
        d = self.offset if about is None else about - self._pivot
        m1, m2, m3, m4 = self.sums / self.n
        second = m2 - 2 * d * m1 + d**2
        fourth = m4 - 4 * d * m3 + 6 * d**2 * m2 - 4 * d**3 * m1 + d**4
        return torch.stack([second, fourth]).clamp(min=0)

    def pooled(self) -> torch.Tensor:
        """(2,) moments 2 and 4 of all heads together."""
        return self.central(_mean(self.mean)).mean(1)


def over_rows(of_rows: torch.Tensor) -> torch.Tensor:
    """(..., tokens) -> (...) sums in float64, on the cpu."""
    return of_rows.cpu().double().sum(-1)


def covariance(x: PowerSums, y: PowerSums, products: torch.Tensor) -> torch.Tensor:
    """Of all heads together, from the (kv_heads,) sums of products of what `add` left of both."""
    within = products / x.n - x.offset * y.offset
    between = (x.mean - _mean(x.mean)) * (y.mean - _mean(y.mean))
    return (within + between).mean()


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Exactly x where all are equal, which n times x over n is not."""
    return x[0] + (x - x[0]).mean()
