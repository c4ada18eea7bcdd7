"""How the KV heads differ, within layers and across them."""

import pandas as pd

from analysis.measures import Sweep
from data.cache import KINDS


def head_sparsity(sweep: Sweep) -> pd.DataFrame:
    """layer, head, kind, sparsity, mean_abs: one row per KV head, keys and values apart."""
    return pd.concat(
        pd.DataFrame(
            {
                "layer": layer.index,
                "head": range(layer.n_heads),
                "kind": kind,
                "sparsity": sums.sparsity_head.numpy(),
                "mean_abs": sums.mean_abs_head.numpy(),
            }
        )
        for kind in KINDS
        for layer, sums in zip(sweep.cache.layers, sweep.sums[kind], strict=True)
    ).reset_index(drop=True)


def head_pruning_potential(heads: pd.DataFrame) -> pd.DataFrame:
    """head, kind, and the mean and population standard deviation of its sparsity over layers."""
    grouped = heads.groupby(["head", "kind"])["sparsity"]
    return grouped.agg(
        sparsity_mean="mean", sparsity_std=lambda of_layers: of_layers.std(ddof=0)
    ).reset_index()


def key_sparsity_by_layer_and_head(heads: pd.DataFrame) -> pd.DataFrame:
    """layer, head, sparsity of keys alone."""
    keys = heads[heads["kind"] == "key"]
    return keys[["layer", "head", "sparsity"]].reset_index(drop=True)
