"""Entropy coding of integers: asymmetric numeral systems over tables of frequencies, side by side.

A state x takes in a symbol of frequency f out of 2^BITS as x' = 2^BITS floor(x / f) + c + x mod f,
c the frequencies before it, and gives it back from x' mod 2^BITS (Duda, arXiv 1311.2540). States
lie in [2^16, 2^32) and pass their low 16 bits to the stream when they would grow beyond. Many run
side by side, each over every so-manieth symbol, so that a step is one array operation.

Each symbol comes with a class, which both sides know and which picks its table. Table entry 0 is
the escape, entry s stands for the integer s - TOP - 1; an integer without a frequency is escaped
and kept as it is, so that every 32-bit integer comes back exactly.

Our own, where libraries such as constriction exist: every symbol has a class and tables of its own,
thousands of states run side by side in plain numpy, and the stream is ours to keep readable.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from compression.stored import Tensors, taken

BITS = 14  # frequencies of a class sum to 2^14
TOP = 127  # the largest |integer| with an entry of its own, so that entries fit a byte
N_SYMBOLS = 2 * TOP + 2
ESCAPE = -TOP - 1  # what stands for an integer that is kept as it is
MOST_LANES = 4096  # states side by side: 4 bytes each are stored
# Below, fewer lanes: a lane costs about 24 bits, and so many symbols a thousand or more.
SYMBOLS_PER_LANE = 1024
STEPS_AT_ONCE = 256  # of each lane, whose symbols are looked up in the tables together
_FULL = np.uint32(32 - BITS)
_FIRST = np.uint32(1 << 16)  # state before any symbol
_WORD = np.uint32(16)
_BITS = np.uint32(BITS)
_LOW_WORD = np.uint32(0xFFFF)
_SLOT = np.uint32((1 << BITS) - 1)


@dataclass(frozen=True, eq=False)
class Tables:
    """frequencies: (classes, N_SYMBOLS) integers, each row sums to 2^BITS, each escape above 0."""

    frequencies: np.ndarray

    def __post_init__(self) -> None:
        f = self.frequencies
        if f.ndim != 2 or f.shape[1] != N_SYMBOLS:
            raise ValueError(f"tables are (classes, {N_SYMBOLS}), not {f.shape}")
        if (f < 0).any() or (f[:, 0] < 1).any() or (f.sum(1, dtype=np.int64) != 1 << BITS).any():
            raise ValueError(f"frequencies are at least 0, sum to {1 << BITS} and allow an escape")

    @cached_property
    def starts(self) -> np.ndarray:
        """(classes x N_SYMBOLS,) the frequencies before each symbol of its class."""
        f = self.frequencies.astype(np.uint32)
        return (f.cumsum(1, dtype=np.uint32) - f).ravel()

    @cached_property
    def flat(self) -> np.ndarray:
        return self.frequencies.astype(np.uint32).ravel()

    @cached_property
    def integers(self) -> np.ndarray:
        """(classes x 2^BITS,) int16: the integer of each slot of each class, ESCAPE among them."""
        each = np.arange(ESCAPE, TOP + 1, dtype=np.int16)
        return np.repeat(np.tile(each, len(self.frequencies)), self.flat)

    @cached_property
    def moves(self) -> np.ndarray:
        """(classes x 2^BITS,): the slot's frequency in the high half, its rank in the low one."""
        slots = np.tile(np.arange(1 << BITS, dtype=np.uint32), len(self.frequencies))
        ranks = slots - self._repeated_starts()
        moves: np.ndarray = (np.repeat(self.flat, self.flat) << _WORD) | ranks
        return moves

    def _repeated_starts(self) -> np.ndarray:
        return np.repeat(self.starts, self.flat)


def frequencies(weights: np.ndarray) -> np.ndarray:
    """(classes, N_SYMBOLS) integer frequencies from weights of the same shape, the escape's first;
    what is rarer than about one in 2^BITS is left to the escape."""
    share = weights / weights.sum(1, keepdims=True) * (1 << BITS)
    table = np.where(share >= 0.7, np.floor(share + 0.5), 0).astype(np.int64)
    rest = share[:, 0] + np.where(table > 0, 0, share)[:, 1:].sum(1)
    table[:, 0] = np.maximum(1, np.rint(rest))
    table[np.arange(len(table)), table.argmax(1)] += (1 << BITS) - table.sum(1)
    return table


def encode(integers: np.ndarray, classes: np.ndarray, tables: Tables) -> Tensors:
    """What is stored of (n,) int32 integers whose (n,) classes are known to both sides.

    state: int32, one per lane; words: int16, in the order in which they are read; escapes: int16,
    or int32 where one does not fit; left out where there are none.
    """
    lanes = _lanes(len(integers))
    state = np.full(lanes, _FIRST, np.uint32)
    words, kept = [np.zeros(0, np.uint16)], [np.zeros(0, np.int32)]
    for part in reversed(_parts(len(integers), lanes)):
        f, start, escaped = _entries(integers[part], classes[part], tables)
        words.append(_pushed(state, f, start))
        kept.append(integers[part][escaped])
    stored = {
        "state": _as_tensor(state, np.int32),
        "words": _as_tensor(np.concatenate(words[::-1]), np.int16),
    }
    escapes = np.concatenate(kept[::-1])
    if len(escapes):
        fits = np.abs(escapes.astype(np.int64)).max() < 1 << 15
        stored["escapes"] = torch.from_numpy(escapes.astype(np.int16 if fits else np.int32))
    return stored


def _entries(
    integers: np.ndarray, classes: np.ndarray, tables: Tables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) the frequency of each integer, those before it, and whether it is escaped."""
    row = classes.astype(np.int32) * N_SYMBOLS
    inside = (integers >= -TOP) & (integers <= TOP)
    entry = row + np.where(inside, integers - ESCAPE, 0)
    escaped = ~inside | (tables.flat[entry] == 0)
    entry = np.where(escaped, row, entry)
    return tables.flat[entry], tables.starts[entry], escaped


def costs(integers: np.ndarray, classes: np.ndarray, tables: Tables) -> np.ndarray:
    """(n,) float32: the bits that each of these integers takes. They are of the dtype in which
    `decode` gives them, which is that of the escapes."""
    bits = np.empty(len(integers), np.float32)
    for part in _parts(len(integers), MOST_LANES):
        f, _, escaped = _entries(integers[part], classes[part], tables)
        bits[part] = BITS - np.log2(f) + 8 * integers.itemsize * escaped
    return bits


def decode(stored: Tensors, classes: np.ndarray, tables: Tables) -> np.ndarray:
    """(n,) the integers that `encode` was given, from the same (n,) classes: int16, or int32 where
    one does not fit. Takes it out of `stored`; raises ValueError for what `encode` has
    not given."""
    state = taken(stored, "state", (torch.int32,), _lanes(len(classes)))
    words = taken(stored, "words", (torch.int16,), n_stored(stored, "words"))
    integers = _popped(
        state.numpy().view(np.uint32).copy(), words.numpy().view(np.uint16), classes, tables
    )
    escaped = integers == ESCAPE
    if escaped.any():
        sizes = (torch.int16, torch.int32)
        escapes = taken(stored, "escapes", sizes, int(escaped.sum())).numpy()
        integers = integers.astype(escapes.dtype, copy=False)
        integers[escaped] = escapes
    return integers


def n_stored(stored: Tensors, name: str) -> int:
    """The entries of a tensor that may have any size, 0 where it is not there."""
    return stored[name].numel() if name in stored else 0


def _parts(n: int, lanes: int) -> list[slice]:
    """What is looked up at a time: 0 to n in pieces of many symbols for each lane."""
    size = STEPS_AT_ONCE * lanes
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _lanes(n: int) -> int:
    return min(MOST_LANES, 1 << max(0, (n // SYMBOLS_PER_LANE).bit_length() - 1))


def _as_tensor(x: np.ndarray, dtype: type) -> torch.Tensor:
    """Signed, since not everything that reads a file knows unsigned words."""
    return torch.from_numpy(x.view(dtype).copy())


def _pushed(state: np.ndarray, f: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Words uint16 that (lanes,) states uint32 let go of while they take in these symbols, the last
    of them first; in the order in which they are read."""
    words = [np.zeros(0, np.uint16)]
    lanes = len(state)
    for first in reversed(range(0, len(f), lanes)):
        frequency = f[first : first + lanes]
        x = state[: len(frequency)]
        full = (x >> _FULL) >= frequency
        words.append(x[full].astype(np.uint16))
        np.right_shift(x, _WORD, out=x, where=full)
        x += (x // frequency) * (np.uint32(1 << BITS) - frequency) + start[first : first + lanes]
    return np.concatenate(words[::-1])


def _popped(
    state: np.ndarray, words: np.ndarray, classes: np.ndarray, tables: Tables
) -> np.ndarray:
    """(n,) int16 integers, ESCAPE among them, the first of them first."""
    integers = np.empty(len(classes), np.int16)
    read = 0
    for part in _parts(len(classes), len(state)):
        slots, n_words = _slots(state, words[read:], classes[part], tables.moves)
        read += n_words
        integers[part] = tables.integers.take(slots)
    if read != len(words) or (state != _FIRST).any():
        raise ValueError("the coded integers do not end where they began")
    return integers


def _slots(
    state: np.ndarray, words: np.ndarray, classes: np.ndarray, moves: np.ndarray
) -> tuple[np.ndarray, int]:
    """(n,) the slots of symbols in the table of all classes, and how many words were read."""
    slots = classes.astype(np.int64) << BITS
    lanes = len(state)
    read = 0
    for first in range(0, len(slots), lanes):
        slot = slots[first : first + lanes]
        x = state[: len(slot)]
        slot |= x & _SLOT
        move = moves.take(slot)
        x >>= _BITS
        x *= move >> _WORD
        x += move & _LOW_WORD
        low = (x < 1 << 16).nonzero()[0]
        if read + len(low) > len(words):
            raise ValueError("the coded integers end early")
        x[low] = (x[low] << _WORD) | words[read : read + len(low)]
        read += len(low)
    return slots, read
