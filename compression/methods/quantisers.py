"""Fewer bits for every entry: 8-bit floats, 8-bit integers, and KIVI's 4, 3 or 2 bits."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from compression.methods.packing import pack, take_codes
from compression.methods.place_by_place import Place, PlaceByPlace, Shape
from compression.parts import Words
from compression.stored import FLOATS, Tensors, taken
from config import UsageError
from data.cache import in_16_bits

FP8 = torch.float8_e4m3fn
TINY = 1e-30  # stands in for a scale of zero where one is divided by


@dataclass(frozen=True)
class FloatQuantiser(PlaceByPlace):
    """8-bit floats (E4M3, 3 bits of mantissa; Micikevicius et al., arXiv 2209.05433), and a float32
    scale for each head that puts its largest |entry| at the largest 8-bit float."""

    name: ClassVar[str] = "fp8"
    called: ClassVar[Words] = {"codes": "8-bit floats", "scale": "scales"}

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        scale = x.abs().amax((1, 2), keepdim=True) / torch.finfo(FP8).max  # (heads, 1, 1)
        # In float32: there are few of them, and a 16-bit one would cut off the largest entries.
        return {"codes": (x / scale.clamp(min=TINY)).to(FP8), "scale": scale}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        scale = taken(parts, "scale", FLOATS, shape[0], 1, 1)
        return taken(parts, "codes", (FP8,), *shape).float() * scale


@dataclass(frozen=True)
class IntegerQuantiser(PlaceByPlace):
    """8-bit integers, symmetric around zero, and a 16-bit scale for each token of each head: a new
    token is stored without a look at the others, as servers do it. Rounding to a grid that the
    largest |entry| sets is that of LLM.int8() (Dettmers et al., arXiv 2208.07339)."""

    name: ClassVar[str] = "int8"
    called: ClassVar[Words] = {"codes": "integers", "scale": "scales"}

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        codes, scale = symmetric(x, 8, -1)
        return {"codes": codes, "scale": scale}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        scale = taken(parts, "scale", FLOATS, shape[0], shape[1], 1)
        return taken(parts, "codes", (torch.int8,), *shape).float() * scale.float()


@dataclass(frozen=True)
class KIVI(PlaceByPlace):
    """Packed codes between the smallest and the largest entry of each group, and two 16-bit numbers
    for it, the smallest entry and the step (Liu et al., KIVI, arXiv 2402.02750).

    Keys: a group is `group` tokens of one channel, since outliers stay in their channel. Values: a
    group is `group` channels of one token. What is left over is a smaller group. The most recent
    tokens are plain, as in the paper; defaults are its group and half of its 128 recent tokens.
    """

    name: ClassVar[str] = "kivi"
    called: ClassVar[Words] = {"codes": "integers", "step": "scales", "zero": "smallest entries"}
    bits: int = 4
    group: int = 32
    recent_tokens: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_bits(self.bits)
        if self.group < 1:
            raise UsageError(
                f"KIVI was given groups of {self.group}", "they take 1 or more entries"
            )

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        along = x.transpose(1, 2) if place[1] == "key" else x  # groups lie along the last mode
        codes, step, zero = grouped(along, self.bits, self.group)
        return {"codes": pack(codes, self.bits), "step": step, "zero": zero}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        heads, tokens, dim = shape
        along = (heads, dim, tokens) if place[1] == "key" else shape
        sizes = (heads, along[1], -(-along[2] // self.group))
        step, zero = (taken(parts, name, FLOATS, *sizes) for name in ("step", "zero"))
        x = ungrouped(take_codes(parts, "codes", self.bits, along), step, zero, self.group)
        return x.transpose(1, 2) if place[1] == "key" else x


def refuse_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise UsageError(f"Codes of {bits} bits were asked for", "they take 1 to 8, such as 4")


def symmetric(x: torch.Tensor, bits: int, mode: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes from -(2^(bits-1) - 1) to its negative, and 16-bit scales with one entry in
    `mode`: x ~ codes x scale, the largest |x| along `mode` at the last code."""
    largest = 2 ** (bits - 1) - 1
    scale = in_16_bits(x.abs().amax(mode, keepdim=True) / largest)
    codes = (x / scale.float().clamp(min=TINY)).round().clamp(-largest, largest)
    return codes.to(torch.int8), scale


def grouped(
    x: torch.Tensor, bits: int, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 codes (..., n) of x, and the 16-bit step and zero (..., groups) of each `group`
    neighbours along the last mode: x ~ codes x step + zero."""
    n = x.shape[-1]
    group = min(group, n)  # a larger one would be filled up for nothing
    # The last entry again and again moves neither end of the last group.
    filled = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], -n % group)], dim=-1)
    groups = filled.unflatten(-1, (-1, group))
    zero = in_16_bits(groups.amin(-1))
    # Measured from the zero as it is stored, so that its rounding costs the largest entry nothing.
    step = in_16_bits((groups.amax(-1) - zero.float()).clamp(min=0) / (2**bits - 1))
    steps = (groups - zero.float()[..., None]) / step.float()[..., None].clamp(min=TINY)
    codes = steps.round().clamp(0, 2**bits - 1).to(torch.uint8)
    return codes.flatten(-2)[..., :n], step, zero


def ungrouped(
    codes: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, group: int
) -> torch.Tensor:
    """The way back from `grouped`, in float32."""
    n = codes.shape[-1]
    group = min(group, n)
    step, zero = (t.float().repeat_interleave(group, -1)[..., :n] for t in (step, zero))
    return codes.float() * step + zero
