"""Standing behind the attention functions of a model while it runs.

transformers looks an attention function up for every layer and call, in a registry that each
model's file shares with others. For as long as a stand-in is there, every function that is looked
up comes wrapped; the models themselves are not changed.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from transformers.cache_utils import Cache

Output = tuple[torch.Tensor, torch.Tensor | None]  # of attention: (1, queries, heads, dim), weights
Attend = Callable[..., Output]  # called with module, query, key, value, attention_mask, **kwargs


@dataclass(frozen=True)
class AttentionCall:
    """One call by `module` of a model's attention function `attend`, which was looked up as `name`.

    query: (1, heads, queries, dim); key, value: (1, key_heads, keys, dim), after rotary embedding;
    mask: (1, 1 or heads, queries, keys) or None for plain causal attention. options: what else the
    function is given, by name. slot: where in the model's cache the keys stand, None where that
    was not seen. stored: (kv_heads, tokens) of what the cache gave of that slot.
    """

    attend: Attend
    name: str
    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    options: dict[str, Any]
    slot: int | None
    stored: tuple[int, int] | None = None

    def run(self) -> Output:
        both = (self.query, self.key, self.value, self.mask)
        return self.attend(self.module, *both, **self.options)


StandIn = Callable[[AttentionCall], Output]


@dataclass
class _Slots:
    """Where in the model's cache the keys of a call stand: what the cache has just returned is
    attended to, as it is (also by layers that read another's) or after more was made of it (from a
    latent)."""

    addresses: dict[int, tuple[torch.device, int]] = field(default_factory=dict)  # by slot
    stored: dict[int | None, tuple[int, int]] = field(default_factory=dict)
    latest: int | None = None
    caller: torch.nn.Module | None = None  # which attends to the latest, once one does

    def note(self, slot: int, keys: torch.Tensor) -> None:
        address = _address(keys)
        # What stood at the same address before is gone: memory is used again.
        self.addresses = {s: other for s, other in self.addresses.items() if other != address}
        self.addresses[slot] = address
        self.stored[slot] = (keys.shape[1], keys.shape[-2])
        self.latest, self.caller = slot, None

    def of(self, module: torch.nn.Module, keys: torch.Tensor) -> int | None:
        wanted = _address(keys)
        slot = next((s for s, address in self.addresses.items() if address == wanted), None)
        if self.caller is None and slot in (None, self.latest):
            self.caller = module
        return self.latest if slot is None and self.caller is module else slot


def _address(x: torch.Tensor) -> tuple[torch.device, int]:
    return x.device, x.data_ptr()


class _Registry(Protocol):
    """Where models look their attention functions up, by name and with a default."""

    get_interface: Callable[[str, Attend], Attend]


@contextmanager
def wrapped_attention(model: torch.nn.Module, stand_in: StandIn) -> Iterator[None]:
    """Give every call that a part of `model` makes of its attention function to `stand_in`, which
    returns what the function would. Models that do not use the registry never call it."""
    slots = _Slots()
    registries = {id(r): r for m in model.modules() if (r := _registry(m)) is not None}
    for registry in registries.values():
        registry.get_interface = partial(_look_up, registry.get_interface, stand_in, slots)
    try:
        with _noted_updates(slots):
            yield
    finally:
        for registry in registries.values():
            del registry.get_interface  # the class's own shows again


@contextmanager
def _noted_updates(slots: _Slots) -> Iterator[None]:
    """While entered, `slots` notes what any cache returns for attention."""
    update = Cache.update

    def noting(
        cache: Cache,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = update(cache, key_states, value_states, layer_idx, *args, **options)
        slots.note(layer_idx, keys)
        return keys, values

    Cache.update = noting
    try:
        yield
    finally:
        Cache.update = update


def _look_up(
    look_up: Callable[[str, Attend], Attend],
    stand_in: StandIn,
    slots: _Slots,
    name: str,
    default: Attend,
) -> Attend:
    attend = look_up(name, default)

    def called(  # as transformers calls it
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> Output:
        slot = slots.of(module, key)
        call = AttentionCall(attend, name, module, query, key, value, attention_mask, options, slot)
        return stand_in(replace(call, stored=slots.stored.get(slot)))

    return called


def _registry(module: torch.nn.Module) -> _Registry | None:
    """The look-up of attention functions in the file that `module` was written in."""
    file = sys.modules.get(type(module).__module__)
    return cast(_Registry | None, getattr(file, "ALL_ATTENTION_FUNCTIONS", None))
