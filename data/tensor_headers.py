"""The header of a safetensors file: which tensors it holds, and where."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from data.headers import shown, words

DTYPES = {
    "I64": torch.int64,
    "I32": torch.int32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
META = "__metadata__"
LARGEST_HEADER = 100_000_000  # bytes: what safetensors itself would read
LARGEST_SIZE = 2**40  # of a mode: torch cannot hold all that a header may claim of an empty tensor
MOST_MODES = 8  # of a tensor
LENGTH = 8  # bytes that say how long a header is


@dataclass(frozen=True)
class Form:
    """What a tensor is without its content."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Place:
    """A tensor of a file: what it is, and at which byte it begins."""

    form: Form
    start: int

    @property
    def end(self) -> int:
        return self.start + self.form.nbytes


def read_header(opened: BinaryIO, size: int) -> dict[str, Any]:
    """Of a file of `size` bytes; raises ValueError for what is none."""
    length = int.from_bytes(opened.read(LENGTH), "little")
    if size < LENGTH or not 0 < length <= min(LARGEST_HEADER, size - LENGTH):
        raise ValueError("it does not begin with a header")
    header = words(opened.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header


def metadata(said: Any) -> dict[str, str]:
    """Words by name, or ValueError."""
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError("the words of its header are not by name")
    return said


def places_of(header: Mapping[str, Any], start: int, size: int) -> dict[str, Place]:
    """Where the tensors of a file of `size` bytes lie: one after the other from `start` to its
    end."""
    places = {name: _place(name, said, start) for name, said in header.items()}
    at = start
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != at:
            raise ValueError(f"{shown(name)} does not begin where another tensor ends")
        at = place.end
    if at != size:
        raise ValueError(f"it is {size} bytes long, and its header speaks of {at}")
    return places


def _place(name: str, said: Any, start: int) -> Place:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its header does not say where {shown(name)} lies")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{shown(name)} is of dtype {shown(dtype)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown(name)} has sizes that no tensor can have")
    place = Place(Form(DTYPES[dtype], tuple(shape)), start + offsets[0])
    if place.form.nbytes > LARGEST_SIZE or place.end != start + offsets[1]:
        raise ValueError(f"the sizes of {shown(name)} do not fit its bytes")
    return place


def _are_sizes(said: Any) -> bool:
    if not isinstance(said, list) or len(said) > MOST_MODES:
        return False
    return all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in said)
