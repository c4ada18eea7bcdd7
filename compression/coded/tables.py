"""Tables of the entropy coder, one for each magnitude that integers may be expected to have."""

import math

import numpy as np

from compression.coded import rans

LOWEST, HIGHEST = -24, 40  # classes of magnitude, four an octave: 1/64 of a step to 1024 steps
SKIPPED = -8  # classes below this, a quarter of a step, hold zeros and no symbols
N_CLASSES = HIGHEST - LOWEST + 1
NBYTES = 2 * N_CLASSES * rans.N_SYMBOLS  # of all tables, as they are stored
PRIOR = 50  # counts that a Laplace distribution of its magnitude adds to each class


def counted(integers: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(classes, N_SYMBOLS) how often each of (n,) integers occurs in each of the classes, 0 for
    LOWEST, either sign alike; the escape first."""
    width = 2 * rans.TOP + 3  # with what is beyond on either side
    entry = classes.astype(np.int64) * width
    entry += integers.clip(-rans.TOP - 1, rans.TOP + 1) + (rans.TOP + 1)
    by_class = np.bincount(entry, minlength=N_CLASSES * width).reshape(-1, width)
    by_class = by_class + by_class[:, ::-1]
    return np.concatenate([by_class[:, :1], by_class[:, 1:-1]], axis=1)


def frequencies(counts: np.ndarray) -> np.ndarray:
    """(classes, N_SYMBOLS) integers, as the coder takes them, from such counts."""
    return rans.frequencies(counts + PRIOR * _laplace())


def n_bytes(counts: np.ndarray, frequencies: np.ndarray) -> float:
    """What integers that are so often there take; escapes in 16 bits."""
    shares = np.maximum(frequencies, 1) / (1 << rans.BITS)
    bits = np.where(frequencies > 0, -np.log2(shares), -np.log2(shares[:, :1]) + 16)
    bits[:, 0] = 2 * (bits[:, 0] + 16)  # once for either sign, where others are there twice
    return float((counts * bits).sum()) / 2 / 8


def _laplace() -> np.ndarray:
    """(classes, N_SYMBOLS) shares of integers under a Laplace distribution of each magnitude, what
    is beyond the table first."""
    octaves = np.arange(LOWEST, HIGHEST + 1) / 4
    edges = np.arange(0.5, rans.TOP + 1) / (2.0 ** octaves[:, None] / math.sqrt(2))
    beyond = np.exp(-edges)  # on both sides together
    half = -np.diff(beyond, axis=1) / 2  # 1 to TOP
    parts = [beyond[:, -1:], half[:, ::-1], 1 - beyond[:, :1], half]
    return np.concatenate(parts, axis=1)
