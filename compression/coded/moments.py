"""What gradients on other texts tell of a model: how much an error costs in each direction of each
place, and by token.

Sums over the draws as they come, so that memory is bounded.
"""

import math

import torch

from compression.coded.roots import half_of
from compression.coded.token_weights import Energies, is_watched
from compression.methods.place_by_place import Place
from compression.stored import Tensors
from config import UsageError
from data.cache import KINDS, KVCache, wide
from data.sensitivity import Sensitivity

REGULAR = 0.5  # share of the mean sensitivity that is added in every direction of a place
SINKS = 4  # first tokens that nothing is learned from: they are like no others


def first_learned(cache: KVCache) -> int:
    """The first position that is learned from."""
    return min(SINKS, cache.n_tokens // 4)


class Moments:
    """Sums over draws, of one context each."""

    def __init__(self) -> None:
        self.information: dict[Place, torch.Tensor] = {}  # (dim, dim) float64
        self.energies = Energies()
        self.watched = True
        self.tokens: dict[Place, int] = {}  # that the information is summed over
        self.queries: dict[int, torch.Tensor] = {}  # (kv_heads, query heads, dim), by layer
        self.n_queries: dict[int, int] = {}  # draws that they are summed over
        self.log_scale = 0.0  # of each token's context, summed over tokens
        self.n_tokens = 0

    def add(self, draw: Sensitivity) -> None:
        first = first_learned(draw.cache)
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
            self.information[place] = self.information.get(place, 0) + gram
            self.tokens[place] = self.tokens.get(place, 0) + len(g)
        for i, queries in draw.queries.items():
            self.queries[i] = self.queries.get(i, 0) + queries.double().cpu()
            self.n_queries[i] = self.n_queries.get(i, 0) + 1
        self.log_scale += draw.cache.n_tokens * math.log(scale)
        self.n_tokens += draw.cache.n_tokens

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

    def mean_queries(self) -> Tensors:
        """(query heads, kv_heads x dim) of each layer of which they are known."""
        return {
            f"queries.{i}": wide(total / self.n_queries[i]).float()
            for i, total in self.queries.items()
        }
