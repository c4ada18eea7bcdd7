"""Tokens to evict: all but the heavy hitters, what the last queries look at, or keys that differ.

The others are in pruning.py. All of them look at the whole text once, after it was read: methods
that evict while they decode (H2O, KeyDiff) are so given more to choose from than they have there.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from compression.pruning import Eviction
from config import UsageError
from data.cache import LayerKV

POOLED = 7  # neighbours whose largest score a token gets, as in SnapKV


@dataclass(frozen=True)
class ScoredEviction(Eviction):
    """The tokens of each KV head with the highest scores stay, in 16 bits; one bit for each token
    says whether it did.

    keep: share of the tokens. sink_tokens, recent_tokens: the first ones of the text and the most
    recent ones, which stay in any case; where not all of them can, the first ones go before.
    """

    keep: float = 0.5
    sink_tokens: int = 4
    recent_tokens: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UsageError(f"A share of {self.keep:g} of the tokens: above 0, at most 1.")
        for name in ("sink_tokens", "recent_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} is {getattr(self, name)}: it takes 0 or more tokens.")

    @abstractmethod
    def scores(self, layer: LayerKV, recent: torch.Tensor) -> torch.Tensor:
        """(kv_heads, tokens), higher for what should stay; recent: (tokens,) True for those that
        stay as the most recent ones, whatever their score."""

    def n_recent(self, n_kept: int) -> int:
        """How many of the kept tokens are the most recent ones."""
        return self.recent_tokens

    def kept(self, layer: LayerKV) -> torch.Tensor:
        n = layer.n_tokens
        n_kept = max(1, round(self.keep * n))
        places = torch.arange(n, device=layer.keys.device)
        recent = places >= n - self.n_recent(n_kept)
        first = layer.positions.to(places.device) < self.sink_tokens
        scores = self.scores(layer, recent)
        # Ranks have no ties; of equal scores the more recent token stays.
        order = scores.argsort(dim=1, stable=True).argsort(1)
        order = torch.where(recent, n + places, order)
        order = torch.where(first, 3 * n - places, order)
        keep = torch.zeros_like(scores, dtype=torch.bool)
        return keep.scatter(1, order.topk(n_kept, dim=1).indices, True)


@dataclass(frozen=True)
class HeavyHitters(ScoredEviction):
    """Half of the kept tokens are the most recent ones, half those that received the most attention
    in all, summed over the queries (Zhang et al., H2O, arXiv 2306.14048).

    recent_tokens: at least so many of the most recent ones.
    """

    name: ClassVar[str] = "heavy_hitter"
    recent_tokens: int = 0

    def n_recent(self, n_kept: int) -> int:
        return max(n_kept // 2, self.recent_tokens)

    def scores(self, layer: LayerKV, recent: torch.Tensor) -> torch.Tensor:
        mean = _measured(layer, "attention")
        # What is still cached was seen by every query since: a window forgets what is not.
        seen_by = layer.positions[-1] + 1 - layer.positions
        return mean * seen_by.to(mean.device)


@dataclass(frozen=True)
class SnapKV(ScoredEviction):
    """Tokens stay that the last queries of the text look at, or that stand near such ones: their
    mean attention, of which each token gets the largest among `POOLED` neighbours (Li et al.,
    SnapKV, arXiv 2404.14469). The last queries are those of `LayerKV.recent_attention`;
    recent_tokens: as many as these, the paper's window, which stays."""

    name: ClassVar[str] = "snapkv"

    def scores(self, layer: LayerKV, recent: torch.Tensor) -> torch.Tensor:
        seen = _measured(layer, "recent_attention")
        # What the window gives to itself must not lift its neighbours.
        seen = torch.where(recent.to(seen.device), torch.zeros_like(seen), seen)
        return torch.nn.functional.max_pool1d(seen.float(), POOLED, 1, POOLED // 2)


@dataclass(frozen=True)
class KeyDiff(ScoredEviction):
    """Tokens stay whose keys are the least like the others': the lowest cosine with the mean of the
    normalised keys of their head (Park et al., KeyDiff, arXiv 2504.15364)."""

    name: ClassVar[str] = "key_diff"

    def scores(self, layer: LayerKV, recent: torch.Tensor) -> torch.Tensor:
        unit = torch.nn.functional.normalize(layer.keys.float(), dim=-1)
        return -torch.nn.functional.cosine_similarity(unit, unit.mean(1, keepdim=True), dim=-1)


def _measured(layer: LayerKV, name: str) -> torch.Tensor:
    """(kv_heads, tokens) attention that was measured while the model ran."""
    found = getattr(layer, name, None)
    if found is None:
        raise UsageError(
            f"Layer {layer.index} does not show its attention: take an eviction that does "
            "without, such as key_diff or recent."
        )
    return found
