"""What a file of a compressed cache holds: the contents of its tensors end to end, what they are,
the shape of the cache, and a header in words."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from compression import outlines, sealed
from compression.packed import CONTENT, INDEX, index, packed, unpacked
from compression.shapes import CacheShape
from compression.stored import Tensors, nbytes, refuse_left, taken

FORMAT = "compressed cache 6"


def header(
    method: str, settings: Mapping[str, Any], calibration: str | None, facts: Mapping[str, str]
) -> dict[str, str]:
    """calibration: the identity of what the method has learned, if it has."""
    said = {
        "format": FORMAT,
        "method": method,
        "settings": json.dumps(settings),
        "facts": json.dumps(facts),
    }
    return said if calibration is None else said | {"calibration": calibration}


def together(stored: Tensors, shape: CacheShape) -> Tensors:
    """What a file of both holds beside its header."""
    return packed(stored) | outlines.written(shape)


def apart(tensors: Tensors) -> tuple[Tensors, CacheShape]:
    """What `together` was given; raises ValueError for what it would not have given."""
    left = dict(tensors)
    shape = outlines.read(left)
    content, names = (taken(left, name, (torch.uint8,), None) for name in (CONTENT, INDEX))
    refuse_left(left)
    return unpacked(content, names), shape


def header_nbytes(stored: Tensors, shape: CacheShape, header: dict[str, str]) -> int:
    """What such a file takes beside the tensors, whose content is not looked at."""
    beside = outlines.written(shape) | {INDEX: index(stored)}
    content = torch.empty(nbytes(stored), dtype=torch.uint8, device="meta")
    return sealed.header_nbytes(beside | {CONTENT: content}, header) + nbytes(beside)
