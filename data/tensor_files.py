"""Files of many tensors, written one tensor after the other and read where they lie.

The format is safetensors: eight bytes that say how long the header is, the header in JSON with the
place of each tensor, and their bytes. Our own words stand in its `__metadata__`:

- `crc32`: for each tensor the CRC-32 of every `BLOCK` bytes of it (the last block may be shorter),
  eight hexadecimal digits each, one after the other;
- `sha256`: of all else in the header, as `_seal` makes it.

So a header is vouched for as soon as it is read, and a tensor when its bytes are first asked for
(`TensorFile.check`), which costs one pass over them, in threads. Checksums find damage; whoever
means harm can compute them, so what is read is held against what it should be all the same.
"""

import hashlib
import json
import math
import mmap
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from data.headers import words
from data.tensor_headers import (
    LENGTH,
    META,
    NAMES,
    Form,
    metadata,
    places_of,
    read_header,
)
from data.writing import whole_or_nothing

CRC32, SHA256 = "crc32", "sha256"
BLOCK = 2**24  # bytes that share a checksum
PIECE = 2**20  # bytes that are looked through at a time, within a processor's own memory
THREADS = min(8, os.cpu_count() or 1)


def write(
    file: Path,
    forms: Mapping[str, Form],
    content: Iterable[tuple[str, torch.Tensor]],
    said: Mapping[str, str],
) -> None:
    """Write tensors, whose forms are known beforehand, as they come, in the same order; all or
    nothing. said: words of the header by name. Raises OSError where that cannot be."""
    crcs = {name: "0" * 8 * _n_blocks(form.nbytes) for name, form in forms.items()}
    with whole_or_nothing(file) as part, part.open("wb") as out:
        out.write(_header(forms, said, crcs))  # of the same length as the one in the end
        for (name, tensor), (due, form) in zip(content, forms.items(), strict=True):
            if name != due or Form(tensor.dtype, tuple(tensor.shape)) != form:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {form}")
            raw = _raw(tensor)
            out.write(raw)
            crcs[name] = checksums(raw)
        out.seek(0)
        out.write(_header(forms, said, crcs))


def _header(forms: Mapping[str, Form], said: Mapping[str, str], crcs: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {META: {**said, CRC32: json.dumps(crcs)}}
    at = 0
    for name, form in forms.items():
        offsets = [at, at := at + form.nbytes]
        header[name] = {
            "dtype": NAMES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": offsets,
        }
    header[META][SHA256] = _seal(header)
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % LENGTH)  # so that numbers begin where a processor likes it
    return len(raw).to_bytes(LENGTH, "little") + raw


def _seal(header: Mapping[str, Any]) -> str:
    """Of a header without its seal."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, not copied where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _n_blocks(nbytes: int) -> int:
    return -(-nbytes // BLOCK)


def checksums(raw: memoryview) -> str:
    """The CRC-32 of each block, in hexadecimal digits."""
    starts = range(0, len(raw), BLOCK)
    if len(starts) < 2:
        return "".join(f"{zlib.crc32(raw):08x}" for _ in starts)
    with ThreadPoolExecutor(THREADS) as pool:
        crcs = pool.map(lambda at: zlib.crc32(raw[at : at + BLOCK]), starts)
        return "".join(f"{crc:08x}" for crc in crcs)


class TensorFile:
    """A safetensors file that was opened. Raises OSError where it cannot be read, and ValueError,
    with the reason, where it is none."""

    def __init__(self, file: Path) -> None:
        if file.exists() and not file.is_file():  # reading from a pipe would wait for its writer
            raise OSError(f"{file} is no regular file")
        self.file = file
        with file.open("rb") as opened:
            header = read_header(opened, os.fstat(opened.fileno()).st_size)
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._data = memoryview(self._map)
        length = LENGTH + int.from_bytes(self._data[:LENGTH], "little")
        self.metadata = metadata(header.pop(META, {}))
        self.places = places_of(header, length, len(self._map))
        self._sealed = header | {META: {k: v for k, v in self.metadata.items() if k != SHA256}}
        self._checked: set[str] = set()

    @property
    def is_sealed(self) -> bool:
        """Whether the header is as `write` has written it."""
        return self.metadata.get(SHA256) == _seal(self._sealed)

    def checksums(self) -> dict[str, str]:
        """By tensor, those of a sealed file."""
        crcs = words(self.metadata.get(CRC32))
        if not isinstance(crcs, dict) or crcs.keys() != self.places.keys():
            raise ValueError("it does not say what its tensors sum up to")
        return crcs

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the file, read when it is touched; not to be written into."""
        place = self.places[name]
        if not place.form.nbytes:
            return torch.empty(place.form.shape, dtype=place.form.dtype)
        if place.start % place.form.dtype.itemsize:
            raise ValueError(f"{name} does not begin at a multiple of its numbers' size")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(
                self._map,
                dtype=place.form.dtype,
                count=math.prod(place.form.shape),
                offset=place.start,
            )
        return flat.view(place.form.shape)

    def raw(self, name: str) -> bytes:
        """A copy of a tensor's bytes."""
        place = self.places[name]
        return bytes(self._data[place.start : place.end])

    def check(self, name: str, crcs: Mapping[str, str]) -> None:
        """Reads a tensor, the first time only, and raises ValueError where its bytes are not those
        that were written, or its numbers are not finite."""
        if name in self._checked:
            return
        place = self.places[name]
        if checksums(self._data[place.start : place.end]) != crcs[name]:
            raise ValueError(f"the checksum of {name} does not fit")
        if place.form.dtype.is_floating_point and not is_finite(self.tensor(name)):
            raise ValueError(f"{name} holds NaN or Inf")
        if place.form.dtype is torch.bool and self.raw(name).strip(b"\0\1"):
            raise ValueError(f"{name} holds what is neither true nor false")
        self._checked.add(name)

    def release(self, names: Iterable[str]) -> None:
        """Takes the bytes of tensors out of memory, from where the file brings them back when they
        are touched again."""
        page = mmap.PAGESIZE
        for place in (self.places[name] for name in names):
            first, last = -(-place.start // page) * page, place.end // page * page
            if last > first and hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def is_finite(x: torch.Tensor) -> bool:
    """Whether all numbers of a tensor are; the smallest and the largest say so much faster than
    `isfinite`, and NaN is both."""
    pieces = x.reshape(-1).split(PIECE // x.element_size())
    return all(torch.stack(torch.aminmax(piece)).isfinite().all() for piece in pieces)
