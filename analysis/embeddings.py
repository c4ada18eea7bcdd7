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


def position_variance(sweep: Sweep) -> pd.DataFrame:
    """kind, dim, variance, mean_abs: the population variance over token positions of a
    dimension's mean |x| over layers and heads, and its mean over positions."""
    parts = []
    for kind in KINDS:
        means = sweep.of_positions[kind]
        parts.append(
            pd.DataFrame(
                {
                    "kind": kind,
                    "dim": range(len(means.mean)),
                    "variance": means.variance.numpy(),
                    "mean_abs": means.mean.numpy(),
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
    positions = sweep.cache.layers[sweep.spanning[0]].positions
    means = {kind: sweep.of_positions[kind].by_position.numpy() for kind in KINDS}
    squares = {kind: np.zeros(mean.shape) for kind, mean in means.items()}
    return ByPosition(1, positions[sweep.of_positions["key"].places].numpy(), means, squares)


def position_patterns(sweep: Sweep, variance: pd.DataFrame, n_dims: int) -> pd.DataFrame:
    """kind, pattern, dim, position, mean_abs, variance of the `n_dims` dimensions that vary most
    over positions (pattern `sensitive`) and least (`invariant`); of a text of more than
    `over_layers.MOST_POSITIONS` tokens, neighbours share a row, at the position of the first."""
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
