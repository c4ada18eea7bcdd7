"""What each heuristic says of every part of a cache that could be pruned, one number each.

Parts are the keys of a layer, its values, and each KV head. Whether a heuristic is right is for
the model to say: see compression/trial.py.
"""

import pandas as pd
import torch

from analysis.measures import Sweep, TensorSums
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
COMPARED_TOKENS = 512  # evenly spaced tokens that similarity and rank are taken from


def of_parts(sweep: Sweep) -> pd.DataFrame:
    """layer, part (key, value, head), head (-1 for whole layers), and the columns of `SPARES`.

    norm: root mean square entry. effective_rank: exp(entropy of the normalised eigenvalues of the
    Gram matrix) (Roy and Vetterli, EUSIPCO 2007). neighbour_similarity: linear CKA (Kornblith et
    al., arXiv 1905.00414) with the more similar of the layers before and after, for a head with the
    most similar head of its layer (the mean of keys and values). attention_energy: weight received
    times the norm of the value, mean over tokens; empty where attention was not measured.
    """
    layers = sweep.cache.layers
    kernels = {kind: [_kernels(layer.tensor(kind)) for layer in layers] for kind in KINDS}
    rows = []
    for i, layer in enumerate(layers):
        energy = _attention_energy(layer, sweep.sums["value"][i])  # (kv_heads,)
        for kind in KINDS:
            sums, x = sweep.sums[kind][i], layer.tensor(kind)
            rows.append(
                {
                    "layer": layer.index,
                    "part": kind,
                    "head": -1,
                    "sparsity": sums.sparsity,
                    "hoyer_sparsity": sums.hoyer_sparsity,
                    "kurtosis": sums.kurtosis,
                    "norm": sums.norm_head_token.double().norm().item() / x.numel() ** 0.5,
                    "effective_rank": _effective_rank(wide(x)[None]).item(),
                    "neighbour_similarity": _nearest_layer(kernels[kind], i),
                    "attention_energy": energy.mean().item(),
                }
            )
        rows += _of_heads(sweep, i, energy, [kernels[kind][i] for kind in KINDS])
    return pd.DataFrame(rows)


def _of_heads(
    sweep: Sweep, i: int, energy: torch.Tensor, kernels: list[torch.Tensor]
) -> list[dict]:
    """A row for each KV head of the i-th cached layer, means of its keys and values; their kernels
    are (heads, n, n) each."""
    layer = sweep.cache.layers[i]
    columns = {"attention_energy": energy}
    columns["neighbour_similarity"] = sum(_nearest_head(k) for k in kernels) / len(KINDS)
    of_kinds = [_head_measures(layer.tensor(kind), sweep.thresholds[kind]) for kind in KINDS]
    columns |= {name: (of_kinds[0][name] + of_kinds[1][name]) / 2 for name in of_kinds[0]}
    return [
        {"layer": layer.index, "part": "head", "head": head}
        | {name: values[head].item() for name, values in columns.items()}
        for head in range(layer.n_heads)
    ]


def _head_measures(x: torch.Tensor, threshold: float) -> dict[str, torch.Tensor]:
    """Of each head of x (heads, tokens, dim), (heads,)."""
    entries = x.double().flatten(1)
    n = entries.shape[1]
    magnitude = entries.abs()
    norm = entries.norm(dim=1)
    centred = entries - entries.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    return {
        "sparsity": (magnitude < threshold).double().mean(1),
        "hoyer_sparsity": (n**0.5 - magnitude.sum(1) / norm) / (n**0.5 - 1),
        "kurtosis": centred.pow(4).mean(1) / variance.square(),
        "norm": norm / n**0.5,
        "effective_rank": _effective_rank(x),
    }


def _effective_rank(x: torch.Tensor) -> torch.Tensor:
    """Of each matrix of x (batch, tokens, dim), (batch,)."""
    gram = x.double().transpose(1, 2) @ x.double()
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    share = values / values.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp()


def _attention_energy(layer: LayerKV, values: TensorSums) -> torch.Tensor:
    """(kv_heads,) in float64; NaN where attention was not measured."""
    if layer.attention is None:
        return torch.full((layer.n_heads,), torch.nan, dtype=torch.float64)
    return (layer.attention.cpu() * values.norm_head_token).double().mean(1)


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
