"""What is known of a cache without its keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data.cache import BYTES_PER_ENTRY, KVCache, LayerKV
from data.rotary import Rotary


@dataclass(frozen=True)
class LayerShape:
    """What is known of a layer without its content; positions are `start`, start + 1, ..."""

    index: int
    kind: str
    n_heads: int
    n_tokens: int
    key_dim: int
    value_dim: int
    start: int
    dtype: str
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        sizes = (self.n_heads, self.n_tokens, self.key_dim, self.value_dim)
        if min(sizes) < 1 or min(self.index, self.start) < 0:
            raise ValueError(f"layer {self.index} claims sizes of {sizes} from {self.start} on")
        if self.rotary is not None and 2 * len(self.rotary.frequencies) > self.key_dim:
            raise ValueError(f"layer {self.index} turns more than its {self.key_dim} dimensions")

    @classmethod
    def of(cls, layer: LayerKV) -> "LayerShape":
        return cls(
            index=layer.index,
            kind=layer.kind,
            n_heads=layer.n_heads,
            n_tokens=layer.n_tokens,
            key_dim=layer.keys.shape[2],
            value_dim=layer.values.shape[2],
            start=int(layer.positions[0]),
            dtype=str(layer.keys.dtype).removeprefix("torch."),
            rotary=layer.rotary,
        )

    def dim(self, kind: str) -> int:
        return {"key": self.key_dim, "value": self.value_dim}[kind]

    def sizes(self, kind: str) -> tuple[int, int, int]:
        """(heads, tokens, dim) of the keys or the values."""
        return self.n_heads, self.n_tokens, self.dim(kind)

    @property
    def n_entries(self) -> int:
        return self.n_heads * self.n_tokens * (self.key_dim + self.value_dim)

    @property
    def entries_of_token(self) -> int:
        return self.n_heads * (self.key_dim + self.value_dim)

    @property
    def positions(self) -> torch.Tensor:
        return torch.arange(self.start, self.start + self.n_tokens)

    def rotated(self, keys: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Keys (heads, tokens, dim) after rotary embedding at these (tokens,) positions, or at
        those of the layer."""
        if self.rotary is None:
            raise ValueError(f"it is not known what rotates the keys of layer {self.index}")
        return self.rotary.rotated(keys, self.positions if positions is None else positions)

    def filled(
        self, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor | None = None
    ) -> LayerKV:
        """The layer with this content, in its own dtype."""
        dtype = getattr(torch, self.dtype)
        return LayerKV(
            keys.to(dtype),
            values.to(dtype),
            self.positions,
            self.index,
            self.kind,
            keep=keep,
            rotary=self.rotary,
        )


@dataclass(frozen=True)
class CacheShape:
    """What is known of a cache without its keys and values: the text and the model are given."""

    layers: tuple[LayerShape, ...]
    token_ids: tuple[int, ...]
    n_prompt: int
    model: str

    def __post_init__(self) -> None:
        indices = [layer.index for layer in self.layers]
        if not indices or indices != sorted(set(indices)):
            raise ValueError("layers of a cache are 1 or more, each once, in the model's order")
        n = len(self.token_ids)
        if any(layer.start + layer.n_tokens > n for layer in self.layers):
            raise ValueError(f"a layer holds tokens beyond the {n} of the text")
        if not 0 < self.n_prompt <= n:
            raise ValueError(f"n_prompt {self.n_prompt} of {n} tokens")

    @classmethod
    def of(cls, cache: KVCache) -> "CacheShape":
        shapes = tuple(LayerShape.of(layer) for layer in cache.layers)
        return cls(shapes, tuple(cache.token_ids.tolist()), cache.n_prompt, cache.model)

    @property
    def n_entries(self) -> int:
        return sum(layer.n_entries for layer in self.layers)

    def entries_by_token(self, spans: Sequence[slice] | None = None) -> torch.Tensor:
        """(tokens,) float64: the entries of each token of the text. spans: which tokens of each
        layer count, all that it holds where not given."""
        entries = torch.zeros(len(self.token_ids), dtype=torch.float64)
        for i, layer in enumerate(self.layers):
            span = slice(None) if spans is None else spans[i]
            entries[layer.positions[span]] += layer.entries_of_token
        return entries

    @property
    def nbytes(self) -> int:
        """Original bytes: 16 bits for every entry."""
        return BYTES_PER_ENTRY * self.n_entries

    def filled(self, layers: tuple[LayerKV, ...]) -> KVCache:
        return KVCache(layers, torch.tensor(self.token_ids), self.n_prompt, self.model)
