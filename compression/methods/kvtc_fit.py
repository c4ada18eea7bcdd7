"""What KVTC learns of a model: a mean, principal directions and plans of bits, from caches of other
texts, one pass in bounded memory."""

from collections.abc import Iterable

import torch

from compression.base import Calibration
from compression.methods.kvtc import RATIOS, as_tensor
from compression.methods.kvtc_plan import (
    BLOCK,
    LARGEST,
    SIDE_BITS,
    best_plans,
    possible_runs,
)
from compression.methods.layer_groups import alike, neighbours
from compression.methods.place_by_place import content
from compression.methods.spectra import leading
from compression.stored import Tensors
from data.cache import BYTES_PER_ENTRY, KINDS, KVCache, in_16_bits, wide

MOST_COLUMNS = 8192  # joined in one basis: the time to find it grows with their cube
SINKS = 4  # first tokens, which stay plain and are like no others
SAMPLED = 64  # tokens of each text that errors are measured on
HEADROOM = 2.0  # of 8-bit floats above the largest coefficient that was seen

Layers = tuple[int, ...]


def fitted(caches: Iterable[KVCache], learned_from: str) -> Calibration:
    """Raises UsageError for a model of which it is not known what rotates its keys."""
    sums: dict[tuple[Layers, str], _Sums] = {}
    groups: list[Layers] = []
    for cache in caches:
        groups = groups or _groups(cache)
        for layers in groups:
            for kind in KINDS:
                x = _rows(cache, layers, kind)
                sums.setdefault((layers, kind), _Sums(x)).add(x)
    if not groups:
        raise ValueError("calibration takes at least one cache")
    tensors: Tensors = {}
    for g, layers in enumerate(groups):
        tensors[f"layers.{g}"] = torch.tensor(layers, dtype=torch.int32)
        for kind in KINDS:
            tensors |= sums.pop((layers, kind)).learned(f"{g}.{kind}")
    return Calibration(tensors, learned_from)


class _Sums:
    """Over the tokens of one group and kind, taken off the mean of the first text so that float32
    loses nothing where keys are far from zero."""

    def __init__(self, first: torch.Tensor) -> None:
        self.origin = first.mean(0)
        width = len(self.origin)
        self.total = torch.zeros(width).double()
        self.gram = torch.zeros(width, width).double()
        self.n = 0
        self.samples: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """x: (tokens, width)"""
        x = x - self.origin
        self.total += x.double().sum(0)
        self.gram += (x.T @ x).double()
        self.n += len(x)
        self.samples.append(x[:: max(1, len(x) // SAMPLED)].clone())

    def learned(self, place: str) -> Tensors:
        offset = self.total / self.n
        covariance = self.gram / self.n - torch.outer(offset, offset)
        scale = covariance.diagonal().mean().clamp(min=1e-30)
        directions = leading((covariance / scale).float())[0]
        width = len(directions)
        padded = torch.nn.functional.pad(directions, (0, -width % BLOCK))
        basis = padded.half().contiguous()
        mean = in_16_bits(self.origin + offset.float())
        x = (torch.cat(self.samples) + self.origin - mean.float()) @ basis.float()
        scales = (HEADROOM * x.abs().amax(0) / LARGEST).clamp(min=1e-12)
        budgets = [8 * BYTES_PER_ENTRY * width // ratio // SIDE_BITS for ratio in RATIOS]
        plans = best_plans(possible_runs(x, scales), x.shape[1] // BLOCK, budgets)
        named = {
            f"plan.{ratio}.{place}": as_tensor(plan)
            for ratio, plan in zip(RATIOS, plans, strict=True)
        }
        return {f"mean.{place}": mean, f"basis.{place}": basis, f"scales.{place}": scales} | named


def _groups(cache: KVCache) -> list[Layers]:
    """All layers that hold the same tokens together, neighbours where they are too many."""
    return [
        group
        for layers in alike(cache)
        for group in neighbours(layers, lambda group: _width(cache, group) <= MOST_COLUMNS)
    ]


def _width(cache: KVCache, layers: Iterable[int]) -> int:
    of = [cache.layers[i] for i in layers]
    return max(sum(x.n_heads * x.tensor(kind).shape[2] for x in of) for kind in KINDS)


def _rows(cache: KVCache, layers: Layers, kind: str) -> torch.Tensor:
    """(tokens, width) float32 of what is not plain, keys before rotary embedding."""
    first = min(SINKS, cache.n_tokens // 4)
    of = [cache.layers[i] for i in layers]
    x = torch.cat([wide(content(layer, kind, unrotated=True)).cpu() for layer in of], dim=1)
    return x[of[0].positions.cpu() >= first]
