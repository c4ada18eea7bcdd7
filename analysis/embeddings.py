"""How the dimensions of keys and values differ, over the whole cache and from token to token."""

import pandas as pd
import torch

from analysis.measures import Sweep
from data.cache import KINDS


def embedding_consistency(sweep: Sweep) -> pd.DataFrame:
    """dim, kind, sparsity: share of sparse entries of a dimension over layers, heads and tokens.

    Where layers differ in width, a dimension counts in the layers that have it.
    """
    return pd.concat([_dim_sparsity(sweep, kind) for kind in KINDS], ignore_index=True)


def _dim_sparsity(sweep: Sweep, kind: str) -> pd.DataFrame:
    width = max(sums.below_head_dim.shape[1] for sums in sweep.sums[kind])
    below, entries = torch.zeros(width), torch.zeros(width)
    for sums in sweep.sums[kind]:
        dim = sums.below_head_dim.shape[1]
        below[:dim] += sums.below_head_dim.sum(0)
        entries[:dim] += sums.n_entries / dim
    share = (below.double() / entries).numpy()
    return pd.DataFrame({"dim": range(width), "kind": kind, "sparsity": share})


def _mean_abs_by_position(sweep: Sweep, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions held by at least one layer, and |x| there: (positions,), (positions, dim), the
    mean over the heads of all layers that hold the position and have the dimension."""
    width = max(sums.abs_token_dim.shape[1] for sums in sweep.sums[kind])
    total = torch.zeros(sweep.cache.n_tokens, width, dtype=torch.float64)
    heads = torch.zeros(sweep.cache.n_tokens, width)
    for layer, sums in zip(sweep.cache.layers, sweep.sums[kind], strict=True):
        dim = sums.abs_token_dim.shape[1]
        total[layer.positions, :dim] += sums.abs_token_dim
        heads[layer.positions, :dim] += layer.n_heads
    held = (heads > 0).all(1).nonzero().flatten()
    return held, total[held] / heads[held]


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


def position_patterns(sweep: Sweep, variance: pd.DataFrame, n_dims: int) -> pd.DataFrame:
    """kind, pattern, dim, position, mean_abs, variance of the `n_dims` dimensions that vary most
    over positions (pattern `sensitive`) and least (`invariant`)."""
    parts = []
    for kind in KINDS:
        positions, by_position = _mean_abs_by_position(sweep, kind)
        ranked = variance[variance["kind"] == kind].sort_values("variance", kind="stable")
        chosen = {"sensitive": ranked.tail(n_dims)[::-1], "invariant": ranked.head(n_dims)}
        for pattern, dims in chosen.items():
            for row in dims.itertuples():
                parts.append(
                    pd.DataFrame(
                        {
                            "kind": kind,
                            "pattern": pattern,
                            "dim": row.dim,
                            "position": positions.numpy(),
                            "mean_abs": by_position[:, row.dim].numpy(),
                            "variance": row.variance,
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)
