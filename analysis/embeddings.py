"""How the dimensions of keys and values differ, over the whole cache and from token to token."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from analysis.measures import Sweep, sparsity
from data.cache import KINDS


def embedding_consistency(sweep: Sweep) -> pd.DataFrame:
    """dim, kind, sparsity: share of sparse entries of a dimension over layers, heads and tokens.

    Where layers differ in width, a dimension counts in the layers that have it.
    """
    return pd.concat([_dim_sparsity(sweep, kind) for kind in KINDS], ignore_index=True)


def _dim_sparsity(sweep: Sweep, kind: str) -> pd.DataFrame:
    width = max(sums.below_head_dim.shape[1] for sums in sweep.sums[kind])
    below, entries = torch.zeros((2, width), dtype=torch.long)  # float32 counts to 2^24 only
    for sums in sweep.sums[kind]:
        dim = sums.below_head_dim.shape[1]
        below[:dim] += sums.below_head_dim.sum(0)
        entries[:dim] += sums.n_entries // dim
    share = sparsity(below, entries).numpy()
    return pd.DataFrame({"dim": range(width), "kind": kind, "sparsity": share})


def _mean_abs_by_position(sweep: Sweep, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and |x| there: (positions,), (positions, dim), the mean over heads and over the
    layers of `Sweep.spanning` that have the dimension."""
    chosen = [(sweep.cache.layers[i], sweep.sums[kind][i].abs_token_dim) for i in sweep.spanning]
    width = max(sums.shape[1] for _, sums in chosen)
    total = torch.zeros(chosen[0][0].n_tokens, width, dtype=torch.float64)
    heads = torch.zeros(width, dtype=torch.long)
    for layer, sums in chosen:
        total[:, : sums.shape[1]] += sums
        heads[: sums.shape[1]] += layer.n_heads
    return chosen[0][0].positions, total / heads


def position_variance(sweep: Sweep) -> pd.DataFrame:
    """kind, dim, variance, mean_abs: the population variance over token positions of a
    dimension's mean |x| over layers and heads, and its mean over positions."""
    parts = []
    for kind in KINDS:
        _, by_position = _mean_abs_by_position(sweep, kind)
        parts.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "dim": range(by_position.shape[1]),
                    "variance": by_position.var(0, correction=0).numpy(),
                    "mean_abs": by_position.mean(0).numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class ByPosition:
    """Mean |x| of each dimension at each position, over texts that are as long; add them up.

    positions: (positions,). means: kind -> (positions, dim) the mean over texts. squares: sum over
    texts of squared distances from it.
    """

    texts: int
    positions: np.ndarray
    means: dict[str, np.ndarray]
    squares: dict[str, np.ndarray]

    def __add__(self, other: "ByPosition") -> "ByPosition":
        """Chan, Golub and LeVeque's update: nothing cancels."""
        if not np.array_equal(self.positions, other.positions):
            raise ValueError("texts of different lengths have no common positions")
        texts = self.texts + other.texts
        apart = {kind: other.means[kind] - mean for kind, mean in self.means.items()}
        weight = self.texts * other.texts / texts
        return ByPosition(
            texts,
            self.positions,
            {kind: self.means[kind] + x * other.texts / texts for kind, x in apart.items()},
            {
                kind: self.squares[kind] + other.squares[kind] + weight * x**2
                for kind, x in apart.items()
            },
        )

    def error(self, kind: str) -> np.ndarray:
        """(positions, dim) standard errors of the means."""
        of_mean: np.ndarray = np.sqrt(self.squares[kind] / (self.texts - 1) / self.texts)
        return of_mean


def by_position(sweep: Sweep) -> ByPosition:
    """Of one text."""
    found = {kind: _mean_abs_by_position(sweep, kind) for kind in KINDS}
    means = {kind: mean.numpy() for kind, (_, mean) in found.items()}
    squares = {kind: np.zeros(mean.shape) for kind, mean in means.items()}
    return ByPosition(1, found["key"][0].numpy(), means, squares)


def position_patterns(sweep: Sweep, variance: pd.DataFrame, n_dims: int) -> pd.DataFrame:
    """kind, pattern, dim, position, mean_abs, variance of the `n_dims` dimensions that vary most
    over positions (pattern `sensitive`) and least (`invariant`)."""
    return chosen_patterns(by_position(sweep), variance, n_dims)


def chosen_patterns(places: ByPosition, variance: pd.DataFrame, n_dims: int) -> pd.DataFrame:
    """See `position_patterns`; of several texts also mean_abs_se and variance_se."""
    parts = []
    for kind in KINDS:
        ranked = variance[variance["kind"] == kind].sort_values("variance", kind="stable")
        n = min(n_dims, max(1, len(ranked) // 2))  # no dimension is both
        chosen = {"sensitive": ranked.tail(n)[::-1], "invariant": ranked.head(n)}
        for pattern, dims in chosen.items():
            for row in dims.itertuples():
                columns = {
                    "kind": kind,
                    "pattern": pattern,
                    "dim": row.dim,
                    "position": places.positions,
                    "mean_abs": places.means[kind][:, row.dim],
                    "variance": row.variance,
                }
                if places.texts > 1:
                    columns["mean_abs_se"] = places.error(kind)[:, row.dim]
                    columns["variance_se"] = row.variance_se
                parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
