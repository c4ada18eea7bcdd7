"""What one pass over a cache adds up, block after block and layer beside layer.

The text is taken in spans. In each, every layer adds to sums of its own, which are small, and hands
over what is averaged over layers token by token: that is complete, and used up, before the next
span, so that nothing of (layers, tokens) or (tokens, dims) is ever held.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from analysis import magnitude_bins
from analysis.blocks import Scratch, attention_energy, block, slices, tokens_at_once
from analysis.power_sums import PowerSums, covariance, over_rows
from data.cache import KINDS, LayerKV


@dataclass(frozen=True)
class SpanOfLayer:
    """What a layer's tokens of one span, keys or values, add to means over layers.

    abs_token_dim: (tokens, dim) sum of |x| over heads.
    norm_head_token: (kv_heads, tokens) L2 norm over dims.
    """

    abs_token_dim: torch.Tensor
    norm_head_token: torch.Tensor


_scratch = Scratch()


class TensorWalk:
    """Sums of one layer's keys or values X (kv_heads, tokens, dim), threshold t; see
    `measures.TensorSums`."""

    def __init__(self, x: torch.Tensor, threshold: float, octaves: int) -> None:
        heads, _, dim = x.shape
        self.x, self.threshold, self.octaves = x, threshold, octaves
        self.peak = 0.0
        self.powers = PowerSums(x)
        self.below_head_dim = torch.zeros(heads, dim, dtype=torch.long)
        self.abs_head = torch.zeros(heads, dtype=torch.float64)
        self.square_head = torch.zeros(heads, dtype=torch.float64)
        self.fine_counts: torch.Tensor | int = 0

    @property
    def magnitude_counts(self) -> torch.Tensor:
        return magnitude_bins.counts(torch.as_tensor(self.fine_counts))

    def take(self, places: slice, name: str) -> tuple[SpanOfLayer, torch.Tensor]:
        """Add a block of tokens. With what it adds to means over layers, what is left of it less
        the pivots, (kv_heads, few tokens, dim), in scratch of that name."""
        part = block(self.x, places)
        x = _scratch.like(part, name).copy_(part)
        magnitude = torch.abs(x, out=_scratch.like(x, "magnitude"))
        self.peak = max(self.peak, magnitude.amax().item())
        self.abs_head += over_rows(magnitude.sum(2))
        by_token = magnitude.sum(0).cpu()
        norms = torch.linalg.vector_norm(x, dim=-1).cpu()
        self.square_head += over_rows(norms.double().square())
        self.powers.add(x, _scratch)
        # As numbers: counting flags takes several times as long
        below = torch.lt(magnitude, self.threshold, out=_scratch.like(x, "square"))
        self.below_head_dim += below.sum(1).long().cpu()
        ratio = magnitude.div_(self.threshold)
        self.fine_counts = self.fine_counts + magnitude_bins.fine_counts(ratio, self.octaves)
        return SpanOfLayer(by_token, norms), x


class LayerWalk:
    """Sums of a layer's keys and values, and of both together."""

    def __init__(self, layer: LayerKV, thresholds: dict[str, float], octaves: int) -> None:
        self.layer = layer
        self.of = {
            kind: TensorWalk(layer.tensor(kind), thresholds[kind], octaves) for kind in KINDS
        }
        self.products: torch.Tensor | None = None
        if layer.keys.shape == layer.values.shape:
            self.products = torch.zeros(layer.n_heads, dtype=torch.float64)
        self.energy_head = torch.zeros(layer.n_heads, dtype=torch.float64)

    def take(self, span: slice) -> dict[str, SpanOfLayer]:
        """Add the tokens of a span that it holds; what they add to means over layers, by kind."""
        span = slice(span.start, min(span.stop, self.layer.n_tokens))
        parts: dict[str, list[SpanOfLayer]] = {kind: [] for kind in KINDS}
        size = min(tokens_at_once(self.layer.tensor(kind)) for kind in KINDS)
        for inside in slices(span.stop - span.start, size):
            places = slice(span.start + inside.start, span.start + inside.stop)
            centred = []
            for kind in KINDS:
                part, left = self.of[kind].take(places, kind)
                parts[kind].append(part)
                centred.append(left)
            if self.products is not None:
                self.products += over_rows(centred[0].mul_(centred[1]).sum(2))
        joined = {kind: _joined(parts[kind]) for kind in KINDS}
        if self.layer.attention is not None:
            energy = attention_energy(
                self.layer.attention[:, span], joined["value"].norm_head_token
            )
            self.energy_head += energy.double().sum(1)
        return joined

    @property
    def correlation(self) -> float:
        """Pearson's, of keys and values flattened; NaN where their shapes differ or one is
        constant."""
        if self.products is None:
            return math.nan
        key, value = (self.of[kind].powers for kind in KINDS)
        spread = math.sqrt(key.pooled()[0].item() * value.pooled()[0].item())
        return covariance(key, value, self.products).item() / spread if spread > 0 else math.nan

    @property
    def mean_energy(self) -> torch.Tensor:
        """(kv_heads,) in float64, of a token; NaN where attention was not measured."""
        if self.layer.attention is None:
            return torch.full((self.layer.n_heads,), torch.nan, dtype=torch.float64)
        return self.energy_head / self.layer.n_tokens


def _joined(parts: Sequence[SpanOfLayer]) -> SpanOfLayer:
    return SpanOfLayer(
        torch.cat([part.abs_token_dim for part in parts]),
        torch.cat([part.norm_head_token for part in parts], dim=1),
    )
