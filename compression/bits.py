"""Booleans at one bit each."""

import torch

_PLACES = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def packed(flags: torch.Tensor) -> torch.Tensor:
    """(n / 8, rounded up) bytes of a bool tensor of any shape."""
    flat = flags.flatten().to(torch.uint8)
    eights = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (eights * _PLACES.to(flat.device)).sum(1, dtype=torch.uint8)


def unpacked(stored: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The bool tensor of this shape that `packed` took."""
    eights = stored[:, None] & _PLACES.to(stored.device)
    return (eights != 0).flatten()[: torch.Size(shape).numel()].view(shape)
