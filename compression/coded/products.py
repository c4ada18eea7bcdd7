"""The products of matrices with which a group is taken to coefficients, and back: where its cache
is, and as precise as is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# What the CPU multiplies in 16 bits in hardware, by the names of torch.cpu.get_capabilities.
NATIVE = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, eq=False)
class Products:
    """analyses, syntheses: (columns, width) of each of the neighbours. firsts, turn, bands: as of
    their group. mean: (width,) float32 of all places."""

    analyses: tuple[torch.Tensor, ...]
    syntheses: tuple[torch.Tensor, ...]
    firsts: tuple[int, ...]
    turn: torch.Tensor
    bands: list[int]
    mean: torch.Tensor

    def coefficients(self, x: torch.Tensor, most: Sequence[int] | None = None) -> torch.Tensor:
        """(columns, tokens) float32, band after band, of (tokens, width) off the mean: all, or so
        many of the first columns of each band."""
        of_turn, *lefts = self.bands if most is None else most
        parts = x.to(self.turn.dtype).split([a.shape[1] for a in self.analyses], dim=1)
        firsts, bands = [], []
        for a, part, first, left in zip(self.analyses, parts, self.firsts, lefts, strict=True):
            of_part = a[: first + left] @ part.T
            firsts.append(of_part[:first])
            bands.append(of_part[first:])
        return torch.cat([self.turn.T[:of_turn] @ torch.cat(firsts), *bands]).float()

    def content(self, coefficients: torch.Tensor, most: Sequence[int]) -> torch.Tensor:
        """(tokens, width) float32 off the mean, of (columns, tokens): so many of each band."""
        turned, *bands = coefficients.to(self.turn.dtype).split(list(most))
        firsts = (self.turn[:, : len(turned)] @ turned).split(self.firsts)
        parts = []
        for synthesis, first, left in zip(self.syntheses, firsts, bands, strict=True):
            of_part = torch.cat([first, left])  # (columns, tokens)
            parts.append(of_part.T @ synthesis[: len(of_part)])
        return torch.cat(parts, dim=1).float()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies in it, else float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and any(_capabilities().get(name) for name in NATIVE)
    return torch.bfloat16 if native else torch.float32


def _capabilities() -> dict[str, object]:
    """Of the CPU, by name; none where torch is too old to tell."""
    told = getattr(torch.cpu, "get_capabilities", None)
    return dict(told()) if told else {}
