"""Rotary position embedding, undone and redone (Su et al., arXiv 2104.09864).

Keys are cached after rotation by their position. What rotated those of a model is told by
data/rotations.py.
"""

from dataclasses import dataclass

import torch

SMALLEST = 1e-6  # of what a model may scale its rotated keys by


@dataclass(frozen=True)
class Rotary:
    """frequencies: radians per position of each pair of dimensions. scaling: of the rotated part.
    interleaved: pairs are (0, 1), (2, 3), ...; otherwise (0, n/2), (1, n/2 + 1), ... Dimensions
    beyond the pairs are passed through."""

    frequencies: tuple[float, ...]
    scaling: float = 1.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        if not SMALLEST <= self.scaling <= 1 / SMALLEST:  # it is divided by
            raise ValueError(f"keys are rotated and scaled by {self.scaling:g}")

    def rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(heads, tokens, dim) turned forward by the angles of its (tokens,) positions."""
        return self.turn(positions.to(x.device)).forward(x)

    def unrotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The inverse of `rotated`."""
        return self.turn(positions.to(x.device)).back(x)

    def turn(self, positions: torch.Tensor) -> "Turn":
        """By the angles of these (tokens,) positions, for all that is held at them."""
        return Turn(*self.tables(positions), self.scaling, self.interleaved)

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unscaled cosine and sine, (tokens, pairs), as the models compute them: in float32."""
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=positions.device)
        angles = positions.float()[:, None] * frequencies
        return angles.cos(), angles.sin()


@dataclass(frozen=True, eq=False)
class Turn:
    """cos, sin: (tokens, pairs) unscaled, where what is turned is."""

    cos: torch.Tensor
    sin: torch.Tensor
    scaling: float
    interleaved: bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(heads, tokens, dim) after rotary embedding."""
        return self._turned(x, 1.0, self.scaling)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """(heads, tokens, dim) before it."""
        return self._turned(x, -1.0, 1 / self.scaling)

    def _turned(self, x: torch.Tensor, sign: float, scale: float) -> torch.Tensor:
        cos, sin = (t if scale == 1 else scale * t for t in (self.cos, self.sin))
        n, whole = 2 * cos.shape[1], x.float()
        if self.interleaved:
            first, second = whole[..., 0:n:2], whole[..., 1:n:2]
        else:
            first, second = whole[..., : n // 2], whole[..., n // 2 : n]
        pair = (
            torch.addcmul(first * cos, second, sin, value=-sign),
            torch.addcmul(second * cos, first, sin, value=sign),
        )
        joined = torch.stack(pair, dim=-1).flatten(-2) if self.interleaved else torch.cat(pair, -1)
        if n < x.shape[-1]:
            joined = torch.cat([joined, whole[..., n:]], dim=-1)
        return joined.to(x.dtype)


NOT_ROTATED = Rotary(())
