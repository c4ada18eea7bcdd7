"""How many dimensions keys and values really use: their energy spectra, over all texts together.

A component's energy is the square of a singular value of a head's (tokens, dim), not centred. The
effective rank is Roy and Vetterli's (EUSIPCO 2007), the exponential of the entropy of the singular
values, taken to sum to 1; its share of the dimension is what KV-CoRE (arXiv 2602.05929) measures
compressibility by: there of whole layers, here of each head.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from analysis.moments import HeadMoments, Moments
from data.cache import KVCache

Tables = dict[str, pd.DataFrame]
LEVELS = (0.90, 0.95, 0.99)  # shares of the energy
RANKS = tuple(f"rank_{100 * level:.0f}" for level in LEVELS)
MOST_COMPONENTS = 64  # of a head in the table of spectra, evenly spread over its dimensions
SUBSPACE_SHARE = 4  # directions are taken of at most one in so many dimensions: all overlap fully
HEAD = ["layer", "head", "kind"]


@dataclass(frozen=True)
class Spectrum:
    """Of one text or, added up, of several. of_texts: the ranks of each of them alone."""

    moments: Moments
    of_texts: tuple[pd.DataFrame, ...]

    @classmethod
    def of(cls, cache: KVCache) -> "Spectrum":
        moments = Moments.of(cache)
        return cls(moments, (ranks(moments),))

    def __add__(self, other: "Spectrum") -> "Spectrum":
        return Spectrum(self.moments + other.moments, self.of_texts + other.of_texts)

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """As `ranks`, with text_effective_rank and text_effective_rank_se: mean over the texts of
        each one's own, and its standard error."""
        each = pd.concat(self.of_texts).groupby(HEAD, sort=False)["effective_rank"]
        own = each.agg(text_effective_rank="mean", text_effective_rank_se="sem").reset_index()
        return ranks(self.moments).merge(own, on=HEAD, validate="1:1")

    def tables(self, subspace_rank: int) -> Tables:
        """By the names of the pictures that they feed; the rows of each text where there are
        several."""
        share = ["share_of_dim", "dim", "tokens", "texts"]
        tables = {
            "spectrum/energy_spectrum": energy_spectrum(self.moments),
            "spectrum/ranks": self.ranks,
            "spectrum/effective_rank_by_head": self.ranks[HEAD + share],
            "spectrum/subspace_overlap": subspace_overlap(self.moments, subspace_rank),
        }
        if len(self.of_texts) > 1:
            numbered = [table.assign(text=i) for i, table in enumerate(self.of_texts)]
            tables["spectrum/texts"] = pd.concat(numbered, ignore_index=True)
        return tables


def effective_rank(energies: torch.Tensor) -> torch.Tensor:
    """(..., dim) energies -> (...,): exp of the entropy of their roots, taken to sum to 1; 0 where
    all are 0."""
    singular = energies.sqrt()
    total = singular.sum(-1)
    entropy = torch.special.entr(singular / total[..., None]).sum(-1)
    return torch.where(total > 0, entropy.exp(), 0)


def rank_at(energies: torch.Tensor, level: float) -> torch.Tensor:
    """(..., dim) energies, the largest first -> (...,): how many hold this share of them all; 0
    where all are 0."""
    sums = energies.cumsum(-1)
    wanted = level * sums[..., -1:] * (1 - 1e-12)  # what rounding takes off a sum
    return (sums < wanted).sum(-1) + (sums[..., -1] > 0).long()


def ranks(moments: Moments) -> pd.DataFrame:
    """layer, head, kind, dim, tokens, texts, rank_90, rank_95, rank_99, effective_rank,
    share_of_dim, mean_energy_share, centred_effective_rank.

    mean_energy_share: of the energy, what is left when all tokens are their mean;
    centred_effective_rank: of what is then gone. No rank is above the tokens it rests on.
    """
    rows = [_ranks(part).assign(texts=moments.texts) for part in moments.parts]
    return pd.concat(rows, ignore_index=True)


def _ranks(part: HeadMoments) -> pd.DataFrame:
    energies, total = part.energies, part.energies.sum(1)
    effective = effective_rank(energies)
    columns = {
        "tokens": part.tokens,
        **{name: rank_at(energies, level) for name, level in zip(RANKS, LEVELS, strict=True)},
        "effective_rank": effective,
        "share_of_dim": effective / part.dim,
        "mean_energy_share": torch.where(total > 0, part.mean_energies / total, 0),
        "centred_effective_rank": effective_rank(part.centred_energies),
    }
    numbers = {name: column.numpy() for name, column in columns.items()}
    return _heads(part).assign(dim=part.dim, **numbers)


def energy_spectrum(moments: Moments) -> pd.DataFrame:
    """layer, head, kind, component, energy_share, cumulative, dim, tokens, texts.

    energy_share: of the component, counted from 1; cumulative: of all up to it. At most
    MOST_COMPONENTS rows for each head, evenly spread, the first and the last among them.
    """
    rows = [_components(part).assign(texts=moments.texts) for part in moments.parts]
    return pd.concat(rows, ignore_index=True)


def _components(part: HeadMoments) -> pd.DataFrame:
    steps = np.linspace(1, part.dim, min(part.dim, MOST_COMPONENTS)).round().astype(int)
    total = part.energies.sum(1, keepdim=True)
    shares = torch.where(total > 0, part.energies / total, 0).numpy()
    head, place = np.indices((len(shares), len(steps))).reshape(2, -1)
    at = head, steps[place] - 1
    # seven digits are more than there is to say, and half the size of the file
    columns = {
        "component": steps[place],
        "energy_share": shares[at].astype(np.float32),
        "cumulative": shares.cumsum(1)[at].clip(max=1).astype(np.float32),
        "dim": part.dim,
        "tokens": part.tokens.numpy()[head],
    }
    return _heads(part).iloc[head].reset_index(drop=True).assign(**columns)


def _heads(part: HeadMoments) -> pd.DataFrame:
    return pd.DataFrame({"layer": part.layer, "head": range(len(part.sums)), "kind": part.kind})


def subspace_overlap(moments: Moments, rank: int) -> pd.DataFrame:
    """layer_a, layer_b, kind, overlap, chance, rank, tokens, texts; every pair of layers both ways.

    The mean squared cosine of the principal angles between the leading directions of a head of the
    one layer and of a head of the other, mean over all pairs of two heads: no order of the heads is
    taken to mean anything. Directions are of head space, whose coordinates two heads share only as
    far as rotary frequencies tie them; `chance` is what random directions have. Empty where widths
    differ, or no two heads are there to compare, as of a layer with one head by itself.
    """
    found = [_overlaps(parts, rank) for parts in _by_kind(moments)]
    return pd.concat(found, ignore_index=True).assign(texts=moments.texts)


def _by_kind(moments: Moments) -> Iterable[list[HeadMoments]]:
    for kind in dict.fromkeys(part.kind for part in moments.parts):
        yield [part for part in moments.parts if part.kind == kind]


def _overlaps(parts: list[HeadMoments], rank: int) -> pd.DataFrame:
    """Of one kind's layers."""
    n = len(parts)
    overlap, chance = np.full((n, n), np.nan), np.full((n, n), np.nan)
    compared = np.zeros((n, n), dtype=int)
    for dim in {part.dim for part in parts}:
        same = np.array([i for i, part in enumerate(parts) if part.dim == dim])
        chosen, corner = [parts[i] for i in same], np.ix_(same, same)
        r = _directions(chosen, rank)
        overlap[corner], chance[corner], compared[corner] = _mean_overlap(chosen, r), r / dim, r
    a, b = np.indices((n, n)).reshape(2, -1)
    layers = np.array([part.layer for part in parts])
    tokens = np.array([int(part.tokens.min()) for part in parts])
    columns = {
        "layer_a": layers[a],
        "layer_b": layers[b],
        "kind": parts[0].kind,
        "overlap": overlap[a, b],
        "chance": chance[a, b],
        "rank": compared[a, b],
        "tokens": np.minimum(tokens[a], tokens[b]),
    }
    return pd.DataFrame(columns)


def _mean_overlap(parts: list[HeadMoments], r: int) -> np.ndarray:
    """(layers, layers). The sum over pairs of heads of |U^T V|^2 is the inner product of the two
    layers' sums of projections U U^T, so that there is no table of all heads by all heads."""
    sums = torch.stack([_projections(part, r).sum(0).flatten() for part in parts])
    heads = torch.tensor([int((part.energies[:, 0] > 0).sum()) for part in parts])
    pairs = heads[:, None] * heads - torch.diag(heads)
    total = sums @ sums.T - torch.diag(heads * r)  # no head is compared with itself
    mean = (total / (pairs * r)).clamp(0, 1)
    return torch.where(pairs > 0, mean, torch.nan).numpy()


def _directions(parts: list[HeadMoments], rank: int) -> int:
    """How many are compared: as many as every head has that has any."""
    counts = torch.cat([(part.energies > 0).sum(1) for part in parts])
    fewest = int(counts[counts > 0].min()) if counts.any() else 1
    return min(rank, max(1, parts[0].dim // SUBSPACE_SHARE), fewest)


def _projections(part: HeadMoments, r: int) -> torch.Tensor:
    """(kv_heads, dim, dim) onto each head's r leading directions; 0 of a head without energy."""
    leading = part.directions(r) * (part.energies[:, None, :1] > 0)
    return leading @ leading.mT
