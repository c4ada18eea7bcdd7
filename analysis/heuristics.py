"""What each heuristic says of every part of a cache that could be pruned, one number each.

Parts are the keys of a layer, its values, and each KV head. Whether a heuristic is right is for
the model to say: see compression/trial.py.
"""

import pandas as pd
import torch

from analysis.measures import Sweep, TensorSums, attention_energy, kurtosis
from data.cache import KINDS, LayerKV, wide

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
COMPARED_TOKENS = 512  # evenly spaced tokens that similarity is taken from


def of_parts(sweep: Sweep) -> pd.DataFrame:
    """layer, part (key, value, head), head (-1 for whole layers), and the columns of `SPARES`.

    norm: root mean square entry. effective_rank: exp(entropy of the normalised eigenvalues of the
    Gram matrix) (Roy and Vetterli, EUSIPCO 2007). neighbour_similarity: linear CKA (Kornblith et
    al., arXiv 1905.00414) with the more similar of the layers before and after, for a head with the
    most similar head of its layer (the mean of keys and values). attention_energy: the mean over
    tokens of `measures.attention_energy`; empty where attention was not measured.
    """
    layers = sweep.cache.layers
    kernels = {kind: [_kernels(layer.tensor(kind)) for layer in layers] for kind in KINDS}
    parts = []
    for i, layer in enumerate(layers):
        sums = {kind: sweep.sums[kind][i] for kind in KINDS}
        energy = _mean_energy(layer, sums["value"])
        for kind in KINDS:
            measures = _of_layer(layer, kind, sums[kind])
            measures["neighbour_similarity"] = _nearest_layer(kernels[kind], i)
            measures["attention_energy"] = energy.mean().item()
            named = {"layer": layer.index, "part": kind, "head": -1}
            parts.append(pd.DataFrame(named | measures, index=[0]))
        key, value = (_of_heads(layer, kind, sums[kind]) for kind in KINDS)
        key["neighbour_similarity"] = _nearest_head(kernels["key"][i])
        value["neighbour_similarity"] = _nearest_head(kernels["value"][i])
        heads = {name: (key[name] + value[name]).numpy() / 2 for name in key}
        named = {"layer": layer.index, "part": "head", "head": range(layer.n_heads)}
        parts.append(pd.DataFrame(named | heads | {"attention_energy": energy.numpy()}))
    return pd.concat(parts, ignore_index=True)


def _of_layer(layer: LayerKV, kind: str, sums: TensorSums) -> dict[str, float]:
    return {
        "sparsity": sums.sparsity,
        "hoyer_sparsity": sums.hoyer_sparsity,
        "kurtosis": sums.kurtosis,
        "norm": sums.rms,
        "effective_rank": _effective_rank(wide(layer.tensor(kind))[None]).item(),
    }


def _of_heads(layer: LayerKV, kind: str, sums: TensorSums) -> dict[str, torch.Tensor]:
    """(kv_heads,) each."""
    return {
        "sparsity": sums.sparsity_head,
        "hoyer_sparsity": sums.hoyer_sparsity_head,
        "kurtosis": kurtosis(*_central_moments(layer.tensor(kind))),
        "norm": sums.rms_head,
        "effective_rank": _effective_rank(layer.tensor(kind)),
    }


def _central_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and fourth central moment of each head of x (kv_heads, tokens, dim)."""
    entries = x.double().flatten(1)
    square = (entries - entries.mean(1, keepdim=True)).square()
    return square.mean(1).cpu(), square.square().mean(1).cpu()


def _effective_rank(x: torch.Tensor) -> torch.Tensor:
    """Of each matrix of x (batch, tokens, dim), (batch,)."""
    gram = x.double().mT @ x.double()
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    share = values / values.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp().cpu()


def _mean_energy(layer: LayerKV, values: TensorSums) -> torch.Tensor:
    """(kv_heads,) in float64; NaN where attention was not measured."""
    if layer.attention is None:
        return torch.full((layer.n_heads,), torch.nan, dtype=torch.float64)
    return attention_energy(layer.attention, values.norm_head_token).double().mean(1)


def _kernels(x: torch.Tensor) -> torch.Tensor:
    """(heads, n, n) centred linear kernels of n of the tokens of x (heads, tokens, dim), the last
    ones evenly spaced: layers that hold a window only are compared by their places from the end."""
    step = max(1, x.shape[1] // COMPARED_TOKENS)
    chosen = x[:, (x.shape[1] - 1) % step :: step].float()
    chosen = chosen - chosen.mean(1, keepdim=True)
    return chosen @ chosen.transpose(1, 2)


def _cka(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two kernels (n, n); NaN where they are of other tokens or one is constant."""
    if a.shape != b.shape:
        return float("nan")
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def _nearest_layer(kernels: list[torch.Tensor], i: int) -> float:
    """The kernel of a layer is the sum of those of its heads."""
    beside = [kernels[j] for j in (i - 1, i + 1) if 0 <= j < len(kernels)]
    found = [_cka(kernels[i].sum(0), other.sum(0)) for other in beside]
    return max((x for x in found if x == x), default=float("nan"))


def _nearest_head(kernels: torch.Tensor) -> torch.Tensor:
    """(heads,) of (heads, n, n): the most similar other head; NaN where there is none."""
    if len(kernels) == 1:
        return torch.full((1,), torch.nan)
    unit = torch.nn.functional.normalize(kernels.flatten(1), dim=1)
    similar = unit @ unit.T
    return similar.fill_diagonal_(-torch.inf).amax(1)
