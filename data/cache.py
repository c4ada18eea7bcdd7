"""The nouns everybody shares: what one layer has cached, and the cache of one sequence.

Knows torch, and nothing of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from config import UsageError
from data.rotary import Rotary

KINDS = ("key", "value")
PER_ENTRY = ("keep", "attention", "recent_attention")  # (kv_heads, tokens), or None
BYTES_PER_ENTRY = 2  # caches are served in 16 bits, whatever dtype a run computes in


@dataclass(frozen=True)
class LayerKV:
    """The keys and values that one layer of the model has stored for one sequence.

    keys: (kv_heads, tokens, key_dim), after rotary embedding, as the model stored them.
    values: (kv_heads, tokens, value_dim); the widths differ where a latent is cached.
    positions: (tokens,) increasing places of the cached tokens in the text; a sliding window
        holds only the most recent ones.
    index: which layer of the model this is; layers without keys and values have no LayerKV.
    kind: "full", "sliding" or "latent".
    keep: (kv_heads, tokens), False where an entry was evicted and must not be attended to; None
        where nothing was. What stands in an evicted place has no meaning.
    rotary: what rotated the keys by position; None where that is not known.
    attention: (kv_heads, tokens), the mean weight that each token's key received from the text's
        queries that can see it; None where it was not measured.
    recent_attention: the same of the text's last few queries alone.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    index: int
    kind: str = "full"
    keep: torch.Tensor | None = None
    rotary: Rotary | None = None
    attention: torch.Tensor | None = None
    recent_attention: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.keys.ndim != 3 or self.values.ndim != 3:
            raise ValueError(
                f"keys and values are (kv_heads, tokens, dim), not {tuple(self.keys.shape)} "
                f"and {tuple(self.values.shape)}"
            )
        if self.keys.shape[:2] != self.values.shape[:2]:
            raise ValueError(
                "keys and values share kv_heads and tokens, not "
                f"{tuple(self.keys.shape)} and {tuple(self.values.shape)}"
            )
        if self.positions.shape != (self.n_tokens,):
            raise ValueError(f"{tuple(self.positions.shape)} positions for {self.n_tokens} tokens")
        for name in PER_ENTRY:
            per_entry = getattr(self, name)
            if per_entry is not None and per_entry.shape != self.keys.shape[:2]:
                raise ValueError(
                    f"{name} is (kv_heads, tokens) as are the keys, {tuple(self.keys.shape[:2])}, "
                    f"not {tuple(per_entry.shape)}"
                )

    @property
    def n_heads(self) -> int:
        return self.keys.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.keys.shape[1]

    @property
    def n_entries(self) -> int:
        return self.keys.numel() + self.values.numel()

    def tensor(self, kind: str) -> torch.Tensor:
        """Keys or values by name: (kv_heads, tokens, dim)."""
        return {"key": self.keys, "value": self.values}[kind]

    def with_tensor(self, kind: str, tensor: torch.Tensor) -> "LayerKV":
        """The same with other keys or values, by name."""
        both = {"key": (tensor, self.values), "value": (self.keys, tensor)}
        keys, values = both[kind]
        return replace(self, keys=keys, values=values)

    def unrotated_keys(self) -> torch.Tensor:
        """(kv_heads, tokens, key_dim) in float32, as they were before rotary embedding.

        Raises UsageError where it is not known what rotated them.
        """
        if self.rotary is None:
            raise UsageError(
                f"The rotary embedding of layer {self.index} cannot be undone exactly",
                "leave out `unrotated_keys`",
            )
        return self.rotary.unrotated(self.keys.float(), self.positions)

    def in_16_bits(self) -> "LayerKV":
        """As it is served; itself where it is so already."""
        both = [in_16_bits(x) for x in (self.keys, self.values)]
        if all(x.dtype == of.dtype for x, of in zip(both, (self.keys, self.values), strict=True)):
            return self
        return replace(self, keys=both[0], values=both[1])

    def before(self, position: int) -> "LayerKV":
        """The entries of tokens ahead of `position`, as views."""
        return self.between(slice(int(torch.searchsorted(self.positions, position))))

    def between(self, places: slice) -> "LayerKV":
        """The entries of these of its tokens, as views."""

        def part(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[:, places]

        return replace(
            self,
            keys=self.keys[:, places],
            values=self.values[:, places],
            positions=self.positions[places],
            keep=part(self.keep),
            attention=part(self.attention),
            recent_attention=part(self.recent_attention),
        )


class PastLayer(Protocol):
    """What one layer of the model's own cache object holds: (1, kv_heads, tokens, dim)."""

    keys: torch.Tensor
    values: torch.Tensor

    def get_seq_length(self) -> int:
        """Tokens that it was given, those that a window has forgotten too."""


class Past(Protocol):
    """The model's own cache object, as far as it is looked into here."""

    @property
    def layers(self) -> Sequence[PastLayer]: ...


@dataclass(frozen=True)
class KVCache:
    """What a model remembers of one sequence.

    layers: those that hold keys and values, in the model's order; they may differ in every shape.
    token_ids: (tokens,) of the whole sequence; from `n_prompt` on they were generated.
    model: what made it, in words.
    """

    layers: tuple[LayerKV, ...]
    token_ids: torch.Tensor
    n_prompt: int
    model: str

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a cache has at least one layer")
        if not 0 < self.n_prompt <= self.n_tokens:
            raise ValueError(f"n_prompt {self.n_prompt} of {self.n_tokens} tokens")

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_heads(self) -> int:
        """KV heads of the widest layer."""
        return max(layer.n_heads for layer in self.layers)

    @property
    def n_entries(self) -> int:
        return sum(layer.n_entries for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Original bytes: 16 bits for every cached entry."""
        return BYTES_PER_ENTRY * self.n_entries

    def in_16_bits(self) -> "KVCache":
        """The cache as it is served: float16, or bfloat16 where it was or float16 overflows."""
        return replace(
            self,
            layers=tuple(layer.in_16_bits() for layer in self.layers),
        )

    def before(self, position: int) -> "KVCache":
        """The cache as it stands for the tokens ahead of `position`: views, no copies.

        Decoding never changes past entries, so this is what the cache held then, except that a
        sliding window has since forgotten its oldest tokens.
        """
        if not 0 < position <= self.n_tokens:
            raise ValueError(f"position {position} in a cache of {self.n_tokens} tokens")
        return replace(
            self,
            layers=tuple(layer.before(position) for layer in self.layers),
            token_ids=self.token_ids[:position],
            n_prompt=min(self.n_prompt, position),
        )


def in_16_bits(x: torch.Tensor) -> torch.Tensor:
    """A tensor as it is stored plainly: float16, or bfloat16 where it was or float16 overflows."""
    return x.to(dtype_in_16_bits(x))


def dtype_in_16_bits(x: torch.Tensor) -> torch.dtype:
    """In which a tensor is stored plainly."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return x.dtype
    fits = not x.numel() or x.abs().amax() <= torch.finfo(torch.float16).max
    return torch.float16 if fits else torch.bfloat16


def wide(x: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens, dim) -> (tokens, kv_heads x dim): the heads of a token side by side."""
    return x.transpose(0, 1).flatten(1)


def by_head(x: torch.Tensor, n_heads: int) -> torch.Tensor:
    """(tokens, kv_heads x dim) -> (kv_heads, tokens, dim), a view: the inverse of `wide`."""
    return torch.unflatten(x, 1, (n_heads, -1)).transpose(0, 1)
