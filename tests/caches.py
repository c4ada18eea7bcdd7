"""Random caches of every awkward shape, for tests that compare with brute force."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from analysis.measures import sweep
from data.cache import KINDS, KVCache, LayerKV
from data.rotary import Rotary
from data.saved_layers import TENSORS
from data.sensitivity import Sensitivity


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


def with_keep(cache: KVCache, keep: torch.Tensor) -> KVCache:
    """`cache` with what is outside `keep` (tokens,) evicted from every head and overwritten."""
    layers = []
    for layer in cache.layers:
        mask = keep[layer.positions].expand(layer.n_heads, -1).clone()
        noise = 100 * (~mask[..., None])
        layers.append(
            replace(layer, keys=layer.keys + noise, values=layer.values + noise, keep=mask)
        )
    return replace(cache, layers=tuple(layers))


def words(cache: KVCache) -> list[str]:
    return [f"w{i}" for i in range(cache.n_tokens)]


def random_gradients(cache: KVCache, seed: int = 0) -> Sensitivity:
    """Gradients by a cache, larger for some directions, as a model might give."""
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for layer in cache.layers:
        pair = {}
        for kind in KINDS:
            shape = layer.tensor(kind).shape
            sizes = torch.rand(shape[2], generator=generator)
            pair[kind] = torch.randn(shape, generator=generator) * sizes
        gradients.append(pair)
    return Sensitivity(cache, tuple(gradients), n_scored=3)


def equal(one: KVCache, two: KVCache) -> bool:
    """Whether keys and values are the same, bit for bit."""
    pairs = zip(one.layers, two.layers, strict=True)
    return all(torch.equal(a.tensor(kind), b.tensor(kind)) for a, b in pairs for kind in KINDS)


def same(one: KVCache, two: KVCache) -> bool:
    """Whether everything of two caches is the same, bit for bit."""
    if len(one.layers) != len(two.layers):
        return False
    for a, b in zip(one.layers, two.layers, strict=True):
        if (a.index, a.kind, a.rotary) != (b.index, b.kind, b.rotary):
            return False
        for name in TENSORS:
            x, y = getattr(a, name), getattr(b, name)
            if (x is None) != (y is None):
                return False
            if x is not None and (x.dtype != y.dtype or not torch.equal(x, y)):
                return False
    known = ("n_prompt", "model")
    alike = all(getattr(one, name) == getattr(two, name) for name in known)
    return alike and torch.equal(one.token_ids, two.token_ids)


def everything() -> KVCache:
    """Attention, evicted entries, layers of every kind, and tokens that were generated."""
    kept = with_keep(watched(mixed()), torch.arange(10) % 3 > 0)
    return replace(kept, n_prompt=7)
