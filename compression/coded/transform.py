"""What `coded` has learned of a model, as its encoder and decoder use it.

Tensors of the calibration:
  roots.<layer>.<kind>  float16, times `scales`: A of (dim, dim), so that |A e|^2 / 2 is the KL
                        divergence in nats that an error e of one token costs, dim being heads x
                        dim; it is symmetric, and its lower half is kept
  scales                float32 (places,): layer 0's key, layer 0's value, layer 1's key, ...
  layers.<n>            int32: cached layers that share a basis, neighbours
  basis.<n>.<...>       orthonormal directions (width, width) of all their places after A, by
                        falling variance, as bases.py keeps them
  means.<n>             float32 (width,): of keys before rotary embedding, and values
  joined.<group>        int32 (neighbours, 2): the number n of each of a group, and how many of its
                        first columns are turned with those of the others
  turn.<group>.<...>    orthonormal directions of these, as the bases; of a group of one, nothing
  queries.<layer>       float32 (query heads, width): the queries that are to be expected, those
                        of each KV head side by side; not of layers where they are not known
  weights               float32 (3,): log c and b of a token's weight c exp(b . traits): of
                        attention or age, and of how unlike the mean key its keys are
  weights_without_queries  the same of the attention that those queries would pay, and of that
  watched               uint8 (1,): 1 where the trait is attention, 0 where it is age
  basis_tables          int16 (classes, symbols): frequencies of the integers of the bases
  tables                int16 (classes, symbols): frequencies of integers by expected magnitude
Both sides must agree on every class: it is computed from stored bytes in integers alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from compression.base import Calibration
from compression.coded import groups
from compression.coded.groups import Group, read_group
from compression.coded.rans import N_SYMBOLS, Tables
from compression.coded.tables import HIGHEST, LOWEST, N_CLASSES, SKIPPED
from compression.coded.token_weights import traits, traits_in_chunks, traits_of_keys
from compression.methods.place_by_place import Place, content
from compression.shapes import LayerShape
from compression.stored import Tensors, refuse_left, taken, under
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV, by_head, wide

STEPS_PER_OCTAVE = 8  # of magnitudes that are stored, and of a token's scale sqrt(w)
LEAST_LEVEL, MOST_LEVEL = -128, 127  # of such scales, which fit a byte
ZERO_CODE = 128  # magnitude code of a root mean square of one step; code 0: nothing is stored
# How much more an error that all tokens have in common costs than as many that know nothing of each
# other: 65 times at 2048 tokens of the default model, 91 in values and 5 in keys. This leaves less
# than a hundredth of all loss to the mean, and takes a bit less for each column.
IN_COMMON = 16
WEIGHTS = ("weights", "weights_without_queries")

Layers = Sequence[LayerKV | LayerShape]


@dataclass(frozen=True, eq=False)
class Transform:
    """groups: all cached layers, each in one. watched: whether attention is a trait of tokens, or
    their age. queries: (query heads, width) of layers that are expected. weights: (3,) log c and b
    of a token's weight c exp(b . traits), weights_without_queries: (3,) the same where traits are
    of keys alone."""

    groups: tuple[Group, ...]
    watched: bool
    queries: dict[int, torch.Tensor]
    weights: np.ndarray | None = None
    weights_without_queries: np.ndarray | None = None
    frequencies: np.ndarray | None = None

    @cached_property
    def tables(self) -> Tables:
        if self.frequencies is None:
            raise ValueError("this calibration has not counted integers yet")
        return Tables(self.frequencies)

    def levels(self, cache: KVCache) -> torch.Tensor:
        """(tokens,) int16, -128 to 127: log2 of sqrt(w) of each token, in eighths."""
        return _levels(self.weights, self.traits(cache))

    def levels_without_queries(self, layers: Sequence[LayerKV], n_tokens: int) -> torch.Tensor:
        """(tokens,) the same of the last tokens that these layers hold, from their keys alone."""
        end = max(int(layer.positions[-1]) + 1 for layer in layers if layer.n_tokens)
        tokens = range(end - n_tokens, end)
        means, queries = self.mean_keys(layers), self._expected_queries(layers)
        of_keys = traits_of_keys(layers, means, queries, tokens)
        return _levels(self.weights_without_queries, of_keys)

    def traits(self, cache: KVCache) -> np.ndarray:
        """(tokens, 2) of a whole text whose attention was measured, or by age."""
        return traits(cache, self.watched, self.mean_keys(cache.layers))

    def traits_without_queries(self, cache: KVCache) -> np.ndarray:
        """(tokens, 2) of each chunk."""
        layers = cache.layers
        return traits_in_chunks(cache, self.mean_keys(layers), self._expected_queries(layers))

    def _expected_queries(self, layers: Layers) -> dict[int, torch.Tensor]:
        """(heads, query heads, dim) of the queries of layers of so many heads."""
        return {i: by_head(each, layers[i].n_heads) for i, each in self.queries.items()}

    def mean_keys(self, layers: Layers) -> list[torch.Tensor]:
        """(heads, dim) of each of the layers, before rotary embedding, over all texts."""
        means = {
            place: mean
            for group in self.groups
            for place, mean in zip(group.places, group.mean.split(group.widths), strict=True)
        }
        return [means[i, KINDS[0]].view(x.n_heads, -1) for i, x in enumerate(layers)]


def _levels(weights: np.ndarray | None, of_tokens: np.ndarray) -> torch.Tensor:
    if weights is None:
        raise ValueError("this calibration has not weighed tokens yet")
    log_weight = weights[0] + of_tokens @ weights[1:].astype(np.float64)
    levels: np.ndarray = np.rint(log_weight / (2 * np.log(2)) * STEPS_PER_OCTAVE)
    return torch.from_numpy(levels.clip(LEAST_LEVEL, MOST_LEVEL).astype(np.int16))


def level_of_mean(levels: torch.Tensor) -> torch.Tensor:
    """(1,) int16: that of the mean over tokens with these (tokens,) levels. It weighs as much as
    all of them, and more: what all are off by in common adds up."""
    weight = IN_COMMON * torch.exp2(2 * levels.double() / STEPS_PER_OCTAVE).sum()
    level = (STEPS_PER_OCTAVE * weight.log2() / 2).round().clamp(LEAST_LEVEL, MOST_LEVEL)
    return level.to(torch.int16)[None]


@lru_cache(maxsize=2)
def read(calibration: Calibration) -> Transform:
    """The matrices of a calibration, made once for all caches that are compressed with it."""
    if "scales" not in calibration.tensors:
        raise ValueError("this calibration was not made by compression.coded.calibration")
    return transform_of(calibration.tensors)


def transform_of(tensors: Tensors) -> Transform:
    """As far as it has been learned: bases first."""

    def numbers(name: str) -> np.ndarray | None:
        return tensors[name].numpy() if name in tensors else None

    n_groups = sum(name.startswith("joined.") for name in tensors)
    coder = Tables(tensors["basis_tables"].numpy())
    return Transform(
        tuple(read_group(tensors, g, coder) for g in range(n_groups)),
        bool(tensors["watched"]),
        {int(name): each for name, each in under(dict(tensors), "queries.").items()},
        *map(numbers, (*WEIGHTS, "tables")),
    )


def fitting(calibration: Calibration, layers: Sequence[LayerShape], model: str) -> Transform:
    """What was learned of a model whose cached layers these are; raises UsageError where it was of
    another."""
    transform = read(calibration)
    dims = {(i, kind): x.n_heads * x.dim(kind) for i, x in enumerate(layers) for kind in KINDS}
    learned: dict[Place, int] = {}
    for group in transform.groups:
        learned |= dict(zip(group.places, group.widths, strict=True))
    if dims != learned:
        raise UsageError(
            f"The calibration ({calibration.learned_from}) does not fit the cache of {model}",
            "calibrate for this model",
        )
    return transform


def refuse_misfit(tensors: Tensors, widths: dict[Place, int]) -> None:
    """Raise ValueError for tensors that are not all that is learned of a model whose cached places
    have these widths, heads x dim. The integers of bases are for `read` to refuse."""
    left = dict(tensors)
    Tables(_table(left, "basis_tables"))
    groups.refuse_misfit(left, widths)
    scales = taken(left, "scales", (torch.float32,), len(widths))
    for name in WEIGHTS:
        taken(left, name, (torch.float32,), 3)
    for (i, kind), width in widths.items():
        if kind == KINDS[0] and f"queries.{i}" in left:
            taken(left, f"queries.{i}", (torch.float32,), None, width)
    taken(left, "watched", (torch.uint8,), 1)
    Tables(_table(left, "tables"))
    refuse_left(left)
    if not all(x.isfinite().all() for x in tensors.values()) or not (scales > 0).all():
        raise ValueError("its numbers are not finite, or its scales not above 0")


def _table(left: Tensors, name: str) -> np.ndarray:
    return taken(left, name, (torch.int16,), N_CLASSES, N_SYMBOLS).numpy()


def rows(layers: Sequence[LayerKV], places: Iterable[Place], tokens: slice) -> torch.Tensor:
    """(tokens, width) float32: what these places hold of these of their tokens, side by side, keys
    before rotary embedding where that is known."""
    parts = []
    for i, kind in places:
        layer = layers[i].between(tokens)
        parts.append(wide(content(layer, kind, unrotated=layer.rotary is not None)))
    return torch.cat([part.to(parts[0].device) for part in parts], dim=1)


def magnitudes(sizes: torch.Tensor, step: float) -> torch.Tensor:
    """(columns,) uint8 codes of the (columns,) sizes of their coefficients."""
    octaves = torch.log2((sizes.cpu().double() / step).clamp(min=1e-30))
    codes = (STEPS_PER_OCTAVE * octaves + ZERO_CODE).round().clamp(1, 255)
    return codes.to(torch.uint8).to(sizes.device)


def classes(codes: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """(columns, tokens) uint8: the class of each coefficient, 0 for LOWEST, from the (columns,)
    uint8 codes of magnitude and (tokens,) int16 levels; code 0 is below all that is stored."""
    halves = codes.to(torch.int16)[:, None] + (levels + (1 - ZERO_CODE))
    halves >>= 1
    halves.clamp_(LOWEST, HIGHEST).sub_(LOWEST)
    of_entries = halves.to(torch.uint8)
    of_entries[codes == 0] = 0
    return of_entries


def is_stored(classes: torch.Tensor) -> torch.Tensor:
    return classes >= SKIPPED - LOWEST


def scales(levels: torch.Tensor, step: float) -> torch.Tensor:
    """(tokens,) float32: integers per unit of a coefficient, sqrt(w) / step."""
    every = torch.arange(LEAST_LEVEL, MOST_LEVEL + 1).double()  # in float64, which not all have
    table = (torch.exp2(every / STEPS_PER_OCTAVE) / step).float().to(levels.device)
    return table[levels.long() - LEAST_LEVEL]
