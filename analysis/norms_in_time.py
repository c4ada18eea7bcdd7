"""The cache along the text, layer by layer, from its first token to the last generated one: how
long keys and values are, and how much each points where all of its head do.

Rotary embedding turns keys and leaves their length alone (but for a constant where a model scales
them), so what it does is seen in the direction.
"""

from collections.abc import Iterator
from functools import partial, reduce

import pandas as pd
import torch

from analysis.blocks import side_by_side, slices, tokens_at_once
from analysis.generation import remembered
from data.cache import KVCache, LayerKV

PREFILL, GENERATED = "prefill", "generated"
MOST_BINS = {PREFILL: 224, GENERATED: 32}  # together what a table has of each layer and kind
TINY = torch.finfo(torch.float32).tiny  # stands in for the norm of a vector of zeros
KEY, UNROTATED, VALUE = "key", "unrotated key", "value"


def norms_in_time(prefill: KVCache, cache: KVCache) -> pd.DataFrame:
    """layer, position, tokens, stage, kind, norm, cosine_to_mean: a row for each layer, kind and
    bin of neighbouring tokens, of which `position` is the first and `tokens` are held.

    norm: mean L2 norm over heads and tokens. cosine_to_mean: mean cosine of each token's vector
    with the mean of its head over the text, without what was generated. Unrotated keys only where
    it is known what turned them.
    prefill: the cache after the text, which still has what a window has forgotten in `cache`.
    """
    with side_by_side() as in_threads:
        each = partial(_of_layer, n_prompt=cache.n_prompt, n_tokens=cache.n_tokens)
        tables = list(in_threads(each, remembered(prefill, cache).layers))
    return pd.concat(tables, ignore_index=True)


def _of_layer(layer: LayerKV, n_prompt: int, n_tokens: int) -> pd.DataFrame:
    starts, stages, of_token = _bins(layer.positions.cpu(), n_prompt, n_tokens)
    counts = torch.zeros(len(starts)).index_add_(0, of_token, torch.ones(len(of_token)))
    held = counts > 0
    named = {
        "layer": layer.index,
        "position": starts[held].numpy(),
        "tokens": counts[held].long().numpy(),
        "stage": [stage for stage, holds in zip(stages, held.tolist(), strict=True) if holds],
    }
    kinds = [KEY, UNROTATED, VALUE] if layer.rotary is not None else [KEY, VALUE]
    tables = []
    for kind in kinds:
        sums = torch.zeros(2, len(starts), dtype=torch.float64)
        mean = _direction(layer.before(n_prompt), kind)
        for places, x in _blocks(layer, kind):
            norm = x.norm(dim=-1)  # (heads, few tokens)
            cosine = (x @ mean).squeeze(-1) / norm.clamp(min=TINY)
            both = torch.stack([norm.mean(0), cosine.mean(0)]).double().cpu()
            sums.index_add_(1, of_token[places], both)
        norm, cosine = (sums / counts)[:, held].float().numpy()
        measured = pd.DataFrame({**named, "kind": kind, "norm": norm, "cosine_to_mean": cosine})
        tables.append(measured)
    return pd.concat(tables, ignore_index=True)


def _bins(
    positions: torch.Tensor, n_prompt: int, n_tokens: int
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """(bins,) the first position of each bin, its stage, and of each token (tokens,) its bin. The
    bins of the text do not depend on how much was generated after it."""
    spans = {PREFILL: (0, n_prompt), GENERATED: (n_prompt, n_tokens)}
    starts, stages = [], []
    for stage, (first, end) in spans.items():
        size = max(1, -(-(end - first) // MOST_BINS[stage]))
        starts.append(torch.arange(first, end, size))
        stages += [stage] * len(starts[-1])
    every = torch.cat(starts)
    return every, stages, torch.searchsorted(every, positions, right=True) - 1


def _direction(layer: LayerKV, kind: str) -> torch.Tensor:
    """(heads, dim, 1): where the mean over tokens points, of unit length."""
    total = reduce(torch.add, (x.sum(1) for _, x in _blocks(layer, kind)))
    return torch.nn.functional.normalize(total, dim=-1)[..., None]


def _blocks(layer: LayerKV, kind: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """Places of some tokens, and (heads, few tokens, dim) of them in float32."""
    for places in slices(layer.n_tokens, tokens_at_once(layer.keys)):
        part = layer.between(places)
        x = part.unrotated_keys() if kind == UNROTATED else part.tensor(kind)
        yield places, x.float()
