"""Means over layers of what each token, or each dimension at each token, has; put together layer by
layer, of which each hands over the same tokens at a time."""

from collections.abc import Mapping, Sequence

import torch

from analysis.blocks import attention_energy
from data.cache import KINDS, LayerKV

MOST_POSITIONS = 8192  # that a table tells apart; of longer texts, as many groups of neighbours


def group_size(n_tokens: int) -> int:
    """Neighbouring tokens that share a row where each would be more than a table can hold."""
    return -(-n_tokens // MOST_POSITIONS)


class TokenMeans:
    """(tokens,) in float64 by the name of its column, over layers that hold the same tokens."""

    def __init__(self, layers: Sequence[LayerKV]) -> None:
        n_tokens = layers[0].n_tokens
        self._layers = len(layers)
        self._measured = [layer for layer in layers if layer.attention is not None]
        names = [f"{kind}_norm" for kind in KINDS] + ["attention_energy"] * bool(self._measured)
        self._totals = {name: torch.zeros(n_tokens, dtype=torch.float64) for name in names}

    def add(self, layer: LayerKV, span: slice, norms: Mapping[str, torch.Tensor]) -> None:
        """norms: kind -> (kv_heads, tokens of the span) over dims."""
        for kind in KINDS:
            over_heads = norms[kind].double().square().sum(0).sqrt()
            self._totals[f"{kind}_norm"][span] += over_heads
        if layer.attention is not None:
            energy = attention_energy(layer.attention[:, span], norms["value"])
            self._totals["attention_energy"][span] += energy.mean(0)

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """Those of attention only where it was measured."""
        means = {
            name: total / (len(self._measured) if name == "attention_energy" else self._layers)
            for name, total in self._totals.items()
        }
        if self._measured:
            received = torch.zeros_like(means["key_norm"])
            for layer in self._measured:
                received += _over_heads(layer).double()
            means["attention_received"] = received / len(self._measured)
        return means


def _over_heads(layer: LayerKV) -> torch.Tensor:
    """(tokens,) the attention that tokens receive, mean over heads."""
    if layer.attention is None:
        raise ValueError(f"the attention of layer {layer.index} was not measured")
    return layer.attention.mean(0).cpu()


class PositionMeans:
    """(positions, dim) in float64: the mean |entry| of a dimension over heads and over the layers
    that have it; where positions are many, groups of neighbours share one.

    variance, mean: (dim,) over the tokens, however many share a position.
    """

    def __init__(self, layers: Sequence[LayerKV], kind: str) -> None:
        dims = [layer.tensor(kind).shape[2] for layer in layers]
        n_tokens, width = layers[0].n_tokens, max(dims)
        self._n, self._group = n_tokens, group_size(n_tokens)
        self._heads = torch.zeros(width, dtype=torch.long)
        for layer, dim in zip(layers, dims, strict=True):
            self._heads[:dim] += layer.n_heads
        n_positions = -(-n_tokens // self._group)
        self._grouped = torch.zeros(n_positions, width, dtype=torch.float64)
        self._pivot = torch.zeros(width, dtype=torch.float64)
        self._sums = torch.zeros(2, width, dtype=torch.float64)  # about the pivot

    def add(self, span: slice, of_layers: Sequence[torch.Tensor]) -> None:
        """of_layers: for each layer (tokens of the span, dim) sums of |entry| over heads."""
        total = torch.zeros(span.stop - span.start, len(self._heads), dtype=torch.float64)
        for part in of_layers:
            total[:, : part.shape[1]] += part
        mean = total / self._heads
        self._grouped.index_add_(0, torch.arange(span.start, span.stop) // self._group, mean)
        if not span.start:
            self._pivot = mean.mean(0)
        centred = mean - self._pivot
        self._sums += torch.stack([centred.sum(0), centred.square().sum(0)])

    @property
    def by_position(self) -> torch.Tensor:
        """(positions, dim)"""
        starts = torch.arange(0, self._n, self._group)
        sizes = (self._n - starts).clamp(max=self._group)
        return self._grouped / sizes[:, None]

    @property
    def places(self) -> torch.Tensor:
        """(positions,) which token of the layers is the first of each."""
        return torch.arange(0, self._n, self._group)

    @property
    def mean(self) -> torch.Tensor:
        return self._pivot + self._sums[0] / self._n

    @property
    def variance(self) -> torch.Tensor:
        first, second = self._sums / self._n
        variance: torch.Tensor = second - first.square()
        return variance.clamp(min=0)
