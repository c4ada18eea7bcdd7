"""What one pass over a cache adds up, block after block and layer beside layer.

The text is taken in spans. In each, every layer adds to sums of its own, which are small, and hands
over what is averaged over layers token by token: that is complete, and used up, before the next
span, so that nothing of (layers, tokens) or (tokens, dims) is ever held.
"""

import math
from dataclasses import dataclass

import torch

from analysis.blocks import SPAN, Scratch, attention_energy, block, slices, tokens_at_once
from analysis.head_sums import HeadSums, is_counted
from analysis.power_sums import covariance, over_rows
from data.cache import KINDS, LayerKV


@dataclass(frozen=True)
class SpanOfLayer:
    """What a layer's tokens of one span, keys or values, add to means over layers.

    abs_token_dim: (tokens, dim) sum of |x| over heads.
    norm_head_token: (kv_heads, tokens) L2 norm over dims.
    """

    abs_token_dim: torch.Tensor
    norm_head_token: torch.Tensor

    @classmethod
    def to_fill(cls, x: torch.Tensor, n_tokens: int) -> "SpanOfLayer":
        heads, _, dim = x.shape
        return cls(torch.empty(n_tokens, dim), torch.empty(heads, n_tokens))


COUNTED = 4 * SPAN  # tokens that are counted at once: each time costs 65,536 steps a head

_scratch = Scratch()


class TensorWalk:
    """Sums of one layer's keys or values X (kv_heads, tokens, dim), threshold t; see
    `measures.TensorSums`."""

    def __init__(self, x: torch.Tensor, threshold: float, octaves: int) -> None:
        heads, _, dim = x.shape
        self.x, self.threshold = x, threshold
        self.heads = HeadSums(x, threshold, octaves)
        self.below_head_dim = torch.zeros(heads, dim, dtype=torch.long)

    def count(self, first: int) -> None:
        """Add what needs no token told from another, where it is counted, of many tokens from the
        `first` on; call it for every span."""
        if is_counted(self.x) and first % COUNTED == 0:
            self.heads.add_counted(self.x[:, first : first + COUNTED])

    def take(self, places: slice, to: SpanOfLayer, inside: slice, name: str) -> torch.Tensor:
        """Add the rest of a block of tokens, and write to their places inside a span what they add
        to means over layers. What is left of the block less the pivots, (kv_heads, few tokens,
        dim), in scratch of that name."""
        part = block(self.x, places)
        x = _scratch.like(part, name).copy_(part)
        magnitude = torch.abs(x, out=_scratch.like(x, "magnitude"))
        to.abs_token_dim[inside] = magnitude.sum(0)
        norms = torch.linalg.vector_norm(x, dim=-1)
        to.norm_head_token[:, inside] = norms
        self.heads.powers.centre(x)
        # As numbers: counting flags takes several times as long
        below = torch.lt(magnitude, self.threshold, out=_scratch.like(x, "below"))
        self.below_head_dim += below.sum(1).long().cpu()
        if not is_counted(self.x):
            self.heads.add(x, magnitude, norms)
        return x


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
        n_tokens = span.stop - span.start
        tensors = {kind: self.layer.tensor(kind) for kind in KINDS}
        filled = {kind: SpanOfLayer.to_fill(tensors[kind], n_tokens) for kind in KINDS}
        for walk in self.of.values():
            walk.count(span.start)
        for inside in slices(n_tokens, min(map(tokens_at_once, tensors.values()))):
            places = slice(span.start + inside.start, span.start + inside.stop)
            keys, values = (
                walk.take(places, filled[kind], inside, kind) for kind, walk in self.of.items()
            )
            if self.products is not None:
                self.products += over_rows(keys.mul_(values).sum(2))
        if self.layer.attention is not None:
            norms = filled["value"].norm_head_token
            energy = attention_energy(self.layer.attention[:, span], norms)
            self.energy_head += energy.double().sum(1)
        return filled

    @property
    def correlation(self) -> float:
        """Pearson's, of keys and values flattened; NaN where their shapes differ or one is
        constant."""
        if self.products is None:
            return math.nan
        key, value = (self.of[kind].heads.powers for kind in KINDS)
        spread = math.sqrt(key.pooled()[0].item() * value.pooled()[0].item())
        return covariance(key, value, self.products).item() / spread if spread > 0 else math.nan

    @property
    def mean_energy(self) -> torch.Tensor:
        """(kv_heads,) in float64, of a token; NaN where attention was not measured."""
        if self.layer.attention is None:
            return torch.full((self.layer.n_heads,), torch.nan, dtype=torch.float64)
        return self.energy_head / self.layer.n_tokens
