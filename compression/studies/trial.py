"""Heuristics on trial: what each part of a cache is really worth to the model, part by part, and
how well any heuristic would have told."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from analysis.heuristics import SPARES
from analysis.margins import first_of
from data.cache import KINDS, LayerKV

if TYPE_CHECKING:
    from compression.evaluate import Judge

RESAMPLES = 1000
SAID = 3  # heuristics named in a sentence
DAMAGES = {"removed": "removed", "noise": "with noise"}  # in words


def costs(judge: "Judge", noise: float) -> pd.DataFrame:
    """layer, part (key, value, head), head (-1 for whole layers), damage, noise (its relative
    error), kl_mean_nats: measured with this part alone damaged.

    removed: keys or values of a layer are not stored and read as zero; a head is evicted, so that
    nothing attends to it. noise: Gaussian, of relative error `noise`, on a head's keys and values.
    """
    parts = [
        (i, part, head)
        for i, layer in enumerate(judge.cache.layers)
        for part, heads in (*((kind, (-1,)) for kind in KINDS), ("head", range(layer.n_heads)))
        for head in heads
    ]
    rows = []
    for i, part, head in tqdm(parts, desc="Trial", unit="part", leave=False):
        layer = judge.cache.layers[i]
        for damage, damaged in _damages(layer, part, head, noise):
            layers = (*judge.cache.layers[:i], damaged, *judge.cache.layers[i + 1 :])
            verdict = judge.verdict(replace(judge.cache, layers=layers))
            where = {"layer": layer.index, "part": part, "head": head, "damage": damage}
            where["noise"] = noise if damage == "noise" else float("nan")
            rows.append(where | {"kl_mean_nats": verdict["kl_mean_nats"]})
    return pd.DataFrame(rows)


def _damages(layer: LayerKV, part: str, head: int, noise: float) -> Iterator[tuple[str, LayerKV]]:
    generator = torch.Generator().manual_seed(layer.index)
    if part == "head":
        keep = torch.ones(layer.keys.shape[:2], dtype=torch.bool, device=layer.keys.device)
        keep[head] = False
        yield "removed", replace(layer, keep=keep)
        keys, values = (layer.tensor(kind).clone() for kind in KINDS)
        for x in (keys, values):
            x[head] = _noisy(x[head], noise, generator)
        yield "noise", replace(layer, keys=keys, values=values)
    else:
        x = layer.tensor(part)
        yield "removed", layer.with_tensor(part, torch.zeros_like(x))
        yield "noise", layer.with_tensor(part, _noisy(x, noise, generator))


def _noisy(x: torch.Tensor, relative: float, generator: torch.Generator) -> torch.Tensor:
    """x with Gaussian noise of exactly this relative error."""
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    noise *= relative * x.float().norm() / noise.norm()
    return (x.float() + noise).to(x.dtype)


def rank_correlations(trial: pd.DataFrame) -> pd.DataFrame:
    """part, damage, heuristic, parts, spearman, low, high: Spearman's correlation between how
    spareable a heuristic calls parts and how little their damage costs, with its 95 % bootstrap
    interval over parts. 1: it ranks them rightly; 0: it knows nothing; -1: it is the wrong way
    round. trial: `costs` beside the heuristics' columns."""
    rows = []
    for (part, damage), group in trial.groupby(["part", "damage"], sort=False):
        for heuristic, sign in SPARES.items():
            measured = group[[heuristic, "kl_mean_nats"]].dropna()
            if len(measured) < 3 or measured.nunique().min() < 2:
                continue
            spared = sign * measured[heuristic].to_numpy()
            spearman, low, high = _spearman(spared, -measured["kl_mean_nats"].to_numpy())
            rows.append(
                {
                    "part": part,
                    "damage": damage,
                    "heuristic": heuristic,
                    "parts": len(measured),
                    "spearman": spearman,
                    "low": low,
                    "high": high,
                }
            )
    columns = ["part", "damage", "heuristic", "parts", "spearman", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _spearman(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """The correlation of ranks, and the 2.5 and 97.5 % quantiles of its bootstrap."""
    draws = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    draws[0] = np.arange(len(a))
    ranks = [rankdata(x[draws], axis=1) for x in (a, b)]  # (resamples, parts)
    ranks = [r - r.mean(1, keepdims=True) for r in ranks]
    spread = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        resampled = (ranks[0] * ranks[1]).sum(1) / spread  # NaN where a draw repeats one part
    return resampled[0], *np.nanquantile(resampled, (0.025, 0.975))


def told(correlations: pd.DataFrame) -> list[str]:
    """Which heuristics surely tell what the model can spare, for each kind of part and damage."""
    names = {"key": "keys of a layer", "value": "values of a layer", "head": "KV heads"}
    lines = []
    for (part, damage), rows in correlations.groupby(["part", "damage"], sort=False):
        done = DAMAGES[damage]
        right = _surest(rows[rows["low"] > 0].sort_values("spearman", ascending=False))
        wrong = _surest(rows[rows["high"] < 0].sort_values("spearman"))
        lines.append(
            f"Heuristics on trial, {names[part]} {done} ({rows['parts'].max()} of them): surely "
            f"rank what the model can spare: {right}; surely the wrong way round: {wrong}."
        )
    return lines


def _surest(rows: pd.DataFrame) -> str:
    """Heuristics with their correlations, the strongest first."""
    listed = [
        f"{row.heuristic} {row.spearman:+z.2f} ({row.low:+z.2f} to {row.high:+z.2f})"
        for row in rows.itertuples()
    ]
    return first_of(listed, SAID) or "none"
