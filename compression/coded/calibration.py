"""Calibrating `coded`: from gradients on other texts to what is stored once for a model.

Of the draws the gradients are summed up as they come (moments.py), and what was cached is kept in
16 bits: it is looked at three times, for the bases of neighbouring layers, for the turn of their
first columns, and to count integers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from compression.base import Calibration
from compression.coded import bases, rans, tables
from compression.coded.coefficients import integers_of
from compression.coded.groups import read_neighbours
from compression.coded.method import MIDDLE
from compression.coded.moments import Moments, first_learned
from compression.coded.roots import root_of
from compression.coded.transform import WEIGHTS, Transform, level_of_mean, rows, transform_of
from compression.methods.layer_groups import alike, neighbours
from compression.stored import Tensors, nbytes
from data.cache import KINDS, KVCache
from data.sensitivity import Sensitivity

# Of neighbours, and of what is turned together: a basis is as large as its columns' square, and so
# is the work.
MOST_COLUMNS, MOST_TURNED = 2048, 3072
TURNED = 3  # one in so many columns, the first of each of the neighbours, is turned with the others
BITS_OF_BASIS = 2.5  # of a number of it, about, where it leaks little
COUNTED = 4  # last contexts, which integers are counted on: even, for two texts come by turns

Joined = list[tuple[tuple[int, ...], int]]  # of a group: neighbours, how many columns are turned


def calibrate(
    draws: Iterable[Sensitivity],
    learned_from: str,
    room: float = math.inf,
    work: float = math.inf,
) -> Calibration:
    """What `coded` stores once for the model that these draws are of, those on one cache one after
    the other; `learned_from` says on what in words. room: the bytes that it should take at most,
    for which layers share a basis with fewer others, and its columns have fewer bits. work: the
    products that each token should take at most in the turn of a group."""
    moments, latest = Moments(), None
    caches: list[KVCache] = []
    for draw in draws:
        moments.add(draw)
        if draw.cache is not latest:
            latest = draw.cache
            caches.append(latest.in_16_bits())
    tensors = moments.roots() | moments.mean_queries()
    tensors["watched"] = torch.tensor([moments.watched], dtype=torch.uint8)
    groups = [] if not caches else grouped(caches[0], room, work)
    room -= 2 * tables.NBYTES
    tensors |= _of_neighbours(caches, groups, tensors, room)
    tensors |= _of_groups(caches, groups, tensors, room)
    transform = transform_of(tensors)
    weights, without_queries = (
        moments.energies.fitted([traits(cache) for cache in caches])
        for traits in (transform.traits, transform.traits_without_queries)
    )
    counts = _counts(caches[-COUNTED:], replace(transform, weights=weights))
    for name, fit in zip(WEIGHTS, (weights, without_queries), strict=True):
        tensors[name] = torch.from_numpy(fit).float()
    return Calibration(tensors | {"tables": _stored(tables.frequencies(counts))}, learned_from)


def grouped(cache: KVCache, room: float = math.inf, work: float = math.inf) -> list[Joined]:
    """The cached layers in groups of the same kind that hold the same tokens, and in each
    neighbours: in as few as MOST_COLUMNS and `room` bytes allow, about equally many in each."""
    by_count = {}
    for most in range(len(cache.layers), 0, -1):  # the smallest of each count come last

        def fits(layers: Sequence[int], most: int = most) -> bool:
            return len(layers) <= most and _columns(cache, layers) <= MOST_COLUMNS

        groups = [_joined(cache, neighbours(layers, fits), work) for layers in alike(cache)]
        by_count[sum(map(len, groups))] = groups
    widths = (_width(cache, i, kind) for i in range(len(cache.layers)) for kind in KINDS)
    roots = sum(width**2 for width in widths)  # half of each, in 16 bits
    fit = [
        n
        for n, groups in by_count.items()
        if BITS_OF_BASIS * _numbers(cache, groups) / 8 + roots <= room
    ]
    return by_count[min(fit, default=max(by_count))]


def _joined(cache: KVCache, neighbours: Sequence[tuple[int, ...]], work: float) -> Joined:
    if len(neighbours) == 1:
        return [(neighbours[0], 0)]
    widths = [_columns(cache, layers) for layers in neighbours]
    turned = int(min(MOST_TURNED, sum(widths) // TURNED, math.sqrt(work)))
    firsts = (width * turned // sum(widths) for width in widths)
    return list(zip(neighbours, firsts, strict=True))


def _numbers(cache: KVCache, groups: Iterable[Joined]) -> int:
    """Of all bases."""
    of_neighbours = sum(_columns(cache, layers) ** 2 for group in groups for layers, _ in group)
    return of_neighbours + sum(_turned(group) ** 2 for group in groups)


def _turned(group: Joined) -> int:
    return sum(first for _, first in group)


def _columns(cache: KVCache, layers: Iterable[int]) -> int:
    return sum(_width(cache, i, kind) for i in layers for kind in KINDS)


def _width(cache: KVCache, i: int, kind: str) -> int:
    return cache.layers[i].n_heads * cache.layers[i].tensor(kind).shape[2]


def _of_neighbours(
    caches: Sequence[KVCache], groups: Iterable[Joined], roots: Tensors, room: float
) -> Tensors:
    """Layers, mean and basis of all neighbours, in what `room` bytes the roots and the turns
    leave."""
    made: Tensors = {}
    directions = []
    all_layers = [layers for group in groups for layers, _ in group]
    for n, layers in enumerate(all_layers):
        made[f"layers.{n}"] = torch.tensor(layers, dtype=torch.int32)
        made[f"means.{n}"], covariance = _content(caches, layers)
        of_places = [root_of(roots, i, kind).float() for i in layers for kind in KINDS]
        a = torch.block_diag(*of_places)
        covariance = covariance / covariance.diagonal().mean().clamp(min=1e-30)
        directions.append(_directions(a @ covariance.float() @ a, list(map(len, of_places))))
    turns = sum(BITS_OF_BASIS * _turned(group) ** 2 / 8 for group in groups)
    fitted, frequencies = bases.fitting(directions, room - turns - nbytes(roots | made))
    for n, of_basis in enumerate(fitted):
        made |= {f"basis.{n}.{name}": tensor for name, tensor in of_basis.items()}
    return made | {"basis_tables": _stored(frequencies)}


def _of_groups(
    caches: Sequence[KVCache], groups: Sequence[Joined], tensors: Tensors, room: float
) -> Tensors:
    """Which neighbours each group has, and how their first columns are turned, in what `room` bytes
    the other tensors leave. The bases are those that will be read: the turn makes up for some of
    what they are off."""
    made: Tensors = {}
    turns, n = {}, 0
    for g, group in enumerate(groups):
        numbers = range(n, n + len(group))
        firsts = [first for _, first in group]
        made[f"joined.{g}"] = torch.tensor([*zip(numbers, firsts, strict=True)], dtype=torch.int32)
        if _turned(group):
            turns[g] = _directions(_together(caches, tensors, numbers, firsts), firsts)
        n += len(group)
    left, frequencies = room - nbytes(tensors | made), tensors["basis_tables"].numpy()
    fitted, _ = bases.fitting(list(turns.values()), left, frequencies)
    for g, of_turn in zip(turns, fitted, strict=True):
        made |= {f"turn.{g}.{name}": tensor for name, tensor in of_turn.items()}
    return made


def _content(
    caches: Iterable[KVCache], layers: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What layers hold: the (width,) float32 mean over all texts, and the (width, width) float64
    sum over tokens of the products off each text's own."""
    total, n, products = torch.zeros(1), 0, torch.zeros(1)
    for cache in caches:
        x = _rows(cache, layers)
        total, n = total + x.double().sum(0), n + len(x)
        x -= x.mean(0)
        products = products + (x.T @ x).double()
    return (total / max(1, n)).float(), products


def _together(
    caches: Iterable[KVCache], tensors: Tensors, numbers: Iterable[int], firsts: Iterable[int]
) -> torch.Tensor:
    """(columns, columns) float64: the same products of the first coefficients of neighbours."""
    coder = rans.Tables(tensors["basis_tables"].numpy())
    neighbours_read = (read_neighbours(tensors, n, coder) for n in numbers)
    taken = [
        (each, each.analysis[:first]) for each, first in zip(neighbours_read, firsts, strict=True)
    ]
    products = torch.zeros(1)
    for cache in caches:
        parts = [_rows(cache, each.layers) @ analysis.T for each, analysis in taken]
        x = torch.cat([part - part.mean(0) for part in parts], dim=1)
        products = products + (x.T @ x).double()
    return products


def _stored(frequencies: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frequencies.astype(np.int16))


def _rows(cache: KVCache, layers: Sequence[int]) -> torch.Tensor:
    """(tokens, width) float32 of the tokens that are learned from, which all of them hold."""
    x = rows(cache.layers, [(i, kind) for i in layers for kind in KINDS], slice(None)).cpu()
    return x[cache.layers[layers[0]].positions.cpu() >= first_learned(cache)].float()


def _directions(seen: torch.Tensor, sizes: Sequence[int]) -> bases.Directions:
    """Eigenvectors of a (width, width) covariance, of whatever scale, of places of these sizes, and
    the standard deviations along them, which fall."""
    seen = seen / seen.diagonal().mean().clamp(min=1e-30)
    values, vectors = torch.linalg.eigh(((seen + seen.T) / 2).float())
    return vectors.flip(1), values.clamp(min=0).sqrt().flip(0), sizes


def _counts(caches: Iterable[KVCache], transform: Transform) -> np.ndarray:
    """(classes, N_SYMBOLS) how often each integer has occurred in each class."""
    counts = np.zeros((tables.N_CLASSES, rans.N_SYMBOLS))
    for cache in caches:
        levels = transform.levels(cache)
        for group in transform.groups:
            positions = cache.layers[group.layers[0]].positions[1:].cpu()
            if not len(positions):
                continue
            of_all = torch.cat([level_of_mean(levels[positions]), levels[positions]])
            _, *coded = integers_of(cache.layers, group, slice(1, None), of_all, MIDDLE)
            counts += tables.counted(*coded)
    return counts
