"""Rotary position embedding, undone and redone (Su et al., arXiv 2104.09864).

Keys are cached after rotation by their position. What rotated them is read off the model while it
runs: the tables that each layer was given, the frequencies that made them, and how the model's own
code pairs dimensions. A rotation that cannot be reproduced exactly is not claimed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(frozen=True)
class Rotary:
    """frequencies: radians per position of each pair of dimensions. scaling: of the rotated part.
    interleaved: pairs are (0, 1), (2, 3), ...; otherwise (0, n/2), (1, n/2 + 1), ... Dimensions
    beyond the pairs are passed through."""

    frequencies: tuple[float, ...]
    scaling: float = 1.0
    interleaved: bool = False

    def rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(heads, tokens, dim) turned forward by the angles of its (tokens,) positions."""
        return self._turned(x, positions, 1.0, self.scaling)

    def unrotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The inverse of `rotated`."""
        return self._turned(x, positions, -1.0, 1 / self.scaling)

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unscaled cosine and sine, (tokens, pairs), as the models compute them: in float32."""
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=positions.device)
        angles = positions.float()[:, None] * frequencies
        return angles.cos(), angles.sin()

    def _turned(
        self, x: torch.Tensor, positions: torch.Tensor, sign: float, scale: float
    ) -> torch.Tensor:
        cos, sin = (t.to(x.device) for t in self.tables(positions))
        n = 2 * len(self.frequencies)
        turning = x[..., :n].float()
        if self.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
        else:
            first, second = turning.chunk(2, dim=-1)
        pair = (first * cos - sign * second * sin, second * cos + sign * first * sin)
        joined = torch.stack(pair, dim=-1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        return torch.cat([scale * joined, x[..., n:].float()], dim=-1).to(x.dtype)


NOT_ROTATED = Rotary(())

Tables = tuple[torch.nn.Module, torch.Tensor, torch.Tensor]  # attention module, cos, sin
SeenTables = dict[int, Tables]  # by the layer's index


@contextmanager
def seen_tables(model: torch.nn.Module) -> Iterator[SeenTables]:
    """While entered, collects layer index -> (attention module, cos, sin) that a layer is given."""
    seen: SeenTables = {}

    def note(
        layer: int, module: torch.nn.Module, arguments: object, named: dict[str, object]
    ) -> None:
        tables = named.get("position_embeddings")
        if isinstance(tables, tuple | list) and len(tables) == 2:
            seen[layer] = (module, tables[0][0], tables[1][0])

    hooks = [
        module.register_forward_pre_hook(partial(note, layer), with_kwargs=True)
        for module in model.modules()
        if isinstance(layer := getattr(module, "layer_idx", None), int)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def rotary_of(
    model: torch.nn.Module, settings: object, seen: SeenTables, layer: int, key_dim: int
) -> Rotary | None:
    """What rotated the keys (dim `key_dim`) of a layer of a model of these settings; None where
    that cannot be told, NOT_ROTATED where nothing did."""
    if layer in seen:
        return _recovered(model, *seen[layer], key_dim)
    names = ("rope_parameters", "rope_theta", "rotary_dim", "rotary_pct")
    rotates = any(getattr(settings, name, None) for name in names)
    return None if rotates else NOT_ROTATED


def _recovered(
    model: torch.nn.Module,
    module: torch.nn.Module,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_dim: int,
) -> Rotary | None:
    """The Rotary that makes these tables (tokens, pairs or 2 x pairs) at positions 0, 1, ... and
    does what the model's own function does with them; None where there is none."""
    for name, buffer in model.named_buffers():
        if not name.endswith("inv_freq") or buffer.ndim != 1:
            continue
        frequencies = tuple(buffer.float().tolist())
        owner, _, leaf = name.rpartition(".")
        named = leaf.replace("inv_freq", "attention_scaling")
        scaling = getattr(model.get_submodule(owner), named, cos[0, 0].item())
        for interleaved in (False, True):
            rotary = Rotary(frequencies, float(scaling), interleaved)
            if _agrees(rotary, module, cos, sin, key_dim):
                return rotary
    return None


def _agrees(
    rotary: Rotary, module: torch.nn.Module, cos: torch.Tensor, sin: torch.Tensor, key_dim: int
) -> bool:
    """Whether the model's function, given its tables, turns random keys of full width alike, to
    the precision of the tables."""
    apply = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if apply is None or 2 * len(rotary.frequencies) > key_dim:
        return False
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, 1, len(cos), key_dim, generator=generator).to(cos.device)
    for arguments in ((key, key, cos[None], sin[None]), (key, cos[None], sin[None])):
        try:
            turned = apply(*(x.float() for x in arguments))
        except (RuntimeError, TypeError):  # the function takes other arguments or widths
            continue
        turned = turned[-1] if isinstance(turned, tuple) else turned
        ours = rotary.rotated(key[0], torch.arange(len(cos), device=cos.device))
        close = max(1e-3, 8 * torch.finfo(cos.dtype).eps)
        return turned.shape == key.shape and torch.allclose(turned[0], ours, atol=close)
    return False
