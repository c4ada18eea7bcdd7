"""What a stored tensor is of, in words: for a ledger of where the bytes of a method go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

Words = Mapping[str, str]  # what tensors hold, by a part of their names
BOTH = "both"
PLAIN = "plain tokens"


@dataclass(frozen=True)
class Part:
    """layers: the model's layers that it belongs to, by their numbers; none where it belongs to
    none of them. kind: key, value, BOTH, or nothing. words: what it holds."""

    words: str
    layers: tuple[int, ...] = ()
    kind: str = ""


def in_words(layers: Iterable[int]) -> str:
    """Numbers of layers, neighbours as a span: 0-3, 6."""
    numbers = sorted(set(layers))
    if not numbers:
        return ""
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b > a + 1]
    runs = [numbers[i:j] for i, j in pairwise([0, *breaks, len(numbers)])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
