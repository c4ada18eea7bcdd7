"""Each measure of keys or values, defined once, and one sweep over a cache that takes them all.

The sweep visits each layer's tensor while it is warm in the processor's cache and keeps only small
sums, so that every table of a run costs one pass over the bytes (two with the global maximum).
"""

import math
from dataclasses import dataclass

import torch

from data.cache import KINDS, KVCache, LayerKV

# Magnitude bins are read off the bits of |x| / threshold: its exponent and leading mantissa bits.
OCTAVE_BITS = 5  # fine steps of 1/32 within a factor of two, put together to 4 bins:
OCTAVE_STARTS = (0, 6, 13, 22)  # 2^(k/4) - 1 in 32nds, rounded: bins of nearly equal log width
OCTAVES_BELOW = 10  # below the threshold; smaller magnitudes share the first bin
MANTISSA_BITS, EXPONENT_BIAS = 23, 127  # of float32

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


def norms(x: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens, dim) -> (kv_heads, tokens) L2 norms over dims, in float32, on the cpu."""
    over_dims: torch.Tensor = torch.linalg.vector_norm(x.float(), dim=-1)
    return over_dims.cpu()


def attention_energy(attention: torch.Tensor, value_norms: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens): the weight that a token's key received from the queries, times the norm
    of the value that they got for it."""
    return attention.to(value_norms.device) * value_norms


@dataclass(frozen=True)
class TensorSums:
    """What the tables need of one layer's keys or values X (kv_heads, tokens, dim), threshold t.

    below_head_dim: (kv_heads, dim) entries with |x| < t.
    abs_head: (kv_heads,) sum of |x|.
    abs_token_dim: (tokens, dim) sum of |x| over heads.
    norm_head_token: (kv_heads, tokens) L2 norm over dims.
    magnitude_counts: (bins,) entries in each bin of `magnitude_edges`.
    variance, fourth: population central moments 2 and 4.
    """

    n_entries: int
    below_head_dim: torch.Tensor
    abs_head: torch.Tensor
    abs_token_dim: torch.Tensor
    norm_head_token: torch.Tensor
    magnitude_counts: torch.Tensor
    variance: float
    fourth: float

    @property
    def entries_per_head(self) -> int:
        return self.n_entries // len(self.abs_head)

    @property
    def norm_head(self) -> torch.Tensor:
        """(kv_heads,) L2 norm over tokens and dims."""
        return self.norm_head_token.double().square().sum(1).sqrt()

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
        return math.sqrt(self.norm_head.square().sum().item() / self.n_entries)

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
    def hoyer_sparsity(self) -> float:
        l2 = self.norm_head.square().sum().sqrt()
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
    """

    cache: KVCache
    thresholds: dict[str, float]
    percentage: float
    sums: dict[str, list[TensorSums]]
    kv_correlation: list[float]

    @property
    def spanning(self) -> list[int]:
        return spanning(self.cache)


def spanning(cache: KVCache) -> list[int]:
    """Places of the layers that hold the most tokens. What is averaged over layers token by token
    is averaged over these: with layers whose window has forgotten the older tokens, the mean would
    step at the window's edge for no reason of the tokens'."""
    most = max(layer.n_tokens for layer in cache.layers)
    return [i for i, layer in enumerate(cache.layers) if layer.n_tokens == most]


def thresholds(cache: KVCache, percentage: float) -> dict[str, float]:
    """The magnitude below which an entry counts as sparse: `percentage` % of the maximum of |x|
    over all layers, heads, tokens and dims, for keys and values each."""
    return {kind: max(_peak(cache, kind) * percentage / 100, _tiny()) for kind in KINDS}


def _peak(cache: KVCache, kind: str) -> float:
    extremes = [torch.stack(layer.tensor(kind).aminmax()) for layer in cache.layers]
    return torch.stack(extremes).abs().max().item()


def _tiny() -> float:
    return torch.finfo(torch.float32).tiny  # where all entries are zero, all of them are sparse


def sweep(cache: KVCache, percentage: float) -> Sweep:
    """All sums of a cache, in one pass after the one for the global maxima."""
    limits = thresholds(cache, percentage)
    octaves = OCTAVES_BELOW + _octaves_above(percentage)
    scratch = _Scratch(cache)
    sums: dict[str, list[TensorSums]] = {kind: [] for kind in KINDS}
    correlations = []
    for layer in cache.layers:
        for kind in KINDS:
            x = layer.tensor(kind).float()
            sums[kind].append(_tensor_sums(x, limits[kind], octaves, scratch, kind))
        correlations.append(_correlation(layer, sums["key"][-1], sums["value"][-1], scratch))
    return Sweep(cache, limits, percentage, sums, correlations)


class _Scratch:
    """Working memory in the size of the largest layer, taken once: fresh memory for every step
    of every layer costs more in page faults than the arithmetic does."""

    def __init__(self, cache: KVCache) -> None:
        tensors = [layer.tensor(kind) for layer in cache.layers for kind in KINDS]
        size, device = max(t.numel() for t in tensors), tensors[0].device
        self._floats = {
            name: torch.empty(size, device=device) for name in ("magnitude", "work", *KINDS)
        }
        self._flags = torch.empty(size, dtype=torch.bool, device=device)

    def floats(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self._floats[name][: like.numel()].view(like.shape)

    def flags(self, like: torch.Tensor) -> torch.Tensor:
        return self._flags[: like.numel()].view(like.shape)


def _tensor_sums(
    x: torch.Tensor, threshold: float, octaves: int, scratch: _Scratch, kind: str
) -> TensorSums:
    """The sums of one tensor (kv_heads, tokens, dim); leaves it less its mean in the scratch."""
    n = x.numel()
    magnitude = torch.abs(x, out=scratch.floats("magnitude", x))
    work = scratch.floats("work", x)
    mean = x.sum(dtype=torch.float64).item() / n
    centred = torch.sub(x, mean, out=scratch.floats(kind, x))
    variance = torch.square(centred, out=work).sum(dtype=torch.float64).item() / n
    fourth = work.square_().sum(dtype=torch.float64).item() / n
    return TensorSums(
        n_entries=n,
        below_head_dim=torch.lt(magnitude, threshold, out=scratch.flags(x)).sum(1).cpu(),
        abs_head=magnitude.sum((1, 2), dtype=torch.float64).cpu(),
        abs_token_dim=magnitude.sum(0).cpu(),
        norm_head_token=norms(x),
        magnitude_counts=_magnitude_counts(torch.div(magnitude, threshold, out=work), octaves),
        variance=variance,
        fourth=fourth,
    )


def _correlation(layer: LayerKV, key: TensorSums, value: TensorSums, scratch: _Scratch) -> float:
    if layer.keys.shape != layer.values.shape:
        return math.nan
    centred = [scratch.floats(kind, layer.keys) for kind in KINDS]
    covariance = torch.mul(*centred, out=scratch.floats("work", layer.keys)).sum(
        dtype=torch.float64
    )
    spread = key.std * value.std * key.n_entries
    return covariance.item() / spread if spread > 0 else math.nan


def _magnitude_counts(ratio: torch.Tensor, octaves: int) -> torch.Tensor:
    """Entries of |x| / threshold per bin, (1 + 4 x octaves,); overwrites `ratio`.

    A float's exponent and leading mantissa bits, read as one integer, number its fine bin. Division
    rounds monotonically, so 1 is an exact edge.
    """
    first = (EXPONENT_BIAS - OCTAVES_BELOW) << OCTAVE_BITS
    fine = ratio.view(torch.int32).bitwise_right_shift_(MANTISSA_BITS - OCTAVE_BITS)
    fine.sub_(first - 1).clamp_(0, octaves << OCTAVE_BITS)
    counts = torch.bincount(fine.flatten(), minlength=1 + (octaves << OCTAVE_BITS)).cpu()
    ends = (*OCTAVE_STARTS[1:], 1 << OCTAVE_BITS)
    by_octave = counts[1:].view(octaves, -1)
    bins = [by_octave[:, a:b].sum(1) for a, b in zip(OCTAVE_STARTS, ends, strict=True)]
    return torch.cat([counts[:1], torch.stack(bins, dim=1).flatten()])


def _octaves_above(percentage: float) -> int:
    """Factors of two from the threshold to beyond the maximum."""
    return math.floor(math.log2(100 / percentage)) + 1


def magnitude_edges(threshold: float, percentage: float) -> torch.Tensor:
    """(bins + 1,) edges of the magnitude bins: 0, then 4 to each factor of two up to beyond the
    maximum; the threshold is one of them."""
    exponents = torch.arange(-OCTAVES_BELOW, _octaves_above(percentage), dtype=torch.float64)
    steps = 1 + torch.tensor(OCTAVE_STARTS, dtype=torch.float64) / (1 << OCTAVE_BITS)
    edges = (2.0 ** exponents[:, None] * steps).flatten().tolist()
    last = 2.0 ** _octaves_above(percentage)
    return threshold * torch.tensor([0.0, *edges, last], dtype=torch.float64)


def below_per_token(cache: KVCache, limits: dict[str, float]) -> dict[str, list[torch.Tensor]]:
    """Entries below the threshold per token: kind -> for each layer (tokens,)."""
    return {
        kind: [
            (layer.tensor(kind).float().abs() < limits[kind]).sum((0, 2)).cpu()
            for layer in cache.layers
        ]
        for kind in KINDS
    }
