"""Integers in blocks of one width each, packed without an entropy coder: every block stands at a
place that its predecessors' widths tell, so that many can be read at once, as accelerators do."""

from collections.abc import Iterator

import numpy as np
import torch

from compression.methods.packing import pack, take_codes
from compression.stored import Tensors

BLOCK = 64  # integers of one width
WIDTH_BITS = 6  # widths of 0 to 32 bits
MOST_BITS = 32
PLANE = 8  # bits that are packed at a time, the lowest first
_BELOW_SIGN = (1 << 31) - 1  # all bits of an int32 but the highest, which a shift fills


def encode(integers: np.ndarray) -> Tensors:
    """What is stored of (n,) int32 integers: the width of each block, and its bits."""
    signed = integers.astype(np.int32)
    folded = ((signed << 1) ^ (signed >> 31)).view(np.uint32)  # 0, -1, 1, -2, ... -> 0, 1, 2, 3
    blocks = np.pad(folded, (0, -len(folded) % BLOCK)).reshape(-1, BLOCK)
    exponents = np.frexp(blocks.max(1, initial=0).astype(np.float64))[1]
    widths = torch.from_numpy(exponents.astype(np.uint8))
    stored = {"widths": pack(widths, WIDTH_BITS)}
    for name, low, bits, alike in _planes(widths):
        part = (blocks[alike.numpy()] >> np.uint32(low) & np.uint32(2**bits - 1)).astype(np.uint8)
        stored[name] = pack(torch.from_numpy(part), bits)
    return stored


def decode(stored: Tensors, n: int) -> torch.Tensor:
    """The (n,) int32 integers that `encode` was given, where what is stored is."""
    n_blocks = -(-n // BLOCK)
    widths = take_codes(stored, "widths", WIDTH_BITS, (n_blocks,))
    if n_blocks and int(widths.max()) > MOST_BITS:
        raise ValueError(f"a block of integers claims {int(widths.max())} bits each")
    blocks = torch.zeros((n_blocks, BLOCK), dtype=torch.int32, device=widths.device)
    for name, low, bits, alike in _planes(widths):
        part = take_codes(stored, name, bits, (len(alike), BLOCK))
        blocks[alike] |= part.int() << low
    folded = blocks.flatten()[:n]
    return (folded >> 1 & _BELOW_SIGN) ^ -(folded & 1)


def costs(stored: Tensors, n: int) -> torch.Tensor:
    """(n,) float32: the bits that each of n integers takes, which its block tells; takes out what
    tells it."""
    widths = take_codes(stored, "widths", WIDTH_BITS, (-(-n // BLOCK),))
    return widths.float().repeat_interleave(BLOCK)[:n]


def _planes(widths: torch.Tensor) -> Iterator[tuple[str, int, int, torch.Tensor]]:
    """Name, lowest bit, bits and blocks of each part: blocks alike in how many bits they have in
    a plane are packed together."""
    for low in range(0, MOST_BITS, PLANE):
        left = (widths.int() - low).clamp(0, PLANE)
        for bits in range(1, PLANE + 1):
            alike = (left == bits).nonzero()[:, 0]
            if len(alike):
                yield f"bits.{low}.{bits}", low, bits, alike
