"""What a Tucker setting does to one text, in tables: errors by layer, the measured cost of each
layer's part, other ranks, and the decomposition itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm import tqdm

from compression.costs import relative_errors
from compression.methods.place_by_place import content
from compression.methods.tucker import PARTS, Tucker
from compression.shapes import LayerShape
from config import UsageError
from data.cache import KINDS, KVCache, wide

if TYPE_CHECKING:
    from compression.evaluate import Judge


def layer_sensitivity(judge: "Judge", method: Tucker, measured: bool = True) -> pd.DataFrame:
    """layer, kind, relative_error, kl_mean_nats.

    kl_mean_nats: measured with this layer's keys (or values) restored from the decomposition and
    all the rest untouched; empty where not `measured`.
    """
    restored = method.compress(judge.cache).restore()
    table = relative_errors(judge.cache, restored)[["layer", "kind", "relative_error"]]
    table["kl_mean_nats"] = float("nan")
    if measured:
        parts = [(i, kind) for i in range(judge.cache.n_layers) for kind in KINDS]
        table["kl_mean_nats"] = [
            judge.verdict(_with_part(judge.cache, restored, i, kind))["kl_mean_nats"]
            for i, kind in tqdm(parts, desc="Layer sensitivity", unit="part", leave=False)
        ]
    return table


def _with_part(cache: KVCache, restored: KVCache, i: int, kind: str) -> KVCache:
    """`cache` with the keys or the values of its i-th layer taken from `restored`."""
    changed = cache.layers[i].with_tensor(kind, restored.layers[i].tensor(kind))
    return replace(cache, layers=(*cache.layers[:i], changed, *cache.layers[i + 1 :]))


def rank_sensitivity(
    judge: "Judge", method: Tucker, token_ranks: Sequence[int], embedding_ranks: Sequence[int]
) -> pd.DataFrame:
    """token_rank, embedding_rank, ratio, bits_per_value, key_error, value_error, kl_mean_nats,
    delta_perplexity_percent; ranks that a layer does not have are left out."""
    columns = ["ratio", "bits_per_value", "key_error", "value_error"]
    columns += ["kl_mean_nats", "delta_perplexity_percent"]
    rows = []
    others = other_ranks(method, token_ranks, embedding_ranks)
    for other in tqdm(others, desc="Ranks", unit="setting", leave=False):
        try:
            row = judge.score(other)
        except UsageError:
            continue
        rows.append(
            {"token_rank": other.token_rank, "embedding_rank": other.embedding_rank}
            | {name: row[name] for name in columns}
        )
    return pd.DataFrame(rows, columns=["token_rank", "embedding_rank", *columns])


def other_ranks(
    method: Tucker, token_ranks: Sequence[int], embedding_ranks: Sequence[int]
) -> list[Tucker]:
    """The same with each pair of these ranks, whatever chooses its own."""
    given = replace(method, token_rank=1, embedding_rank=1, energy=None, target_ratio=None)
    return [
        replace(given, token_rank=token_rank, embedding_rank=embedding_rank)
        for token_rank in token_ranks
        for embedding_rank in embedding_ranks
    ]


def components(method: Tucker, cache: KVCache, i: int) -> pd.DataFrame:
    """kind, part, head, row, column, value: core (heads, r_t, r_e), token factor (tokens, r_t) and
    embedding factor (dim, r_e) of the i-th layer; `head` is empty for factors.

    Beside them shares of the squared norm of what is decomposed: `kept`, by the core, whose ranks
    are its row and column; `kept_by_tokens` and `kept_by_dims`, at most, by as many components of
    one mode as its row says, with the other mode whole.
    """
    stored = method.compress(cache).stored
    tables = []
    for kind in KINDS:
        parts = {part: stored.get(f"{i}.{kind}.{part}") for part in PARTS}
        if parts["core"] is not None:
            named = parts.items()
            tables += [_long(x.float(), kind, part) for part, x in named if x is not None]
            layer = cache.layers[i]
            span = method.span(LayerShape.of(layer))
            decomposed = content(layer, kind, method.unrotated_keys)[:, span].cpu()
            tables.append(kept_energy(decomposed, parts["core"].float()).assign(kind=kind))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def kept_energy(x: torch.Tensor, core: torch.Tensor) -> pd.DataFrame:
    """part, row, column, value: see `components`. x (heads, tokens, dim), core (heads, r_t, r_e)
    with orthonormal factors."""
    norm = x.double().square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    kept = (core.double().square().sum() / norm).item()
    tables = [pd.DataFrame({"part": ["kept"], "row": core.shape[1], "column": core.shape[2]})]
    tables[0]["value"] = kept
    for part, unfolded in (("kept_by_tokens", wide(x)), ("kept_by_dims", x.flatten(0, 1))):
        by_rank = (_energies(unfolded) / norm).cumsum(0).numpy()
        rows = pd.DataFrame({"part": part, "row": range(1, 1 + len(by_rank)), "value": by_rank})
        tables.append(rows.assign(column=0))
    return pd.concat(tables, ignore_index=True)


def _energies(x: torch.Tensor) -> torch.Tensor:
    """Squared singular values of a matrix, the largest first, from the smaller of its Grams."""
    x = x if x.shape[0] >= x.shape[1] else x.T
    gram: torch.Tensor = (x.T @ x).double()
    energies: torch.Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    return energies


def _long(tensor: torch.Tensor, kind: str, part: str) -> pd.DataFrame:
    heads = len(tensor) if tensor.ndim == 3 else 1
    head, row, column = torch.meshgrid(
        torch.arange(heads),
        torch.arange(tensor.shape[-2]),
        torch.arange(tensor.shape[-1]),
        indexing="ij",
    )
    return pd.DataFrame(
        {
            "kind": kind,
            "part": part,
            "head": head.flatten().numpy() if tensor.ndim == 3 else float("nan"),
            "row": row.flatten().numpy(),
            "column": column.flatten().numpy(),
            "value": tensor.flatten().numpy(),
        }
    )
