"""How large the entries are: the distribution of |x| around the sparsity threshold."""

import pandas as pd
import torch

from analysis.magnitude_bins import magnitude_edges
from analysis.measures import Sweep
from data.cache import KINDS


def magnitude_distribution(sweep: Sweep) -> pd.DataFrame:
    """kind, bin_left, bin_right, count, threshold: how many entries have |x| in [left, right).

    Four bins to each factor of two, the smallest magnitudes together in the first. The threshold
    is a bin's edge, so the counts to its left are exactly the entries that count as sparse.
    """
    return pd.concat([_distribution(sweep, kind) for kind in KINDS], ignore_index=True)


def _distribution(sweep: Sweep, kind: str) -> pd.DataFrame:
    threshold = sweep.thresholds[kind]
    edges = magnitude_edges(threshold, sweep.percentage).numpy()
    counts = torch.stack([sums.magnitude_counts for sums in sweep.sums[kind]]).sum(0).numpy()
    return pd.DataFrame(
        {
            "kind": kind,
            "bin_left": edges[:-1],
            "bin_right": edges[1:],
            "count": counts,
            "threshold": threshold,
        }
    )
