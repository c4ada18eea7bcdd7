"""How much an error of a token weighs: the more the text's last queries look at it, the more.

What the model will predict next hangs on the tokens that it has just looked at, as eviction has
found (SnapKV, arXiv 2404.14469), and precision can follow attention where eviction decides once
(MiKV, arXiv 2402.18096; ZipCache, arXiv 2405.14256). The weight is a power of the attention; where
a model does not show its attention, of the token's age.

A chunk has neither queries nor an age. What its keys alone tell is which tokens are like no others:
many of those are sinks, on which most hangs (KeyDiff, arXiv 2504.15364, evicts by the same sign).
"""

from collections.abc import Sequence

import numpy as np
import torch

from compression.methods.place_by_place import Place, content
from data.cache import KVCache, LayerKV

LEAST = 1e-6  # of attention: below, it is of rounding
EXPONENTS = np.arange(0, 2.01, 0.01)
STEEPEST = np.arange(0, 60, 0.25)  # of the log weight by how unlike the mean key a token's are
COMMON_AGES = 512  # what is younger is in nearly all contexts: energies are relative to theirs


def is_watched(cache: KVCache) -> bool:
    """Whether some layer shows what the text's last queries look at."""
    return any(layer.recent_attention is not None for layer in cache.layers)


def traits(cache: KVCache, watched: bool) -> np.ndarray:
    """(tokens,) log of what weights are a power of: the attention from the last queries, mean over
    the layers that hold a token and show it and their heads; else 1 / age."""
    n = cache.n_tokens
    if not watched:
        return -np.log(np.arange(n, 0, -1))
    total, seen = torch.zeros(n).double(), torch.zeros(n).double()
    for layer in cache.layers:
        if layer.recent_attention is not None:
            held = layer.positions.cpu()
            total[held] += layer.recent_attention.double().mean(0).cpu()
            seen[held] += 1
    measured = (total / seen.clamp(min=1))[seen > 0]
    return torch.where(seen > 0, total / seen, measured.mean()).clamp(min=LEAST).log().numpy()


def mean_keys(layers: Sequence[LayerKV]) -> list[torch.Tensor]:
    """(heads, dim) float32 of each layer, before rotary embedding where that is known."""
    return [_keys(layer).mean(1) for layer in layers]


def unlikeness(
    layers: Sequence[LayerKV], means: Sequence[torch.Tensor], n_tokens: int
) -> np.ndarray:
    """(tokens,) of the last `n_tokens`: 1 - the cosine of their keys with the (heads, dim) mean
    key, mean over heads and over the layers that hold a token."""
    total, seen = torch.zeros(n_tokens).double(), torch.zeros(n_tokens).double()
    for layer, mean in zip(layers, means, strict=True):
        held = slice(n_tokens - layer.n_tokens, n_tokens)
        cosines = torch.cosine_similarity(_keys(layer), mean[:, None].to(layer.keys.device), dim=2)
        total[held] += 1 - cosines.cpu().double().mean(0)
        seen[held] += 1
    return (total / seen.clamp(min=1)).numpy()


def _keys(layer: LayerKV) -> torch.Tensor:
    return content(layer, "key", unrotated=layer.rotary is not None)


def fitted(
    traits: np.ndarray, energies: np.ndarray, exponents: np.ndarray = EXPONENTS
) -> np.ndarray:
    """(2,): log c and b of the weights c exp(b trait) with which tokens that depend on errors by
    these energies take the fewest bits at an equal loss.

    A token of weight w has errors of 1 / w, so the loss is mean(energy / w), and bits grow with
    mean(log w) / 2: the product of both means, which is convex in b, is at its smallest.
    """
    rate = [np.log(np.mean(energies * np.exp(-b * traits))) + b * traits.mean() for b in exponents]
    b = exponents[np.argmin(rate)]
    return np.array([np.log(np.mean(energies * np.exp(-b * traits))), b])


class Energies:
    """Energy of gradients by token, relative to what each place has on average in its context."""

    def __init__(self) -> None:
        self.traits: list[np.ndarray] = []
        self.unlikeness: list[np.ndarray] = []
        self.energies: list[np.ndarray] = []

    def added(
        self, cache: KVCache, gradients: dict[Place, torch.Tensor], first: int
    ) -> tuple[torch.Tensor, float]:
        """The weights (tokens,) that fit this context alone; and its scale, the energy of a recent
        token at the usual place. Tokens before `first` are not learned from."""
        n = cache.n_tokens
        total, seen = torch.zeros(n).double(), torch.zeros(n).double()
        log_means = []
        for (i, _), g in gradients.items():
            held = cache.layers[i].positions.cpu()
            energy = g.double().square().sum(1)
            mean = energy[(held >= first) & (held >= n - COMMON_AGES)].mean()
            if mean > 0:
                total[held] += energy / mean
                seen[held] += 1
                log_means.append(mean.log())
        if not log_means:
            return torch.ones(n), 1.0
        trait = traits(cache, is_watched(cache))
        learned = (seen > 0).numpy() & (np.arange(n) >= first)
        self.traits.append(trait[learned])
        unlike = unlikeness(cache.layers, mean_keys(cache.layers), n)
        self.unlikeness.append(unlike[learned])
        self.energies.append((total / seen).numpy()[learned])
        log_c, b = fitted(self.traits[-1], self.energies[-1])
        scale = float(torch.stack(log_means).mean().exp())
        return torch.from_numpy(np.exp(log_c + b * trait)).float(), scale

    def fitted(self) -> np.ndarray:
        """(2,) as `fitted`, to all contexts."""
        return fitted(np.concatenate(self.traits), np.concatenate(self.energies))

    def fitted_without_queries(self) -> np.ndarray:
        """(2,) the same by how unlike the mean key a token's keys are."""
        energies = np.concatenate(self.energies)
        return fitted(np.concatenate(self.unlikeness), energies, STEEPEST)
