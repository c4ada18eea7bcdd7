"""How the layers differ: the statistics of each, and how prunable sparsity makes them look."""

import pandas as pd

from analysis.measures import Sweep
from data.cache import KINDS


def layer_statistics(sweep: Sweep) -> pd.DataFrame:
    """layer, kind, sparsity, std, mean_abs, kv_correlation, hoyer_sparsity, kurtosis, threshold:
    the magnitude below which an entry counts as sparse."""
    return pd.DataFrame(
        {
            "layer": layer.index,
            "kind": kind,
            "sparsity": sums.sparsity,
            "std": sums.std,
            "mean_abs": sums.mean_abs,
            "kv_correlation": correlation,
            "hoyer_sparsity": sums.hoyer_sparsity,
            "kurtosis": sums.kurtosis,
            "threshold": sweep.thresholds[kind],
        }
        for kind in KINDS
        for layer, sums, correlation in zip(
            sweep.cache.layers, sweep.sums[kind], sweep.kv_correlation, strict=True
        )
    )


def layer_pruning_potential(statistics: pd.DataFrame) -> pd.DataFrame:
    """layer, kind, sparsity, and the mean of it over all layers, per kind."""
    table = statistics[["layer", "kind", "sparsity"]].copy()
    table["mean_sparsity"] = table.groupby("kind")["sparsity"].transform("mean")
    return table
