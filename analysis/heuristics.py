"""What each heuristic says of every part of a cache that could be pruned, one number each.

Parts are the keys of a layer, its values, and each KV head. Whether a heuristic is right is for
the model to say: see compression/studies/trial.py.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from analysis.blocks import grams
from analysis.geometry import centred, linear_cka
from analysis.measures import Sweep, TensorSums
from analysis.similarity import entries, shared_positions
from data.cache import KINDS, wide

# Heuristic -> +1 where a high number is taken to mean that a part can be spared, -1 where a low one
SPARES = {
    "sparsity": 1,
    "hoyer_sparsity": 1,
    "kurtosis": 1,
    "neighbour_similarity": 1,
    "norm": -1,
    "effective_rank": -1,
    "attention_energy": -1,
}
COMPARED_TOKENS = 512  # at most, of those that all layers hold, for similarity


def of_parts(sweep: Sweep) -> pd.DataFrame:
    """layer, part (key, value, head), head (-1 for whole layers), and the columns of `SPARES`.

    norm: root mean square entry. effective_rank: exp(entropy of the normalised eigenvalues of the
    Gram matrix) (Roy and Vetterli, EUSIPCO 2007). neighbour_similarity: linear CKA, see
    `geometry.linear_cka`, with the more similar of the layers before and after, for a head with the
    most similar head of its layer (the mean of keys and values); empty where there is no other, or
    where nothing varies over tokens. attention_energy: the mean over tokens of
    `blocks.attention_energy`; empty where attention was not measured.
    """
    layers = sweep.cache.layers
    positions = shared_positions(sweep.cache, COMPARED_TOKENS)
    nearest = {
        kind: _nearest_layers(entries(layer, kind, positions) for layer in layers) for kind in KINDS
    }
    parts = []
    for i, layer in enumerate(layers):
        sums = {kind: sweep.sums[kind][i] for kind in KINDS}
        energy = sweep.energy_head[i]
        gram = {kind: grams(layer.tensor(kind)) for kind in KINDS}
        for kind in KINDS:
            measures = _of_layer(sums[kind], gram[kind])
            measures["neighbour_similarity"] = nearest[kind][i]
            measures["attention_energy"] = energy.mean().item()
            named = {"layer": layer.index, "part": kind, "head": -1}
            parts.append(pd.DataFrame(named | measures, index=[0]))
        key, value = (
            _of_heads(sums[kind], gram[kind], layer.n_heads)
            | {"neighbour_similarity": _nearest_heads(entries(layer, kind, positions))}
            for kind in KINDS
        )
        heads = {name: (key[name] + value[name]).numpy() / 2 for name in key}
        named = {"layer": layer.index, "part": "head", "head": range(layer.n_heads)}
        parts.append(pd.DataFrame(named | heads | {"attention_energy": energy.numpy()}))
    return pd.concat(parts, ignore_index=True)


def _of_layer(sums: TensorSums, gram: torch.Tensor) -> dict[str, float]:
    return {
        "sparsity": sums.sparsity,
        "hoyer_sparsity": sums.hoyer_sparsity,
        "kurtosis": sums.kurtosis,
        "norm": sums.rms,
        "effective_rank": _effective_rank(gram[None]).item(),
    }


def _of_heads(sums: TensorSums, gram: torch.Tensor, n_heads: int) -> dict[str, torch.Tensor]:
    """(kv_heads,) each."""
    of_heads = gram.unflatten(0, (n_heads, -1)).unflatten(2, (n_heads, -1))
    return {
        "sparsity": sums.sparsity_head,
        "hoyer_sparsity": sums.hoyer_sparsity_head,
        "kurtosis": sums.kurtosis_head,
        "norm": sums.rms_head,
        "effective_rank": _effective_rank(of_heads.diagonal(dim1=0, dim2=2).movedim(2, 0)),
    }


def _effective_rank(grams: torch.Tensor) -> torch.Tensor:
    """(batch,) of matrices with these Gram matrices (batch, dim, dim)."""
    values = torch.linalg.eigvalsh(grams).clamp(min=0)
    share = values / values.sum(1, keepdim=True)
    entropy: torch.Tensor = torch.special.entr(share).sum(1)
    return entropy.exp()


def _nearest_layers(per_layer: Iterable[torch.Tensor]) -> np.ndarray:
    """(layers,) of (kv_heads, tokens, dim) for each layer, of which two are held at a time."""
    pairs = [
        linear_cka([centred(wide(x)[None]) for x in pair])[0][0, 1].item()
        for pair in pairwise(per_layer)
    ]
    similar = np.array([np.nan, *pairs, np.nan])
    nearest: np.ndarray = np.fmax(similar[:-1], similar[1:])  # ignores the one that is NaN
    return nearest


def _nearest_heads(x: torch.Tensor) -> torch.Tensor:
    """(kv_heads,) of (kv_heads, tokens, dim)."""
    cka, _ = linear_cka([centred(x)])
    return torch.from_numpy(np.fmax.reduce(cka.fill_diagonal_(np.nan).numpy(), axis=1))
