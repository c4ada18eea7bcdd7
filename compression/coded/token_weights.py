"""How much an error of a token weighs: the more the text's last queries look at it, the more.

What the model will predict next hangs on the tokens that it has just looked at, as eviction has
found (SnapKV, arXiv 2404.14469), and precision can follow attention where eviction decides once
(MiKV, arXiv 2402.18096; ZipCache, arXiv 2405.14256). The weight is a power of the attention; where
a model does not show its attention, of the token's age. Beside it stands how unlike all others a
token's keys are: many such are sinks, on which most hangs (KeyDiff, arXiv 2504.15364, evicts by the
same sign).

A chunk has neither queries nor an age: there the attention is that which the query that is to be
expected of each head would pay (Expected Attention, arXiv 2510.00636).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from compression.methods.place_by_place import Place, content
from data.cache import KVCache, LayerKV

LEAST = 1e-6  # of attention, and of an energy to the mean: below, it is of rounding
COMMON_AGES = 512  # what is younger is in nearly all contexts: energies are relative to theirs
CHUNK = 256  # tokens that are told apart without queries: what of them is looked at, among so many
AT_A_TIME = 4096  # tokens of a text whose keys are turned back
RIDGE = 1e-3  # how little fits must gain for exponents not to grow
STEPS = 50  # of Newton's method, which takes few


def is_watched(cache: KVCache) -> bool:
    """Whether some layer shows what the text's last queries look at."""
    return any(layer.recent_attention is not None for layer in cache.layers)


def traits(cache: KVCache, watched: bool, means: Sequence[torch.Tensor]) -> np.ndarray:
    """(tokens, 2) of which weights are powers: log of the attention from the last queries, mean
    over the layers that hold a token and show it and their heads, or of 1 / age; and how unlike
    the (heads, dim) mean keys of each layer its own are."""
    looked_at = _attention(cache) if watched else -np.log(np.arange(cache.n_tokens, 0, -1))
    unlike = traits_in_chunks(cache, means, {}, AT_A_TIME)[:, 1]
    return np.stack([looked_at, unlike], axis=1)


def _attention(cache: KVCache) -> np.ndarray:
    total, seen = torch.zeros(cache.n_tokens).double(), torch.zeros(cache.n_tokens).double()
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


def traits_of_keys(
    layers: Sequence[LayerKV],
    means: Sequence[torch.Tensor],
    queries: Mapping[int, torch.Tensor],
    tokens: range,
) -> np.ndarray:
    """(tokens, 2) of tokens at these positions of a text, mean over the heads and layers that hold
    one: log of the attention that the (heads, query heads, dim) expected queries of a layer would
    pay it among those that are held, times their number; and 1 - the cosine of its keys with the
    (heads, dim) mean key. queries: by place of the layer; where none holds a token, it is looked at
    as much as others."""
    total, seen = torch.zeros(2, len(tokens), 2).double()
    for i, (layer, mean) in enumerate(zip(layers, means, strict=True)):
        keys, held = _keys(layer), layer.positions.cpu() - tokens.start
        cosines = _cosines(keys, mean.to(keys.device))
        total[held, 1] += 1 - cosines.cpu().double().mean(0)
        seen[held, 1] += 1
        if i in queries and layer.rotary is not None:
            scores = queries[i].to(keys.device) @ keys.transpose(1, 2)  # (heads, queries, tokens)
            shares = scores.softmax(2).mean((0, 1)) * layer.n_tokens
            total[held, 0] += shares.cpu().double()
            seen[held, 0] += 1
    expected, unlike = (total / seen.clamp(min=1)).unbind(1)
    expected = torch.where(seen[:, 0] > 0, expected, 1.0).clamp(min=LEAST).log()
    return torch.stack([expected, unlike], dim=1).numpy()


def _cosines(keys: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """(heads, tokens) of (heads, tokens, dim) with (heads, dim); 0 with one that is 0."""
    norms = torch.linalg.vector_norm(keys, dim=2) * torch.linalg.vector_norm(mean, dim=1)[:, None]
    cosines: torch.Tensor = (keys @ mean[:, :, None])[..., 0] / norms.clamp(min=1e-30)
    return cosines


def _keys(layer: LayerKV) -> torch.Tensor:
    return content(layer, "key", unrotated=layer.rotary is not None)


def traits_in_chunks(
    cache: KVCache,
    means: Sequence[torch.Tensor],
    queries: Mapping[int, torch.Tensor],
    size: int = CHUNK,
) -> np.ndarray:
    """(tokens, 2) as `traits_of_keys`, of chunks of `size` tokens that know of no other."""
    parts = []
    for start in range(0, cache.n_tokens, size):
        end = min(start + size, cache.n_tokens)
        chunk = [layer.before(end) for layer in cache.layers]
        chunk = [x.between(slice(len(x.before(start).positions), None)) for x in chunk]
        parts.append(traits_of_keys(chunk, means, queries, range(start, end)))
    return np.concatenate(parts)


def fitted(traits: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """(1 + traits,): log c and b of the weights c exp(b . trait) with which tokens that depend on
    errors by these energies take the fewest bits at an equal loss, for (tokens, traits).

    A token of weight w has errors of 1 / w, so the loss is mean(energy / w), and bits grow with
    mean(log w) / 2: the product of both means, whose log is convex in b, is at its smallest, by
    Newton's method. The exponents of traits scaled to a deviation of 1 are held by RIDGE.
    """
    deviations = traits.std(axis=0)
    scale = np.where(deviations > 1e-9 * (1 + np.abs(traits).max()), deviations, np.inf)
    x = (traits - traits.mean(axis=0)) / scale
    log_energies = np.log(np.maximum(energies, LEAST * energies.mean()))

    def loss(b: np.ndarray) -> float:
        return _log_sum(log_energies - x @ b) + RIDGE * float(b @ b) / 2

    b = np.zeros(x.shape[1])
    for _ in range(STEPS):
        log_shares = log_energies - x @ b
        shares = np.exp(log_shares - _log_sum(log_shares))  # of the loss
        off = x - shares @ x
        curvature = (off.T * shares) @ off + RIDGE * np.eye(len(b))
        step = np.linalg.solve(curvature, RIDGE * b - shares @ x)
        while loss(b - step) > loss(b) and np.abs(step).max() > 1e-9:
            step /= 2
        b = b - step
    b = b / scale
    return np.array([_log_sum(log_energies - traits @ b) - np.log(len(traits)), *b])


def _log_sum(x: np.ndarray) -> float:
    return float(np.logaddexp.reduce(x))


class Energies:
    """Energy of gradients by token, relative to what each place has on average in its context."""

    def __init__(self) -> None:
        self.latest: KVCache | None = None
        self.by_context: list[list[np.ndarray]] = []  # (tokens,) of each draw, NaN before `first`

    def added(
        self, cache: KVCache, gradients: dict[Place, torch.Tensor], first: int
    ) -> tuple[torch.Tensor, float]:
        """The weights (tokens,) that fit this context alone; and its scale, the energy of a recent
        token at the usual place. Tokens before `first` are not learned from."""
        if cache is not self.latest:
            self.latest = cache
            self.by_context.append([])
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
        learned = (seen > 0) & (torch.arange(n) >= first)
        energies = torch.where(learned, total / seen, torch.nan).numpy()
        self.by_context[-1].append(energies)
        of_tokens = traits(cache, is_watched(cache), mean_keys(cache.layers))
        log_c, *b = _of_learned([of_tokens], [[energies]])
        scale = float(torch.stack(log_means).mean().exp())
        return torch.from_numpy(np.exp(log_c + of_tokens @ b)).float(), scale

    def fitted(self, of_contexts: Sequence[np.ndarray]) -> np.ndarray:
        """(1 + traits,) as `fitted`, to all contexts, each with (tokens, traits)."""
        return _of_learned(of_contexts, self.by_context)


def _of_learned(
    of_contexts: Sequence[np.ndarray], by_context: Sequence[Sequence[np.ndarray]]
) -> np.ndarray:
    """Fitted to the tokens whose energy is not NaN."""
    pairs = [
        (of_tokens[~np.isnan(energies)], energies[~np.isnan(energies)])
        for of_tokens, of_context in zip(of_contexts, by_context, strict=True)
        for energies in of_context
    ]
    return fitted(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
