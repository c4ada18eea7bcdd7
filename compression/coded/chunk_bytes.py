"""A chunk as bytes, little-endian:

    KVchunk3, length, tokens, first position, step, sinks, bytes of an escape, two bytes of zero
    identity of the model, identity of the calibration: 32 bytes each
    side, state, words, escapes, sinks: each its length in four bytes, then its bytes
    checksum: 16 bytes of BLAKE2b over all before

`side` is deflated: of each group how many of the chunk's first tokens it has forgotten (uint16); in
bytes of each layer its dtype, of the mean and of each token its level, of each column the code of
its magnitude, as differences. `state`, `words` and `escapes` are those of rans.py; `sinks` is what
stays in 16 bits, layer by layer, keys then values.

The length stands in front, so that chunks can be written behind each other and read one by one.
What is read may come from a stranger: nothing is made in proportion to what is only claimed.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from compression.deflated import deflated, inflated_to
from compression.stored import Tensors
from config import UsageError

MAGIC = b"KVchunk3"
HEAD = struct.Struct("<8sIIQdBBH32s32s")
LENGTH = struct.Struct("<I")
CHECKSUM_BYTES = 16
MOST_TOKENS = 1024
MOST_SINKS = 4
LAST_POSITION = 1 << 31
ESCAPES = {0: np.int16, 2: np.int16, 4: np.int32}  # dtype by bytes; 0 where there are none
IDENTITY = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Chunk:
    """model, calibration: identities, 64 hexadecimal digits. start: the position of the first of
    `n_tokens` tokens. n_sinks: first tokens in 16 bits. skips: (groups,) uint16. dtypes: (layers,)
    uint8. levels: (1 + tokens,) int8, codes: (columns,) uint8."""

    model: str
    calibration: str
    step: float
    start: int
    n_tokens: int
    n_sinks: int
    skips: np.ndarray
    dtypes: np.ndarray
    levels: np.ndarray
    codes: np.ndarray
    state: np.ndarray
    words: np.ndarray
    escapes: np.ndarray
    sinks: np.ndarray

    def __post_init__(self) -> None:
        if not (IDENTITY.fullmatch(self.model) and IDENTITY.fullmatch(self.calibration)):
            raise ValueError("identities are 64 hexadecimal digits")
        if not (0 < self.n_tokens <= MOST_TOKENS and 0 <= self.n_sinks <= MOST_SINKS):
            raise ValueError(f"{self.n_tokens} tokens, {self.n_sinks} of them plain")
        if not self.start + self.n_tokens <= LAST_POSITION:
            raise ValueError(f"position {self.start}")

    @property
    def stream(self) -> Tensors:
        """The coded integers as rans.py stores them."""
        named = {"state": self.state, "words": self.words}
        if len(self.escapes):
            named["escapes"] = self.escapes
        return {name: torch.from_numpy(x) for name, x in named.items()}


def written(chunk: Chunk) -> bytes:
    escape_bytes = chunk.escapes.dtype.itemsize if len(chunk.escapes) else 0
    arrays = (chunk.state, chunk.words, chunk.escapes, chunk.sinks)
    steps = np.diff(chunk.codes, prepend=np.uint8(0))
    side = b"".join(_little(x) for x in (chunk.skips, chunk.dtypes, chunk.levels, steps))
    sections = [deflated(side), *(_little(x) for x in arrays)]
    body = b"".join(LENGTH.pack(len(section)) + section for section in sections)
    head = HEAD.pack(
        MAGIC,
        HEAD.size + len(body) + CHECKSUM_BYTES,
        chunk.n_tokens,
        chunk.start,
        chunk.step,
        chunk.n_sinks,
        escape_bytes,
        0,
        bytes.fromhex(chunk.model),
        bytes.fromhex(chunk.calibration),
    )
    return head + body + _checksum(head + body)


def read(data: bytes | memoryview, n_groups: int, n_layers: int, n_columns: int) -> Chunk:
    """The chunk that these bytes are, all of them, of a model with so many groups, layers and
    columns. Raises UsageError where they are none, of another version, or damaged."""
    try:
        return _read(memoryview(data).toreadonly(), n_groups, n_layers, n_columns)
    except (ValueError, struct.error) as error:
        raise damaged(error) from None


def identities(data: bytes | memoryview) -> tuple[str, str]:
    """Of the model and of the calibration, before anything else is read. Raises UsageError where
    these bytes do not begin as a chunk does."""
    _length(memoryview(data))
    *_, model, calibration = HEAD.unpack_from(data)
    return model.hex(), calibration.hex()


def split(stream: bytes | memoryview) -> Iterator[memoryview]:
    """Chunks that were written behind each other, one by one, unread. Raises UsageError where one
    does not begin, or ends early."""
    left = memoryview(stream).toreadonly()
    while len(left):
        length = _length(left)
        if length > len(left):
            raise damaged(f"{length:,} bytes are due where {len(left):,} are left")
        yield left[:length]
        left = left[length:]


def damaged(reason: object) -> UsageError:
    return UsageError(f"This is a damaged chunk, or none ({reason})", "store it again")


def _length(data: memoryview) -> int:
    if len(data) < HEAD.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise damaged(f"it does not begin with {MAGIC.decode()} and what follows that")
    length: int = HEAD.unpack_from(data)[1]
    if length < HEAD.size + CHECKSUM_BYTES:
        raise damaged(f"it claims {length} bytes")
    return length


def _read(data: memoryview, n_groups: int, n_layers: int, n_columns: int) -> Chunk:
    if _length(data) != len(data):
        raise ValueError(f"{len(data):,} bytes")
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if _checksum(content) != checksum:
        raise ValueError("its checksum does not fit")
    head = HEAD.unpack_from(content)
    _, _, n_tokens, start, step, n_sinks, escape_bytes, nothing, *_ = head
    if nothing or escape_bytes not in ESCAPES or not (0 < step < np.inf):
        raise ValueError("its head does not fit")
    side, state, words, escapes, sinks = _sections(content[HEAD.size :], 5)
    if (len(escapes) > 0) != (escape_bytes > 0):
        raise ValueError("escapes of no size")
    n_levels = 1 + min(n_tokens, MOST_TOKENS)
    side = memoryview(inflated_to(side, 2 * n_groups + n_layers + n_levels + n_columns))
    skips, of_layers = side[: 2 * n_groups], side[2 * n_groups :]
    dtypes, levels, steps = np.split(
        np.frombuffer(of_layers, np.uint8), [n_layers, n_layers + n_levels]
    )
    return Chunk(
        *identities(data),
        step,
        start,
        n_tokens,
        n_sinks,
        _numbers(skips, np.uint16),
        dtypes,
        levels.view(np.int8),
        steps.cumsum(dtype=np.uint8),
        _numbers(state, np.int32),
        _numbers(words, np.int16),
        _numbers(escapes, ESCAPES[escape_bytes]),
        _numbers(sinks, np.int16),
    )


def _sections(body: memoryview, n: int) -> Iterator[memoryview]:
    for _ in range(n):
        (length,) = LENGTH.unpack_from(body)
        if LENGTH.size + length > len(body):
            raise ValueError("a part of it ends early")
        yield body[LENGTH.size : LENGTH.size + length]
        body = body[LENGTH.size + length :]
    if len(body):
        raise ValueError(f"{len(body)} bytes are left")


def _numbers(section: memoryview, dtype: type) -> np.ndarray:
    return np.frombuffer(section, np.dtype(dtype).newbyteorder("<")).astype(dtype)


def _little(x: np.ndarray) -> bytes:
    return x.astype(x.dtype.newbyteorder("<")).tobytes()


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).digest()
