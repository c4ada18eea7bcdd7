"""Roots of the Fisher information as they are kept: symmetric, so half of each is enough."""

import math

import torch

from compression.stored import Tensors
from data.cache import KINDS


def half_of(symmetric: torch.Tensor) -> torch.Tensor:
    """(dim (dim + 1) / 2,): its lower half, row by row."""
    return symmetric[torch.ones_like(symmetric, dtype=torch.bool).tril()]


def root_of(tensors: Tensors, i: int, kind: str) -> torch.Tensor:
    """(dim, dim) float64 of a place, out of what is stored."""
    half = tensors[f"roots.{i}.{kind}"].double() * tensors["scales"][_number(i, kind)]
    dim = (math.isqrt(8 * len(half) + 1) - 1) // 2
    root = half.new_zeros(dim, dim)
    root[torch.ones_like(root, dtype=torch.bool).tril()] = half
    return root + root.tril(-1).T


def _number(i: int, kind: str) -> int:
    return len(KINDS) * i + KINDS.index(kind)
