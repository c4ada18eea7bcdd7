"""Many tensors as two: their contents end to end, and an index that says what they are, deflated.
A file that names each of hundreds of small tensors by itself takes about 80 bytes for each name.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import torch

from compression import deflated as deflating
from compression.stored import Tensors, nbytes
from data.headers import fitting, shown, words

CONTENT, INDEX = "content", "index"
LARGEST_INFLATED = 2**20  # bytes of what is kept deflated: a stranger's few bytes become no more
LARGEST_SIZE = 2**40  # of a tensor: torch cannot hold all that may be claimed of an empty one
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
ROWS = tuple[tuple[str, tuple[int, ...], tuple[str, ...]], ...]  # of the index, see `Alike`
_AS_IT_IS, _DEFLATED = b"\0", b"\1"  # how bytes are kept, in front of them


@dataclass(frozen=True)
class Alike:
    """Tensors of one dtype and shape that lie behind each other."""

    dtype: str
    sizes: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Of each."""
        return math.prod(self.sizes) * DTYPES[self.dtype].itemsize


def packed(tensors: Tensors) -> Tensors:
    """CONTENT and INDEX of tensors."""
    content = torch.empty(nbytes(tensors), dtype=torch.uint8)
    at = 0
    for alike in _runs(tensors):
        for name in alike.names:
            start, at = at, at + alike.nbytes
            content[start:at].view(DTYPES[alike.dtype]).copy_(tensors[name].flatten())
    return {CONTENT: content, INDEX: index(tensors)}


def index(tensors: Tensors) -> torch.Tensor:
    """What the tensors are, whose content is not looked at."""
    rows = [astuple(alike) for alike in _runs(tensors)]
    return deflated(json.dumps(rows, separators=(",", ":")).encode())


def unpacked(content: torch.Tensor, index: torch.Tensor) -> Tensors:
    """The tensors, as parts of `content`; raises ValueError for an index that is not of it."""
    rows = fitting(ROWS, words(inflated(index, INDEX).decode()), INDEX)
    tensors: Tensors = {}
    at = 0
    for row in rows:
        alike = _checked(Alike(*row))
        for name in alike.names:
            start, at = at, at + alike.nbytes
            if name in tensors or at > len(content):
                raise ValueError(f"{shown(name)} is there twice, or goes beyond what there is")
            part = content[start:at]
            if part.storage_offset() % DTYPES[alike.dtype].itemsize:
                raise ValueError(f"{shown(name)} lies where no such tensor may lie")
            tensors[name] = part.view(DTYPES[alike.dtype]).view(alike.sizes)
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes belong to no tensor")
    return tensors


def _checked(alike: Alike) -> Alike:
    if alike.dtype not in DTYPES:
        raise ValueError(f"a tensor is of dtype {shown(alike.dtype)}")
    if (
        any(size < 0 for size in alike.sizes)
        or math.prod(max(1, n) for n in alike.sizes) > LARGEST_SIZE
    ):
        raise ValueError(f"a tensor claims sizes of {shown(str(alike.sizes))}")
    return alike


def _runs(tensors: Tensors) -> Iterator[Alike]:
    """All, those of wide entries first, so that each lies where its dtype may lie; names that
    differ in a number alone follow each other, which deflates best."""
    groups: dict[tuple[int, str, tuple[int, ...]], list[str]] = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        groups.setdefault((-tensor.element_size(), dtype, tuple(tensor.shape)), []).append(name)
    for (_, dtype, sizes), names in sorted(groups.items()):
        yield Alike(dtype, sizes, tuple(sorted(names, key=_by_number)))


def _by_number(name: str) -> tuple[str, list[int], str]:
    numbers = re.findall("[0-9]+", name)
    return re.sub("[0-9]+", "0", name), [int(number) for number in numbers], name


def deflated(data: bytes) -> torch.Tensor:
    """(bytes,) of which the first says whether the others are deflated: they are where that is
    smaller."""
    small = deflating.deflated(data)
    smaller = len(small) < len(data) <= LARGEST_INFLATED
    kept = _DEFLATED + small if smaller else _AS_IT_IS + data
    return torch.frombuffer(bytearray(kept), dtype=torch.uint8)


def inflated(x: torch.Tensor, name: str) -> bytes:
    """What `deflated` was given; raises ValueError for what it would not have given."""
    data = x.numpy().tobytes()
    how, kept = data[:1], data[1:]
    if how == _AS_IT_IS:
        return kept
    if how != _DEFLATED:
        raise ValueError(f"its {name} is kept in no known way")
    return deflating.inflated(kept, LARGEST_INFLATED)
