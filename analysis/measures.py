"""Each measure of keys or values, defined once, and one sweep over a cache that takes them all.

The sweep keeps only small sums, in memory that does not grow with layers or tokens but for a few
numbers a token, so that every table of a run costs one pass over the bytes, and one more for the
global maxima where they are not known (see walk.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from analysis.blocks import SPAN, block, side_by_side, slices, tokens_at_once
from analysis.magnitude_bins import n_octaves
from analysis.over_layers import PositionMeans, TokenMeans
from analysis.walk import LayerWalk, SpanOfLayer, TensorWalk
from data.cache import KINDS, KVCache

Numbers = torch.Tensor | float


def sparsity(n_below: Numbers, n_entries: Numbers) -> torch.Tensor:
    """Share of the entries whose magnitude is below the threshold; NaN of none."""
    return _float64(n_below) / n_entries


def kurtosis(variance: Numbers, fourth: Numbers) -> torch.Tensor:
    """Fourth standardised moment, of central moments: 3 for a normal distribution, more with
    outliers; NaN where all entries are equal."""
    return _float64(fourth) / _float64(variance).square()


def hoyer_sparsity(n_entries: int, l1: Numbers, l2: Numbers) -> torch.Tensor:
    """(sqrt(n) - L1 / L2) / (sqrt(n) - 1): 0 when all |x| are equal, 1 when one is not 0; NaN when
    none is, and of a single entry.

    Free of scale and threshold (Hoyer, JMLR 5, 2004).
    """
    root = math.sqrt(n_entries) if n_entries > 1 else math.nan
    return (root - _float64(l1) / _float64(l2)) / (root - 1)


def _float64(x: Numbers) -> torch.Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


@dataclass(frozen=True)
class TensorSums:
    """What the tables need of one layer's keys or values X (kv_heads, tokens, dim), threshold t.

    below_head_dim: (kv_heads, dim) entries with |x| < t.
    abs_head, square_head: (kv_heads,) sums of |x| and of x^2.
    magnitude_counts: (bins,) entries in each bin of `magnitude_edges`.
    variance, fourth: population central moments 2 and 4.
    variance_head, fourth_head: (kv_heads,) the same of each head.
    """

    n_entries: int
    below_head_dim: torch.Tensor
    abs_head: torch.Tensor
    square_head: torch.Tensor
    magnitude_counts: torch.Tensor
    variance: float
    fourth: float
    variance_head: torch.Tensor
    fourth_head: torch.Tensor

    @classmethod
    def of(cls, walk: TensorWalk) -> "TensorSums":
        variance_head, fourth_head = walk.heads.powers.central()
        variance, fourth = walk.heads.powers.pooled().tolist()
        return cls(
            walk.x.numel(),
            walk.below_head_dim,
            walk.heads.magnitude,
            walk.heads.square,
            walk.heads.magnitude_counts,
            variance,
            fourth,
            variance_head,
            fourth_head,
        )

    @property
    def entries_per_head(self) -> int:
        return self.n_entries // len(self.abs_head)

    @property
    def norm_head(self) -> torch.Tensor:
        """(kv_heads,) L2 norm over tokens and dims."""
        return self.square_head.sqrt()

    @property
    def sparsity(self) -> float:
        return sparsity(self.below_head_dim.sum(), self.n_entries).item()

    @property
    def sparsity_head(self) -> torch.Tensor:
        """(kv_heads,)"""
        return sparsity(self.below_head_dim.sum(1), self.entries_per_head)

    @property
    def mean_abs(self) -> float:
        return self.abs_head.sum().item() / self.n_entries

    @property
    def mean_abs_head(self) -> torch.Tensor:
        """(kv_heads,)"""
        return self.abs_head / self.entries_per_head

    @property
    def rms(self) -> float:
        """Root mean square entry."""
        return math.sqrt(self.square_head.sum().item() / self.n_entries)

    @property
    def rms_head(self) -> torch.Tensor:
        """(kv_heads,)"""
        return self.norm_head / math.sqrt(self.entries_per_head)

    @property
    def std(self) -> float:
        return math.sqrt(self.variance)

    @property
    def kurtosis(self) -> float:
        return kurtosis(self.variance, self.fourth).item()

    @property
    def kurtosis_head(self) -> torch.Tensor:
        """(kv_heads,)"""
        return kurtosis(self.variance_head, self.fourth_head)

    @property
    def hoyer_sparsity(self) -> float:
        l2 = self.square_head.sum().sqrt()
        return hoyer_sparsity(self.n_entries, self.abs_head.sum(), l2).item()

    @property
    def hoyer_sparsity_head(self) -> torch.Tensor:
        """(kv_heads,)"""
        return hoyer_sparsity(self.entries_per_head, self.abs_head, self.norm_head)


@dataclass(frozen=True)
class Sweep:
    """A cache's sums: `sums[kind][i]` belongs to `cache.layers[i]`, `thresholds[kind]` to all.

    kv_correlation: (layers,) Pearson correlation of a layer's flattened keys and values; NaN
        where their shapes differ.
    energy_head: for each layer (kv_heads,) the mean over tokens of `attention_energy`, NaN where
        attention was not measured.
    of_tokens, of_positions: means over the layers of `spanning`, the latter by kind.
    """

    cache: KVCache
    thresholds: dict[str, float]
    percentage: float
    sums: dict[str, list[TensorSums]]
    kv_correlation: list[float]
    energy_head: list[torch.Tensor]
    of_tokens: TokenMeans
    of_positions: dict[str, PositionMeans]

    @property
    def spanning(self) -> list[int]:
        return spanning(self.cache)


def spanning(cache: KVCache) -> list[int]:
    """Places of the layers that hold the most tokens. What is averaged over layers token by token
    is averaged over these: with layers whose window has forgotten the older tokens, the mean would
    step at the window's edge for no reason of the tokens'."""
    most = max(layer.n_tokens for layer in cache.layers)
    return [i for i, layer in enumerate(cache.layers) if layer.n_tokens == most]


Peaks = dict[str, float]  # kind -> the maximum of |x| over all layers, heads, tokens and dims


def peaks(cache: KVCache) -> Peaks:
    """The maxima of a cache."""
    with side_by_side() as in_threads:
        return {
            kind: max(in_threads(_peak, [layer.tensor(kind) for layer in cache.layers]))
            for kind in KINDS
        }


def _peak(x: torch.Tensor) -> float:
    pieces = list(slices(x.shape[1], tokens_at_once(x)))
    extremes = torch.empty(len(pieces), 2)
    for i, places in enumerate(pieces):
        extremes[i] = torch.stack(block(x, places).aminmax())
    return extremes.abs().max().item()


def thresholds(cache: KVCache, percentage: float, known: Peaks | None = None) -> dict[str, float]:
    """The magnitude below which an entry counts as sparse: `percentage` % of the maximum of |x|
    over all layers, heads, tokens and dims, for keys and values each."""
    of_kinds = peaks(cache) if known is None else known
    return {kind: max(peak * percentage / 100, _tiny()) for kind, peak in of_kinds.items()}


def _tiny() -> float:
    return torch.finfo(torch.float32).tiny  # where all entries are zero, all of them are sparse


def sweep(cache: KVCache, percentage: float, believed: Peaks | None = None) -> Sweep:
    """All sums of a cache, in one pass after the one for the global maxima.

    believed: the maxima as someone has told them, for one pass alone. It finds the true ones beside
    the sums; where it was told others, all is done again.
    """
    limits = thresholds(cache, percentage, believed)
    walks = [LayerWalk(layer, limits, n_octaves(percentage)) for layer in cache.layers]
    chosen = [cache.layers[i] for i in spanning(cache)]
    of_tokens = TokenMeans(chosen)
    of_positions = {kind: PositionMeans(chosen, kind) for kind in KINDS}
    for span, parts in _walked(walks, max(layer.n_tokens for layer in cache.layers)):
        for layer, of_layer in zip(chosen, parts, strict=True):
            of_tokens.add(layer, span, {kind: of_layer[kind].norm_head_token for kind in KINDS})
        for kind in KINDS:
            of_positions[kind].add(span, [of_layer[kind].abs_token_dim for of_layer in parts])
    true = {kind: max(walk.of[kind].heads.peak for walk in walks) for kind in KINDS}
    if believed is not None and believed != true:
        return sweep(cache, percentage, true)
    return Sweep(
        cache=cache,
        thresholds=limits,
        percentage=percentage,
        sums={kind: [TensorSums.of(walk.of[kind]) for walk in walks] for kind in KINDS},
        kv_correlation=[walk.correlation for walk in walks],
        energy_head=[walk.mean_energy for walk in walks],
        of_tokens=of_tokens,
        of_positions=of_positions,
    )


def _walked(
    walks: list[LayerWalk], n_tokens: int
) -> Iterator[tuple[slice, list[dict[str, SpanOfLayer]]]]:
    """Let every layer add up its tokens, span by span: each span, and what the layers that hold all
    of the `n_tokens` gave for means over them."""
    with side_by_side() as in_threads:
        for span in slices(n_tokens, SPAN):
            inside = [walk for walk in walks if walk.layer.n_tokens > span.start]
            parts = in_threads(partial(LayerWalk.take, span=span), inside)
            pairs = zip(inside, parts, strict=True)
            yield span, [part for walk, part in pairs if walk.layer.n_tokens == n_tokens]


def below_per_token(x: torch.Tensor, limit: float) -> torch.Tensor:
    """(tokens,) entries of x (kv_heads, tokens, dim) below the limit."""
    found = torch.empty(x.shape[1], dtype=torch.long)
    for places in slices(x.shape[1], tokens_at_once(x)):
        found[places] = (block(x, places).float().abs() < limit).sum((0, 2))
    return found
