"""A compressed cache in a file, laid open: what it stores by name, token ids and frequencies among
it, and its shape as JSON in the header, each layer described by itself. Whoever means harm changes
that, and seals it again."""

import json

import numpy as np
import torch

from compression import file_parts, sealed
from compression.outlines import FREQUENCIES, SHAPE, TOKEN_IDS
from compression.packed import deflated, inflated, packed
from compression.stored import raw

NUMBERS = {TOKEN_IDS: ("ids", "int32"), FREQUENCIES: ("frequencies", "float64")}


def opened(tensors, header):
    """Tensors and header of a file, laid open."""
    stored, shape = file_parts.apart(tensors)
    outline = json.loads(inflated(tensors[SHAPE], SHAPE))
    for name, (told, dtype) in NUMBERS.items():
        numbers = np.frombuffer(inflated(tensors[name], name), outline[told])
        stored[name] = torch.from_numpy(numbers.astype(dtype))
        outline[told] = dtype
    kinds = outline["alike"]
    outline["alike"] = [dict(kinds[kind]) for _, kind in outline["layers"]]
    outline["layers"] = [[layer.index, i] for i, layer in enumerate(shape.layers)]
    return stored, header | {SHAPE: json.dumps(outline)}


def closed(tensors, header):
    """Tensors and header of the file that was laid open so."""
    stored, said = dict(tensors), dict(header)
    beside = {name: stored.pop(name) for name in NUMBERS if name in stored}
    beside = {name: deflated(raw(x).numpy().tobytes()) for name, x in beside.items()}
    if SHAPE in said:
        beside[SHAPE] = deflated(said.pop(SHAPE).encode())
    return packed(stored) | beside, said


def read(file):
    return opened(*sealed.read(file))


def write(file, tensors, header):
    sealed.write(file, *closed(tensors, header))
