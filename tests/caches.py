"""Random caches of every awkward shape, for tests that compare with brute force."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from analysis.measures import sweep
from data.cache import KVCache, LayerKV
from data.rotary import Rotary


def layer(
    index: int,
    heads: int,
    tokens: int,
    dims: tuple[int, int],
    n_tokens: int | None = None,
    kind: str = "full",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LayerKV:
    """dims: (key_dim, value_dim). The cached tokens are the last `tokens` of `n_tokens`."""
    generator = torch.Generator().manual_seed(1000 * seed + index)
    n_tokens = n_tokens or tokens
    key = torch.randn(heads, tokens, dims[0], generator=generator)
    value = torch.randn(heads, tokens, dims[1], generator=generator) + 0.3
    key[0, 0, 0] = 20.0  # the outlier that sets the threshold
    rotary = Rotary(tuple(0.3 / (k + 1) for k in range(dims[0] // 2)))
    places = torch.arange(n_tokens - tokens, n_tokens)
    return LayerKV(key.to(dtype), value.to(dtype), places, index, kind, rotary=rotary)


def cache(*layers: LayerKV, n_prompt: int | None = None) -> KVCache:
    n_tokens = int(layers[0].positions[-1]) + 1
    return KVCache(tuple(layers), torch.arange(n_tokens), n_prompt or n_tokens, "random")


def alike(dtype: torch.dtype = torch.float32) -> KVCache:
    return cache(*(layer(i, 3, 10, (8, 8), dtype=dtype) for i in range(4)))


def mixed() -> KVCache:
    """A sliding, a wider full, a latent and an MQA layer; layer 1 of the model has no cache."""
    return cache(
        layer(0, 2, 6, (8, 8), n_tokens=10, kind="sliding"),
        layer(2, 3, 10, (16, 16)),
        layer(3, 1, 10, (24, 8), kind="latent"),
        layer(5, 1, 10, (8, 8)),
    )


SHAPES: dict[str, Callable[[], KVCache]] = {
    "alike": alike,
    "mixed": mixed,
    "one token": lambda: cache(layer(0, 2, 1, (4, 4))),
    "one entry a head": lambda: cache(layer(0, 2, 3, (1, 1))),
    "half precision": lambda: alike(dtype=torch.bfloat16),
}

PERCENTAGE = 5.0


def below(cache: KVCache, kind: str) -> list[np.ndarray]:
    """Per layer a bool array (kv_heads, tokens, dim): under the threshold of the whole cache."""
    t = np.float32(sweep(cache, PERCENTAGE).thresholds[kind])
    return [np.abs(layer.tensor(kind).numpy()) < t for layer in cache.layers]


def random_attention(cache: KVCache) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(layer.n_heads, layer.n_tokens) for layer in cache.layers]
    return [torch.rand(shape, generator=generator) for shape in shapes]


def with_attention(cache: KVCache, attention: Sequence[torch.Tensor | None]) -> KVCache:
    pairs = zip(cache.layers, attention, strict=True)
    layers = tuple(replace(x, attention=a, recent_attention=a) for x, a in pairs)
    return replace(cache, layers=layers)


def watched(cache: KVCache) -> KVCache:
    return with_attention(cache, random_attention(cache))


def words(cache: KVCache) -> list[str]:
    return [f"w{i}" for i in range(cache.n_tokens)]
