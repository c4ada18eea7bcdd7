"""Codes of 1 to 8 bits, packed without gaps into bytes."""

import math

import torch

from compression.stored import Tensors, taken


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(n x bits / 8, rounded up) bytes of n uint8 codes below 2^bits, of any shape."""
    _refuse_bits(bits)
    flat = codes.flatten()
    if flat.numel() and int(flat.amax()) >= 2**bits:
        raise ValueError(f"a code of {int(flat.amax())} does not fit into {bits} bits")
    eights = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8).long()
    words = (eights << _places(8, bits, codes)).sum(1, keepdim=True)  # 8 codes are `bits` bytes
    whole = (words >> _places(bits, 8, codes) & 255).to(torch.uint8)  # (n / 8, bits)
    return whole.flatten()[: nbytes_of(len(flat), bits)].clone()


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The uint8 codes of this shape that `pack` took."""
    _refuse_bits(bits)
    n = math.prod(shape)
    if len(packed) != nbytes_of(n, bits):
        raise ValueError(f"{n} codes of {bits} bits are not in {len(packed)} bytes")
    whole = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits).long()
    words = (whole << _places(bits, 8, packed)).sum(1, keepdim=True)
    eights: torch.Tensor = (words >> _places(8, bits, packed) & 2**bits - 1).to(torch.uint8)
    return eights.flatten()[:n].view(shape)


def take_codes(stored: Tensors, name: str, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The uint8 codes of this shape, taken out of what is stored; raises ValueError for others."""
    n_bytes = nbytes_of(math.prod(shape), bits)
    return unpack(taken(stored, name, (torch.uint8,), n_bytes), bits, shape)


def nbytes_of(n: int, bits: int) -> int:
    """Bytes that n packed codes take."""
    return (n * bits + 7) // 8


def _places(n: int, bits: int, like: torch.Tensor) -> torch.Tensor:
    """(n,) by how many bits each of n neighbours in a word is shifted."""
    return bits * torch.arange(n, device=like.device)


def _refuse_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"codes of {bits} bits: 1 to 8 are packed")
