"""Tensors of any length in blocks of tokens, so that working memory does not grow with the text.

Blocks are small enough to stay in the processor's own cache. Layers are walked side by side, one
thread each: threads within so small an operation would wait for each other longer than they work.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

SPAN = 2048  # tokens that are looked at in all layers before the next
ENTRIES = {"cpu": 1 << 18, "mps": 1 << 18}  # of a block; mps lacks float64, its blocks are copied
ENTRIES_ELSEWHERE = 1 << 22  # where each operation costs a launch

Given = TypeVar("Given")
Made = TypeVar("Made")


def slices(n: int, size: int) -> Iterator[slice]:
    """0 to n in pieces of `size`, the last one shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def tokens_at_once(x: torch.Tensor) -> int:
    """Tokens of a block of x (kv_heads, tokens, dim)."""
    entries = ENTRIES.get(x.device.type, ENTRIES_ELSEWHERE)
    return max(1, entries // max(1, x.shape[0] * x.shape[2]))


def blocks(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """x (kv_heads, tokens, dim) piece by piece, each (kv_heads, few tokens, dim) in float32 on a
    device that knows float64."""
    return (block(x, places).float() for places in slices(x.shape[1], tokens_at_once(x)))


def block(x: torch.Tensor, places: slice) -> torch.Tensor:
    """The tokens of x at these places, in its own dtype, on a device that knows float64."""
    part = x[:, places]
    return part.cpu() if x.device.type == "mps" else part


class Scratch(threading.local):
    """Working memory of a thread by name, taken once: fresh memory for every step of every block
    costs more in page faults than the arithmetic does."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def like(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Float32 in the shape of x; what stands in it has no meaning."""
        held = self._held.get(name)
        if held is None or held.numel() < x.numel() or held.device != x.device:
            held = self._held[name] = torch.empty(x.numel(), device=x.device)
        return held[: x.numel()].view(x.shape)


def norms(x: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens, dim) -> (kv_heads, tokens) L2 norms over dims, in float32, on the cpu."""
    # Filled, here and elsewhere: small results between large blocks would leave holes in memory
    found = torch.empty(x.shape[:2])
    for places in slices(x.shape[1], tokens_at_once(x)):
        found[:, places] = torch.linalg.vector_norm(block(x, places).float(), dim=-1)
    return found


def attention_energy(attention: torch.Tensor, value_norms: torch.Tensor) -> torch.Tensor:
    """(kv_heads, tokens): the weight that a token's key received from the queries, times the norm
    of the value that they got for it."""
    return attention.to(value_norms.device) * value_norms


def grams(x: torch.Tensor) -> torch.Tensor:
    """(kv_heads x dim, kv_heads x dim) in float64, on the cpu: inner products over tokens of every
    two dimensions of all heads of x (kv_heads, tokens, dim)."""
    wide = x.shape[0] * x.shape[2]
    total = torch.zeros(wide, wide, dtype=torch.float64)
    for part in blocks(x):
        rows = part.transpose(0, 1).flatten(1).double()
        total += (rows.mT @ rows).cpu()
    return total


@contextmanager
def side_by_side() -> Iterator[
    Callable[[Callable[[Given], Made], Iterable[Given]], Iterator[Made]]
]:
    """A `map` over threads, results in the order of what was given, and what each thread does on
    one CPU."""
    n_threads = torch.get_num_threads()
    on_one_cpu = partial(torch.set_num_threads, 1)
    on_one_cpu()
    try:
        with ThreadPoolExecutor(n_threads, initializer=on_one_cpu) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(n_threads)
