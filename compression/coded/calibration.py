"""Calibrating `coded`: from gradients on other texts to what is stored once for a model.

One pass over the draws, in bounded memory: per place the second moment of gradients, per group of
layers the covariance of what was cached, per token the gradients' energy; a few contexts are kept
to count integers on.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from compression.base import Calibration
from compression.coded import bases, rans
from compression.coded.coefficients import integers_of
from compression.coded.method import MIDDLE
from compression.coded.roots import half_of, root_of
from compression.coded.token_weights import Energies, is_watched
from compression.coded.transform import (
    HIGHEST,
    LOWEST,
    level_of_mean,
    read,
    rows,
)
from compression.methods.layer_groups import neighbours
from compression.methods.place_by_place import Place
from compression.stored import Tensors, nbytes
from config import UsageError
from data.cache import KINDS, KVCache, wide
from data.sensitivity import Sensitivity

MOST_COLUMNS = 6144  # of a group: the basis is as large as their square, and so is the work
BITS_OF_BASIS = 4  # of a number of it, about, with the fewest of bases.USUAL_BITS
REGULAR = 0.5  # share of the mean sensitivity that is added in every direction of a place
SINKS = 4  # first tokens that nothing is learned from: they are like no others
COUNTED = 3  # contexts that integers are counted on
# Bytes of the tables of integers, which are counted last
TABLES = 2 * (HIGHEST - LOWEST + 1) * rans.N_SYMBOLS
PRIOR = 50  # counts that a Laplace distribution of its magnitude adds to each class


def calibrate(
    draws: Iterable[Sensitivity], learned_from: str, room: float = math.inf
) -> Calibration:
    """What `coded` stores once for the model that these draws are of, those on one cache one after
    the other; `learned_from` says on what in words. room: the bytes that it should take at most,
    for which layers share a basis with fewer others, and its columns have fewer bits."""
    moments = _Moments(room)
    kept: deque[KVCache] = deque(maxlen=COUNTED)
    latest = None
    for draw in draws:
        moments.add_gradients(draw)
        if draw.cache is not latest:
            moments.add_content(draw.cache)
            latest = draw.cache
            kept.append(latest.in_16_bits())
    tensors = moments.roots() | moments.weights()
    for g, layers in enumerate(moments.groups):
        tensors[f"layers.{g}"] = torch.tensor(layers, dtype=torch.int32)
        tensors[f"means.{g}"] = moments.mean(layers)
    directions = [moments.directions(layers, tensors) for layers in moments.groups]
    for g, of_group in enumerate(bases.fitting(directions, room - nbytes(tensors) - TABLES)):
        tensors |= {f"basis.{g}.{name}": tensor for name, tensor in of_group.items()}
    without_tables = Calibration(tensors, learned_from)
    tables = rans.frequencies(_counts(kept, without_tables) + PRIOR * _laplace())
    return Calibration(
        tensors | {"tables": torch.from_numpy(tables.astype(np.int16))}, learned_from
    )


def grouped(cache: KVCache, room: float = math.inf) -> list[tuple[int, ...]]:
    """The cached layers in groups of neighbours among those of the same kind that hold the same
    tokens: in as few as MOST_COLUMNS and `room` bytes allow, about equally many in each."""
    by_count = {}
    for most in range(len(cache.layers), 0, -1):  # the smallest groups of each count come last

        def fits(layers: Sequence[int], most: int = most) -> bool:
            return len(layers) <= most and _columns(cache, layers) <= MOST_COLUMNS

        groups = sorted(neighbours(cache, fits))
        by_count[len(groups)] = groups
    numbers = {n: sum(_columns(cache, x) ** 2 for x in each) for n, each in by_count.items()}
    roots = sum(
        wide(layer.tensor(kind)).shape[1] ** 2 for layer in cache.layers for kind in KINDS
    )  # half of each, in 16 bits
    fit = [n for n in numbers if BITS_OF_BASIS * numbers[n] / 8 + roots <= room]
    return by_count[min(fit, default=max(by_count))]


def _columns(cache: KVCache, layers: Iterable[int]) -> int:
    return sum(_width(cache, i) for i in layers)


def _width(cache: KVCache, i: int) -> int:
    layer = cache.layers[i]
    return layer.n_heads * (layer.keys.shape[2] + layer.values.shape[2])


class _Moments:
    """Sums over draws, of one context each."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.groups: list[tuple[int, ...]] = []
        self.information: dict[Place, torch.Tensor] = {}  # (dim, dim) float64
        self.covariance: dict[tuple[int, ...], torch.Tensor] = {}  # (width, width) float64
        self.content: dict[tuple[int, ...], torch.Tensor] = {}  # (width + 1,), the tokens last
        self.energies = Energies()
        self.watched = True
        self.tokens: dict[Place, int] = {}  # that the information is summed over
        self.log_scale = 0.0  # of each token's context, summed over tokens
        self.n_tokens = 0

    def add_gradients(self, draw: Sensitivity) -> None:
        first = _first(draw.cache)
        gradients = {
            (i, kind): wide(pair[kind]).float().cpu()
            for i, pair in enumerate(draw.gradients)
            for kind in KINDS
        }
        self.watched &= is_watched(draw.cache)
        weights, scale = self.energies.added(draw.cache, gradients, first)  # (tokens,)
        for place, g in gradients.items():
            held = draw.cache.layers[place[0]].positions.cpu()
            g = (g / weights[held].sqrt()[:, None])[held >= first]
            gram = (g.T @ g).double() / (draw.n_scored * scale)
            self.information[place] = _plus(self.information.get(place), gram)
            self.tokens[place] = self.tokens.get(place, 0) + len(g)
        self.log_scale += draw.cache.n_tokens * math.log(scale)
        self.n_tokens += draw.cache.n_tokens

    def add_content(self, cache: KVCache) -> None:
        if not self.groups:
            self.groups = grouped(cache, self.room)
        for layers in self.groups:
            x = rows(cache.layers, [(i, kind) for i in layers for kind in KINDS], slice(None)).cpu()
            x = x[cache.layers[layers[0]].positions.cpu() >= _first(cache)]
            total = torch.cat([x.double().sum(0), torch.tensor([float(len(x))]).double()])
            self.content[layers] = _plus(self.content.get(layers), total)
            x = x - x.mean(0)
            self.covariance[layers] = _plus(self.covariance.get(layers), (x.T @ x).double())

    def roots(self) -> Tensors:
        """A = (M + REGULAR tr(M) / dim)^1/2 of each place, and their scales. Contexts count by
        their tokens and not by how much hangs on them: a few short ones would be all there is."""
        if not self.n_tokens:
            raise ValueError("calibration takes at least one draw")
        usual = math.exp(self.log_scale / self.n_tokens)
        means = {p: m * usual / max(1, self.tokens[p]) for p, m in self.information.items()}
        least = 1e-6 * torch.stack([m.trace() / len(m) for m in means.values()]).mean()
        if not least > 0:
            raise UsageError(
                "This model cannot be calibrated, for its predictions do not depend on its cache"
            )
        roots: Tensors = {}
        scales = []
        for (i, kind), m in means.items():
            added = REGULAR * torch.maximum(m.trace() / len(m), least)
            values, vectors = torch.linalg.eigh(m + added * torch.eye(len(m)).double())
            root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
            scales.append(root.abs().amax())
            roots[f"roots.{i}.{kind}"] = half_of((root / scales[-1]).half())
        return roots | {"scales": torch.stack(scales).float()}

    def weights(self) -> Tensors:
        watched = torch.tensor([self.watched], dtype=torch.uint8)
        fits = {
            "weights": self.energies.fitted(),
            "weights_without_queries": self.energies.fitted_without_queries(),
        }
        return {name: torch.from_numpy(fit).float() for name, fit in fits.items()} | {
            "watched": watched
        }

    def mean(self, layers: tuple[int, ...]) -> torch.Tensor:
        """(width,) float32 of a group, over all tokens that are learned from."""
        total = self.content[layers]
        return (total[:-1] / total[-1].clamp(min=1)).float()

    def directions(self, layers: tuple[int, ...], tensors: Tensors) -> bases.Directions:
        """Eigenvectors (width, columns) of A C A, C the covariance of a group, and the (columns,)
        standard deviations along them, which fall."""
        roots = [root_of(tensors, i, kind) for i in layers for kind in KINDS]
        a = torch.block_diag(*roots).float()
        c = self.covariance[layers]
        seen = a @ (c / c.diagonal().mean().clamp(min=1e-30)).float() @ a
        seen = seen / seen.diagonal().mean().clamp(min=1e-30)
        values, vectors = torch.linalg.eigh((seen + seen.T) / 2)
        return vectors.flip(1), values.clamp(min=0).sqrt().flip(0)


def _plus(total: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    return more if total is None else total + more


def _first(cache: KVCache) -> int:
    """The first position that is learned from."""
    return min(SINKS, cache.n_tokens // 4)


def _counts(caches: Iterable[KVCache], calibration: Calibration) -> np.ndarray:
    """(classes, N_SYMBOLS) how often each integer has occurred in each class, either sign alike;
    the escape first."""
    transform = read(calibration)
    width = 2 * rans.TOP + 3  # with what is beyond on either side
    counts = np.zeros((HIGHEST - LOWEST + 1) * width)
    for cache in caches:
        levels = transform.levels(cache)
        for group in transform.groups:
            positions = cache.layers[group.layers[0]].positions[1:].cpu()
            if not len(positions):
                continue
            of_all = torch.cat([level_of_mean(levels[positions]), levels[positions]])
            _, integers, symbol_classes = integers_of(
                cache.layers, group, slice(1, None), of_all, MIDDLE
            )
            entry = symbol_classes.astype(np.int64) * width
            entry += integers.clip(-rans.TOP - 1, rans.TOP + 1) + (rans.TOP + 1)
            counts += np.bincount(entry, minlength=len(counts))
    by_class = counts.reshape(-1, width)
    by_class += by_class[:, ::-1]
    return np.concatenate([by_class[:, :1], by_class[:, 1:-1]], axis=1)


def _laplace() -> np.ndarray:
    """(classes, N_SYMBOLS) shares of integers under a Laplace distribution of each magnitude, what
    is beyond the table first."""
    octaves = np.arange(LOWEST, HIGHEST + 1) / 4
    edges = np.arange(0.5, rans.TOP + 1) / (2.0 ** octaves[:, None] / math.sqrt(2))
    beyond = np.exp(-edges)  # on both sides together
    half = -np.diff(beyond, axis=1) / 2  # 1 to TOP
    parts = [beyond[:, -1:], half[:, ::-1], 1 - beyond[:, :1], half]
    return np.concatenate(parts, axis=1)
