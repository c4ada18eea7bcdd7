"""Bytes deflated (DEFLATE, RFC 1951) in a tensor, and back without trusting their size."""

import zlib

import numpy as np
import torch

EFFORT = 9  # the most


def deflated(content: bytes) -> bytes:
    return zlib.compress(content, EFFORT)


def deflated_tensor(content: torch.Tensor) -> torch.Tensor:
    """(bytes,) uint8 of a uint8 tensor."""
    return as_bytes(deflated(content.cpu().numpy().tobytes()))


def inflated(content: bytes | memoryview, n_bytes: int) -> bytes:
    """The `n_bytes` that were deflated; raises ValueError for others. No more is made than is due,
    whatever a stranger's file would become."""
    stream = zlib.decompressobj()
    try:
        whole = stream.decompress(content, n_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be inflated ({error})") from None
    if len(whole) != n_bytes or not stream.eof or stream.unused_data:
        raise ValueError(f"{len(whole)} bytes were inflated where {n_bytes} are due")
    return whole


def inflated_tensor(content: torch.Tensor, n_bytes: int) -> torch.Tensor:
    """(n_bytes,) uint8 of (bytes,) uint8, as `inflated`."""
    return as_bytes(inflated(content.cpu().numpy().tobytes(), n_bytes))


def as_bytes(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
