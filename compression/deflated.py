"""Bytes deflated (DEFLATE, RFC 1951), and back without trusting what they claim to become."""

import zlib

import numpy as np
import torch

EFFORT = 9  # the most


def deflated(content: bytes) -> bytes:
    return zlib.compress(content, EFFORT)


def inflated(content: bytes | memoryview, most: int) -> bytes:
    """What was deflated; raises ValueError where that is no such thing, or becomes more than `most`
    bytes, which are never made."""
    stream = zlib.decompressobj()
    try:
        whole = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be inflated ({error})") from None
    if len(whole) > most or not stream.eof or stream.unused_data:
        raise ValueError(f"it cannot be inflated to {most:,} bytes")
    return whole


def inflated_to(content: bytes | memoryview, n_bytes: int) -> bytes:
    """The same where it must become so many bytes, no more and no less."""
    whole = inflated(content, n_bytes)
    if len(whole) != n_bytes:
        raise ValueError(f"{len(whole):,} bytes were inflated where {n_bytes:,} are due")
    return whole


def deflated_tensor(content: torch.Tensor) -> torch.Tensor:
    """(bytes,) uint8 of a uint8 tensor, where that is."""
    return _as_tensor(deflated(content.cpu().numpy().tobytes())).to(content.device)


def inflated_tensor(content: torch.Tensor, n_bytes: int) -> torch.Tensor:
    """(n_bytes,) uint8 of (bytes,) uint8, as `inflated_to`, where those are."""
    return _as_tensor(inflated_to(content.cpu().numpy().tobytes(), n_bytes)).to(content.device)


def _as_tensor(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())
