"""Caches in files of 16 bits, mapped: what benchmarks/scaling.py measures on.

A folder holds one file per layer, keys and then values (kv_heads, tokens, dim), and one of the
attention that tokens receive, float32; shorter texts are views of the same files.
"""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from data.cache import KINDS, KVCache, LayerKV
from data.rotary import Rotary

REPEATED = 1024  # tokens that are drawn; the others repeat them
PIECE = 8 << 20  # bytes that are read at a time


@dataclass(frozen=True)
class Shape:
    """Of a cache whose layers are alike."""

    n_layers: int
    n_heads: int
    n_tokens: int
    dim: int
    dtype: str = "bfloat16"
    frequencies: tuple[float, ...] = ()

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.n_heads, self.n_tokens, self.dim

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return 2 * 2 * self.n_layers * self.n_heads * self.n_tokens * self.dim


def write_drawn(folder: Path, shape: Shape, dim_spread: float = 1.5) -> None:
    """Normal entries whose scale differs by dimension, as that of keys does."""
    for i in range(shape.n_layers):
        generator = torch.Generator().manual_seed(i)
        both = []
        for _ in range(2):
            scale = (dim_spread * torch.randn(shape.dim, generator=generator)).exp()
            sizes = (shape.n_heads, min(REPEATED, shape.n_tokens), shape.dim)
            both.append(scale * torch.randn(sizes, generator=generator))
        received = torch.rand(both[0].shape[:2], generator=generator)
        write_layer(folder, i, shape, both, received)
    (folder / "shape.json").write_text(json.dumps(asdict(shape)))


def write_layer(
    folder: Path, i: int, shape: Shape, both: list[torch.Tensor], received: torch.Tensor
) -> None:
    """Keys and values in the layer's dtype, repeated until the text is as long as it shall be."""
    with (folder / f"{i}.kv").open("wb") as file:
        for x in both:
            for head in x.to(getattr(torch, shape.dtype)):
                _repeat(file, head, shape.n_tokens)
    with (folder / f"{i}.attention").open("wb") as file:
        for head in received:
            _repeat(file, head, shape.n_tokens)


def write_repeated(folder: Path, cache: KVCache, n_tokens: int, noise: float = 0.05) -> None:
    """A text whose tokens are those of a cache again and again, each time with other noise, and
    turned as they would be there: longer than its model reaches."""
    first, context = cache.layers[0], cache.n_tokens
    if first.rotary is None or any(layer.rotary != first.rotary for layer in cache.layers):
        raise ValueError("layers that are turned alike can be repeated")
    shape = Shape(
        cache.n_layers,
        first.n_heads,
        n_tokens,
        first.keys.shape[2],
        str(first.keys.dtype).removeprefix("torch."),
        first.rotary.frequencies,
    )
    for i, layer in enumerate(cache.layers):
        sizes = (len(KINDS), *shape.sizes)
        whole = np.memmap(folder / f"{i}.kv", np.int16, "w+", shape=sizes)
        still = {"key": layer.unrotated_keys(), "value": layer.values.float()}
        for start in range(0, n_tokens, context):
            positions = torch.arange(start, min(start + context, n_tokens))
            for k, kind in enumerate(KINDS):
                x = still[kind][:, : len(positions)]
                x = x + noise * x.std() * torch.randn(x.shape)
                if kind == "key":
                    x = first.rotary.rotated(x, positions)
                stored = x.to(first.keys.dtype).view(torch.int16).numpy()
                whole[k, :, start : start + len(positions)] = stored
        if layer.recent_attention is None:
            raise ValueError("attention was not measured")
        with (folder / f"{i}.attention").open("wb") as file:
            for head in layer.recent_attention.float():  # as precise as in the context itself
                _repeat(file, head, n_tokens)
    (folder / "shape.json").write_text(json.dumps(asdict(shape)))


def _repeat(file: BinaryIO, rows: torch.Tensor, n: int) -> None:
    contents = rows.contiguous().view(torch.uint8).numpy().tobytes()
    whole, rest = divmod(n, len(rows))
    for _ in range(whole):
        file.write(contents)
    file.write(contents[: rest * len(contents) // len(rows)])


def files(folder: Path) -> list[Path]:
    """Those of keys and values."""
    return sorted(folder.glob("*.kv"))


def mapped(folder: Path, n_tokens: int | None = None, n_layers: int | None = None) -> KVCache:
    """The cache of a folder, or of the beginning of its text, or its first layers."""
    words = json.loads((folder / "shape.json").read_text())
    shape = Shape(**words)
    rotary = Rotary(tuple(shape.frequencies))
    layers = []
    for i in range(n_layers or shape.n_layers):
        keys, values = _tensors(folder / f"{i}.kv", getattr(torch, shape.dtype), shape.sizes)
        (received,) = _tensors(folder / f"{i}.attention", torch.float32, shape.sizes[:2])
        positions = torch.arange(shape.n_tokens)
        layers.append(
            LayerKV(
                keys,
                values,
                positions,
                i,
                rotary=rotary,
                attention=received,
                recent_attention=received,
            )
        )
    cache = KVCache(
        tuple(layers), torch.arange(shape.n_tokens), shape.n_tokens, f"random {shape.dtype}"
    )
    return cache.before(n_tokens) if n_tokens else cache


def _tensors(file: Path, dtype: torch.dtype, sizes: tuple[int, ...]) -> Iterator[torch.Tensor]:
    with file.open("rb") as opened:
        memory = mmap.mmap(
            opened.fileno(), 0, access=mmap.ACCESS_COPY
        )  # torch warns of what is read only
    whole = torch.frombuffer(memory, dtype=dtype)
    return iter(whole.view(-1, *sizes))


def forget(folder: Path) -> None:
    """Let the system drop what it keeps of the files in memory."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files(folder):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path) -> int:
    """Read all keys and values once, plainly; how many bytes those are."""
    buffer, total = bytearray(PIECE), 0
    for file in files(folder):
        with file.open("rb", buffering=0) as plain:
            while n := plain.readinto(buffer):
                total += n
    return total
