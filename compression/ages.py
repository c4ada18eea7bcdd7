"""How strongly predictions depend on a token by its age, the tokens from it to the text's end."""

import math

import numpy as np
import torch

from compression.between import Place
from compression.coded_side import EARLY
from data.cache import KVCache

FARTHEST = 1e5  # tokens of age to which the last power law is drawn out
COMMON_AGES = 512  # what is younger is in nearly all contexts: energies are relative to theirs


class AgeBins:
    """Energy of gradients by position (the first tokens) and else by octave of age, relative to
    what each place has on average in one context."""

    N_AGES = 40

    def __init__(self) -> None:
        n = self.N_AGES + len(EARLY) - 1
        self.energy, self.log_age, self.count = (torch.zeros(n).double() for _ in range(3))

    def added(
        self, cache: KVCache, gradients: dict[Place, torch.Tensor], first: int
    ) -> tuple[torch.Tensor, float]:
        """The context's own weights (tokens,), the mean energy in each token's bin; and its scale,
        the energy at the usual place."""
        n_tokens = cache.n_tokens
        positions = torch.arange(n_tokens)
        total, seen = torch.zeros(n_tokens).double(), torch.zeros(n_tokens).double()
        log_means = []
        for place, g in gradients.items():
            held = cache.layers[place[0]].positions.cpu()
            energy = g.double().square().sum(1)
            mean = energy[(held >= first) & (held >= n_tokens - COMMON_AGES)].mean()
            if mean > 0:
                total[held] += energy / mean
                seen[held] += 1
                log_means.append(mean.log())
        learned = (positions >= first) & (seen > 0)
        bins, count = _bins(n_tokens)[learned], seen[learned]
        energy = _summed(bins, total[learned], self.energy)
        own = energy / _summed(bins, count, self.count).clamp(min=1)
        log_age = torch.log((n_tokens - positions[learned]).double())
        self.log_age += _summed(bins, count * log_age, self.log_age)
        self.count += _summed(bins, count, self.count)
        # A few contexts have a second sink among their early tokens: the mean would be theirs.
        self.energy[: self.N_AGES] += energy[: self.N_AGES]
        self.energy[self.N_AGES :] += (energy * _summed(bins, count, self.count)).sqrt()[
            self.N_AGES :
        ]
        scale = float(torch.stack(log_means).mean().exp()) if log_means else 1.0
        return own.clamp(min=1e-6)[_bins(n_tokens)].float(), scale

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(knots, 2) log(age + 1) and log weight, falling; and the factors of early positions."""
        there = (self.count > 0).numpy()
        count = self.count.clamp(min=1)
        energy, log_age = (self.energy / count).numpy(), (self.log_age / count).numpy()
        aged = there & (np.arange(len(there)) < self.N_AGES)
        x = log_age[aged]
        y = np.minimum.accumulate(np.log(np.maximum(energy[aged], 1e-6)))
        middle = min(2, len(x) - 1)
        slope = (y[-1] - y[middle]) / (x[-1] - x[middle]) if x[-1] > x[middle] else 0.0
        farthest = math.log(FARTHEST)
        y = np.append(y, y[-1] + slope * (farthest - x[-1]))
        x = np.append(x, farthest)
        usual = np.exp(np.interp(log_age[self.N_AGES :], x, y))
        ratio = energy[self.N_AGES :] ** 2 / usual
        early = np.where(there[self.N_AGES :], np.maximum(1, ratio), 1.0)
        return np.stack([x, y], axis=1), early


def _summed(bins: torch.Tensor, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like).index_add_(0, bins, x)


def _bins(n_tokens: int) -> torch.Tensor:
    """(tokens,) the bin of each position; early ones only where later ones have a say."""
    age = torch.arange(n_tokens, 0, -1)
    bins = torch.log2(age.double()).floor().long()
    if n_tokens >= 2 * EARLY[-1]:
        for k in range(len(EARLY) - 1):
            bins[EARLY[k] : EARLY[k + 1]] = AgeBins.N_AGES + k
    return bins
