"""Mutations of files of plain caches that keep their structure, with checksums computed anew or
not, and of what other programs leave on disk."""

import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from data.tensor_files import BLOCK, CRC32, SHA256
from data.tensor_headers import LENGTH, META
from tests.mutations import change_place, places

Draw = Callable[..., Any]
TREES = ("about", CRC32)  # words of a header that hold JSON


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytearray]:
    length = LENGTH + int.from_bytes(content[:LENGTH], "little")
    header = json.loads(content[LENGTH:length])
    header[META] |= {name: json.loads(header[META][name]) for name in TREES}
    return header, bytearray(content[length:])


def put_together(header: dict[str, Any], data: bytes, sealed: bool) -> bytes:
    """A file of this content; sealed: with checksums that fit, where there are some."""
    header, meta = dict(header), header.get(META)
    if isinstance(meta, dict):
        meta = dict(meta)
        if sealed and isinstance(meta.get(CRC32), dict):
            meta[CRC32] = meta[CRC32] | _crcs(header, data)
        meta |= {name: json.dumps(meta[name]) for name in TREES if name in meta}
        header[META] = meta
        if sealed:
            meta.pop(SHA256, None)
            meta[SHA256] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % LENGTH)
    return len(said).to_bytes(LENGTH, "little") + said + data


def _crcs(header: dict[str, Any], data: bytes) -> dict[str, str]:
    """Of the tensors whose places make sense."""
    crcs = {}
    for name, said in header.items():
        offsets = said.get("data_offsets") if isinstance(said, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(x) is int for x in offsets):
            raw = data[max(0, offsets[0]) : max(0, offsets[1])]
            blocks = range(0, len(raw), BLOCK)
            crcs[name] = "".join(f"{zlib.crc32(raw[at : at + BLOCK]):08x}" for at in blocks)
    return crcs


@st.composite
def altered(draw: Draw, content: bytes, sealed: bool) -> tuple[bytes, str]:
    """A file with one to three things changed, and what was changed in words."""
    header, data = taken_apart(content)
    said = []
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from([_word, _word, _word, _bits, _swap, _resize, _longer]))
        said.append(change(draw, header, data))
    made = put_together(header, bytes(data), sealed)
    if draw(st.integers(0, 9)) == 0:
        length = draw(st.integers(0, len(made)))
        made, said = made[:length], [*said, f"cut at {length}"]
    return made, "; ".join(said)


def _word(draw: Draw, header: dict[str, Any], data: bytearray) -> str:
    found = list(places(header))
    return change_place(draw, *draw(st.sampled_from(found))) if found else "nothing"


def _bits(draw: Draw, header: dict[str, Any], data: bytearray) -> str:
    if not data:
        return "nothing"
    at, bits = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 255))
    n = draw(st.sampled_from([1, 1, 8]))
    for i in range(at, min(at + n, len(data))):
        data[i] ^= bits
    return f"{n} bytes at {at} ^ {bits}"


def _tensors(header: dict[str, Any]) -> list[str]:
    return sorted(name for name, said in header.items() if name != META and isinstance(said, dict))


def _swap(draw: Draw, header: dict[str, Any], data: bytearray) -> str:
    """Two tensors by each other's name, whole or by one of their words."""
    names = _tensors(header)
    if len(names) < 2:
        return "nothing"
    one, two = draw(st.lists(st.sampled_from(names), min_size=2, max_size=2, unique=True))
    word = draw(st.sampled_from([None, "data_offsets", "shape", "dtype"]))
    if word is None:
        header[one], header[two] = header[two], header[one]
    else:
        a, b = header[one].get(word), header[two].get(word)
        header[one], header[two] = header[one] | {word: b}, header[two] | {word: a}
    return f"{word} of {one} and {two}"


def _resize(draw: Draw, header: dict[str, Any], data: bytearray) -> str:
    """Other sizes for as many numbers, or a dtype as wide."""
    names = _tensors(header)
    name = draw(st.sampled_from(names)) if names else None
    shape = header[name].get("shape") if name else None
    if not isinstance(shape, list) or not shape:
        return "nothing"
    kind = draw(st.sampled_from(["turned", "flat", "more", "dtype"]))
    dtypes = {"F16": "BF16", "BF16": "F16", "F32": "I32", "BOOL": "U8", "U8": "BOOL", "I64": "F64"}
    if kind == "dtype" and isinstance(header[name].get("dtype"), str):
        dtype = header[name]["dtype"]
        header[name] = header[name] | {"dtype": dtypes.get(dtype, "F16")}
    else:
        sizes = {"turned": shape[::-1], "flat": [1, *shape], "more": [*shape, 1]}
        header[name] = header[name] | {"shape": sizes.get(kind, shape)}
    return f"{name} {kind}"


def _longer(draw: Draw, header: dict[str, Any], data: bytearray) -> str:
    """A tensor more, with its bytes at the end."""
    header["more"] = {"dtype": "U8", "shape": [3], "data_offsets": [len(data), len(data) + 3]}
    data += b"\1\2\3"
    return "more"


@st.composite
def altered_bytes(draw: Draw, content: bytes) -> bytes:
    """A file of numbers alone: cut, lengthened, or with other bytes."""
    kind = draw(st.sampled_from(["cut", "more", "bits"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "more":
        return content + draw(st.binary(max_size=64))
    data = bytearray(content)
    _bits(draw, {}, data)
    return bytes(data)
