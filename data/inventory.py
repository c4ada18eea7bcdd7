"""Everything that a model's own cache object holds, each tensor counted once.

Keys and values are what this toolkit is about; beside them stand states of linear-attention and
state-space layers, keys of a sparse index, compressed entries and whatever else a layer may keep.
None of it is known by name here: the object is walked, so that what is new is found as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch

from data.cache import BYTES_PER_ENTRY, KINDS, KVCache, Past

STATE, COUNTER = "state", "counter"
ONE_THING = (torch.Tensor, torch.nn.Module, str, bytes, type, FunctionType, MethodType, ModuleType)


def leaves(x: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, what is there) of all that an object consists of: tensors, numbers, words. Paths are
    names of attributes, keys and places, as in `layers.3.recurrent_states.0`."""
    yield from _leaves(x, path, set())


def _leaves(x: object, path: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    """above: what `x` is part of, where it is not entered again."""
    parts = None if id(x) in above else parts_of(x)
    if parts is None:
        yield path, x
        return
    for name, part in parts.items():
        yield from _leaves(part, f"{path}.{name}" if path else str(name), above | {id(x)})


def parts_of(x: object) -> dict[Any, Any] | None:
    """What an object consists of, by attribute, key or place; None where it is one thing."""
    if isinstance(x, ONE_THING):
        return None
    if isinstance(x, Mapping):
        return dict(x)
    if isinstance(x, Sequence):
        return dict(enumerate(x))
    return vars(x) if hasattr(x, "__dict__") else None


@dataclass(frozen=True)
class Held:
    """One tensor of a cache object.

    path: see `leaves`. layer: the slot of the cache that it belongs to; None where it belongs to
        none. kind: "key" or "value" of those that are analysed, else "state", or "counter" for a
        single number. nbytes: as counted, see `Inventory`. same_as: the path under which the same
        memory is counted already.
    """

    path: str
    layer: int | None
    kind: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    same_as: str | None = None

    @property
    def name(self) -> str:
        """The attribute that holds it, as `recurrent_states`."""
        first, *more = self.path.split(".")
        return more[1] if first == "layers" else first


@dataclass(frozen=True)
class Inventory:
    """All tensors that a cache object holds after a prefill. Keys and values count with 16 bits an
    entry, as everywhere here; all else with the bytes that it really holds. A view of larger memory
    counts what it views.

    n_slots: layers of the cache, with and without keys and values.
    """

    held: tuple[Held, ...]
    n_slots: int

    @classmethod
    def of(cls, past: Past) -> "Inventory":
        held: list[Held] = []
        seen: dict[tuple[Any, ...], str] = {}
        for path, tensor in leaves(past):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
                held.append(_held(path, tensor, seen.get(memory)))
                seen.setdefault(memory, path)
        return cls(tuple(held), len(past.layers))

    @classmethod
    def of_cache(cls, cache: KVCache) -> "Inventory":
        """Of keys and values alone: all that is known where there is no cache object."""
        held = [
            _held(f"layers.{layer.index}.{kind}s", layer.tensor(kind), None)
            for layer in cache.layers
            for kind in KINDS
        ]
        return cls(tuple(held), cache.n_layers)

    def of_kind(self, *kinds: str) -> list[Held]:
        return [each for each in self.held if each.kind in kinds]

    @property
    def kv_nbytes(self) -> int:
        """Bytes of keys and values in 16 bits."""
        return sum(each.nbytes for each in self.of_kind(*KINDS))

    @property
    def state_nbytes(self) -> int:
        """Bytes of what is kept beside them and is not analysed."""
        return sum(each.nbytes for each in self.of_kind(STATE))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept; counters are no content."""
        return self.kv_nbytes + self.state_nbytes

    @property
    def layers(self) -> list[int]:
        """Those with keys and values."""
        return sorted({each.layer for each in self.of_kind(*KINDS) if each.layer is not None})

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        states: dict[str, int] = {}
        for each in self.of_kind(STATE):
            states[each.name] = states.get(each.name, 0) + each.nbytes
        return {
            "layers": self.n_slots,
            "layers_with_keys_and_values": self.layers,
            "keys_and_values_bytes_in_16_bits": self.kv_nbytes,
            "not_analysed_bytes_as_held": states,
            "all_kept_bytes": self.nbytes,
        }


def _held(path: str, tensor: torch.Tensor, same_as: str | None) -> Held:
    kind = kind_of(path) or (STATE if tensor.ndim else COUNTER)
    size = BYTES_PER_ENTRY if kind in KINDS else tensor.element_size()
    return Held(
        path,
        next((int(part) for part in path.split(".") if part.isdecimal()), None),
        kind,
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
        0 if same_as else size * tensor.numel(),
        same_as,
    )


def kind_of(path: str) -> str | None:
    """ "key" or "value" of what stands there; None of all else."""
    match path.split("."):
        case ["layers", _, "keys"]:
            return "key"
        case ["layers", _, "values"]:
            return "value"
    return None
