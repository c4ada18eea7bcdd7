"""How the dimensions of keys and values differ, over the whole cache and from token to token."""

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


def position_patterns(sweep: Sweep, variance: pd.DataFrame, n_dims: int) -> pd.DataFrame:
    """kind, pattern, dim, position, mean_abs, variance of the `n_dims` dimensions that vary most
    over positions (pattern `sensitive`) and least (`invariant`); of a text of more than
    `over_layers.MOST_POSITIONS` tokens, neighbours share a row, at the position of the first."""
    positions = sweep.cache.layers[sweep.spanning[0]].positions
    parts = []
    for kind in KINDS:
        means = sweep.of_positions[kind]
        by_position = means.by_position
        ranked = variance[variance["kind"] == kind].sort_values("variance", kind="stable")
        n = min(n_dims, max(1, len(ranked) // 2))  # no dimension is both
        chosen = {"sensitive": ranked.tail(n)[::-1], "invariant": ranked.head(n)}
        for pattern, dims in chosen.items():
            for row in dims.itertuples():
                parts.append(
                    pd.DataFrame(
                        {
                            "kind": kind,
                            "pattern": pattern,
                            "dim": row.dim,
                            "position": positions[means.places].numpy(),
                            "mean_abs": by_position[:, row.dim].numpy(),
                            "variance": row.variance,
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)
