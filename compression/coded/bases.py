"""An orthonormal basis in few bits, more of them for columns that hold more.

What a column is off its direction picks up energy of the others, and they of it: an error of one
that holds much costs all. So each gets the bits at which its leak is the same, as reverse
water-filling has it: one for each octave that its coefficients spread wider than the usual one of
the last quarter. The columns are made orthonormal again, in order, as they are read: the first keep
to their many bits, and the others are at right angles to them. docs/codec.md says what it costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compression.methods.packing import nbytes_of, pack, unpack
from compression.stored import Tensors, taken

# Of a column that spreads like the usual one of the last quarter: as many of these as there is room
# for. More than the most gain nothing.
USUAL_BITS = (3, 2, 1.5, 1, 0.75)
FEWEST, MOST, PLAIN = 2, 8, 16  # bits of a number; beyond MOST it is a float16
REACHES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2)  # of codes, in a column's largest number
Directions = tuple[torch.Tensor, torch.Tensor]  # (width, columns), and (columns,) their spread


def fitting(directions: Sequence[Directions], room: float) -> list[Tensors]:
    """What is stored of each basis, all with as many usual bits as `room` bytes allow, or with the
    fewest."""
    for usual in USUAL_BITS:
        n_bits = sum(len(basis) * int(_bits(spread, usual).sum()) for basis, spread in directions)
        if n_bits / 8 <= room:
            break
    return [kept(basis, spread, usual) for basis, spread in directions]


def kept(basis: torch.Tensor, spread: torch.Tensor, usual: float = USUAL_BITS[-1]) -> Tensors:
    """What is stored of (width, columns) orthonormal columns, whose coefficients have these
    (columns,) falling standard deviations, with so many usual bits.

    bits: uint8 (columns,), falling. plain: float16, the columns of 16 bits. scales: float16, of the
    others. <bits>: their codes, packed. What there is none of is left out."""
    basis, bits = basis.float(), _bits(spread, usual)
    stored, scales = {"bits": bits}, []
    for n in (PLAIN, *range(MOST, FEWEST - 1, -1)):
        columns = basis[:, bits == n]
        if columns.numel() and n == PLAIN:
            stored["plain"] = columns.half().contiguous()
        elif columns.numel():
            codes, of_columns = _closest(columns, n)
            stored[f"{n}"] = pack(codes, n)
            scales.append(of_columns)
    return stored | ({"scales": torch.cat(scales).half()} if scales else {})


def orthonormal(stored: Tensors, width: int) -> torch.Tensor:
    """(width, columns) float32, out of what is stored. Raises ValueError for what `kept` has not
    given."""
    columns = [part.numbers() for part in parts(stored, width)]
    orthogonal: torch.Tensor
    orthogonal, triangle = torch.linalg.qr(torch.cat(columns, dim=1))
    return orthogonal * torch.where(triangle.diagonal() < 0, -1.0, 1.0)


@dataclass(frozen=True)
class Columns:
    """Neighbours of as many bits. content: (width, columns) float16, or packed codes. scales:
    (columns,), None of float16."""

    bits: int
    content: torch.Tensor
    scales: torch.Tensor | None
    sizes: tuple[int, int]

    def numbers(self) -> torch.Tensor:
        """(width, columns) float32"""
        if self.scales is None:
            return self.content.float()
        return _numbers(unpack(self.content, self.bits, self.sizes), self.bits) * self.scales


def parts(stored: Tensors, width: int) -> list[Columns]:
    """All columns, in order, as they are stored; takes them out. Raises ValueError for what `kept`
    has not given."""
    bits = taken(stored, "bits", (torch.uint8,), width)
    counts = {n: int((bits == n).sum()) for n in (PLAIN, *range(MOST, FEWEST - 1, -1))}
    if sum(counts.values()) != width or (bits[1:] > bits[:-1]).any():
        raise ValueError("the bits of its columns do not fall from 16 to 2")
    n_plain = counts.pop(PLAIN)
    made = []
    if n_plain:
        plain = taken(stored, "plain", (torch.float16,), width, n_plain)
        made.append(Columns(PLAIN, plain, None, (width, n_plain)))
    if n_plain < width:
        scales = taken(stored, "scales", (torch.float16,), width - n_plain).float()
        for (n, n_columns), of_columns in zip(
            counts.items(), scales.split(list(counts.values())), strict=True
        ):
            if n_columns:
                packed = taken(stored, f"{n}", (torch.uint8,), nbytes_of(width * n_columns, n))
                made.append(Columns(n, packed, of_columns, (width, n_columns)))
    return made


def _bits(spread: torch.Tensor, usual: float) -> torch.Tensor:
    narrow = spread[-max(1, len(spread) // 4) :].median().clamp(min=1e-30)
    bits = (usual + torch.log2(spread.clamp(min=1e-30) / narrow)).round()
    bits = torch.where(bits > MOST, PLAIN, bits.clamp(min=FEWEST))
    return bits.cummin(0).values.to(torch.uint8)


def _closest(x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(width, columns) uint8 codes of n bits, and (columns,) the scales that bring them closest."""
    codes, scales = torch.zeros(x.shape, dtype=torch.uint8), torch.zeros(x.shape[1])
    least = torch.full_like(scales, torch.inf)
    half = 1 << n - 1
    for reach in REACHES:
        scale = (reach * x.abs().amax(0)).half().float().clamp(min=1e-7)
        tried = (x * (half / scale)).floor().clamp(-half, half - 1).add(half).to(torch.uint8)
        off = (_numbers(tried, n) * scale - x).square().sum(0)
        codes = torch.where(off < least, tried, codes)
        scales = torch.where(off < least, scale, scales)
        least = torch.minimum(least, off)
    return codes, scales


def _numbers(codes: torch.Tensor, n: int) -> torch.Tensor:
    """float32 in -1 to 1, none of them 0."""
    half = 1 << n - 1
    return (codes.float() - half + 0.5) / half
