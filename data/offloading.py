"""Keys and values kept in host memory or on disk from the moment they are made.

Layers of the model's cache object that grow with the text are told to keep what they hold elsewhere
than where the model runs: what attention needs is brought back one layer at a time. Layers of a
window, and states, are bounded and stay. On disk means files without a name in the temporary
folder, mapped into memory: the system reads what is touched and drops it again, and the files are
gone with the process, however it ends.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import IO, Any, cast
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import Cache, DynamicLayer

from config import UsageError
from data.memory import is_lack

ZEROS = bytes(2**20)  # written where a system cannot reserve room on a disk

Shape = tuple[int, ...]


@dataclass
class _Rooms:
    """Where a layer's keys and values stand, with room for `capacity` tokens; views of what they
    hold stay valid as more is written behind it."""

    capacity: int
    made: dict[str, torch.Tensor] = field(default_factory=dict)


# Beside the layers, so that a copy of one has none and can never write into another's.
_rooms: WeakKeyDictionary[Any, _Rooms] = WeakKeyDictionary()


@contextmanager
def offloaded(where: str, n_tokens: int) -> Iterator[None]:
    """While entered, every cache that is begun keeps its growing layers in host "memory" or on
    "disk", with room for a text of `n_tokens`."""
    update = Cache.update

    def begun(past: Cache, keys: Any, values: Any, slot: int, *args: Any, **named: Any) -> Any:
        while past.layer_class_to_replicate is not None and len(past.layers) <= slot:
            past.layers.append(past.layer_class_to_replicate())
        layer = past.layers[slot]
        if type(layer).update is DynamicLayer.update and not _holds(layer):
            layer.__class__ = _offloading(layer.__class__)
            layer.kept_in = where
            _rooms[layer] = _Rooms(n_tokens)
        return update(past, keys, values, slot, *args, **named)

    Cache.update = begun
    try:
        yield
    finally:
        Cache.update = update


def _holds(layer: DynamicLayer) -> bool:
    return layer.keys is not None and layer.keys.numel() > 0


@cache
def _offloading(kind: Any) -> Any:
    """The same class of layers, whatever else they hold, that keep keys and values elsewhere."""
    return type(f"Offloading{kind.__name__}", (kind,), {"_layer_type": None, "update": _update})


def _update(
    layer: Any, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **named: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all tokens, where the new ones are."""
    if not layer.is_initialized:
        layer.lazy_initialization(key_states, value_states)
    device = key_states.device
    tensors = (layer.keys, layer.values, key_states, value_states)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        # What is written into a room has no gradient.
        layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
        both = DynamicLayer.update(layer, key_states, value_states, *args, **named)
        return cast(tuple[torch.Tensor, torch.Tensor], both)
    layer.keys = _grown(layer, "keys", key_states)
    layer.values = _grown(layer, "values", value_states)
    return layer.keys.to(device), layer.values.to(device)


def _grown(layer: Any, name: str, states: torch.Tensor) -> torch.Tensor:
    """(1, kv_heads, tokens, dim) with new states at the end, which are written in place where there
    is room."""
    held: torch.Tensor = getattr(layer, name)
    start = held.shape[-2] if held.numel() else 0
    end = start + states.shape[-2]
    rooms = _rooms.setdefault(layer, _Rooms(0))
    room = rooms.made.get(name)
    is_own = room is not None and (start == 0 or held.data_ptr() == room.data_ptr())
    if room is None or not is_own or end > room.shape[-2]:
        n_tokens = max(end, rooms.capacity) if start == 0 else end + end // 8 + 64
        shape = (*states.shape[:-2], n_tokens, states.shape[-1])
        room = _room(layer.kept_in, shape, states.dtype)
        if start:
            room[..., :start, :] = held
        rooms.made[name] = room
    room[..., start:end, :] = states
    return room[..., :end, :]


def _room(where: str, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    return _mapped(shape, dtype) if where == "disk" else torch.empty(shape, dtype=dtype)


def _mapped(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in a file that has no name and is gone with it."""
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    try:
        with tempfile.TemporaryFile() as file:
            _reserve(file, nbytes)
            memory = mmap.mmap(file.fileno(), nbytes)  # which keeps the file
    except OSError as error:
        if is_lack(error):
            raise
        raise UsageError(
            f"A part of the cache, {nbytes / 2**20:.1f} MiB, cannot be kept in the temporary "
            f"folder ({error.strerror or error})",
            "let the environment variable TMPDIR name a folder on a disk with room, or read fewer "
            "tokens",
        ) from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _reserve(file: IO[bytes], nbytes: int) -> None:
    """Take the room on the disk now: a mapped file that finds none later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, nbytes)
        return
    for start in range(0, nbytes, len(ZEROS)):
        file.write(ZEROS[: nbytes - start])
    file.flush()
