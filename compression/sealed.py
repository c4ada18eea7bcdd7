"""Tensors and words in a file that vouches for them: safetensors, and in its header a checksum over
every byte of both. Compressed texts, calibrations and rows are kept so. The checksum finds damage;
whoever means harm can compute it, so what is read is held against what it should be all the same.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compression.stored import Tensors, digest, nbytes
from data.writing import whole_or_nothing

CHECKSUM = "sha256"
# In the order in which safetensors lays tensors out, by what it calls them
_CALLED = {
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_LAID_OUT = tuple(_CALLED)
LARGEST_SIZE = 2**40  # of a mode: torch cannot hold all that a header may claim of an empty tensor


def write(file: Path, tensors: Tensors, header: dict[str, str]) -> None:
    """Write both, all or nothing; raises OSError where that cannot be."""
    if CHECKSUM in header:
        raise ValueError(f"{CHECKSUM} is a name of the seal itself")
    sealed = header | {CHECKSUM: _checksum(tensors, header)}
    try:
        with whole_or_nothing(file) as part:
            save_file(tensors, part, metadata=sealed)
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written ({error})") from error


def header_nbytes(tensors: Tensors, header: dict[str, str]) -> int:
    """Bytes of such a file that are not of its tensors, whose content is not looked at."""
    sealed = header | {CHECKSUM: "0" * hashlib.sha256().digest_size * 2}
    named: dict[str, object] = {"__metadata__": sealed}
    end = 0
    for name in sorted(tensors, key=lambda name: (_LAID_OUT.index(tensors[name].dtype), name)):
        start, end = end, end + nbytes({name: tensors[name]})
        kind, sizes = _CALLED[tensors[name].dtype], list(tensors[name].shape)
        named[name] = {"dtype": kind, "shape": sizes, "data_offsets": [start, end]}
    words = json.dumps(named, ensure_ascii=False, separators=(",", ":")).encode()
    return 8 + len(words) + -len(words) % 8


def read(file: Path) -> tuple[Tensors, dict[str, str]]:
    """What `write` was given; raises OSError for a file that cannot be read and ValueError, with
    the reason, for one that is damaged or was not written so."""
    if file.exists() and not file.is_file():  # reading from a pipe would wait for its writer
        raise OSError(f"{file} is no regular file")
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            names = list(opened.keys())
            for name in names:
                _refuse_sizes(opened.get_slice(name).get_shape())
            tensors = {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if header.pop(CHECKSUM, None) != _checksum(tensors, header):
        raise ValueError("its checksum does not fit")
    return tensors, header


def _refuse_sizes(sizes: list[int]) -> None:
    if any(size > LARGEST_SIZE for size in sizes):
        raise ValueError(f"a tensor of it claims a size of {max(sizes)}")


def _checksum(tensors: Tensors, header: dict[str, str]) -> str:
    return hashlib.sha256(
        (digest(tensors) + json.dumps(header, sort_keys=True)).encode()
    ).hexdigest()
