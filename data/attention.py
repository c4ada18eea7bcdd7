"""Standing behind the attention functions of a model while it runs.

transformers looks an attention function up for every layer and call, in a registry that each
model's file shares with others. For as long as a stand-in is there, every function that is looked
up comes wrapped; the models themselves are not changed.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch

Output = tuple[torch.Tensor, torch.Tensor | None]  # of attention: (1, queries, heads, dim), weights
Attend = Callable[..., Output]  # called with module, query, key, value, attention_mask, **kwargs


@dataclass(frozen=True)
class AttentionCall:
    """One call by `module` of a model's attention function `attend`, which was looked up as `name`.

    query: (1, heads, queries, dim); key, value: (1, key_heads, keys, dim), after rotary embedding;
    mask: (1, 1 or heads, queries, keys) or None for plain causal attention. options: what else the
    function is given, by name.
    """

    attend: Attend
    name: str
    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    options: dict[str, Any]

    @property
    def layer(self) -> int | None:
        """The layer of the model that calls, where it says so."""
        return getattr(self.module, "layer_idx", None)

    def run(self) -> Output:
        both = (self.query, self.key, self.value, self.mask)
        return self.attend(self.module, *both, **self.options)


StandIn = Callable[[AttentionCall], Output]


class _Registry(Protocol):
    """Where models look their attention functions up, by name and with a default."""

    get_interface: Callable[[str, Attend], Attend]


@contextmanager
def wrapped_attention(model: torch.nn.Module, stand_in: StandIn) -> Iterator[None]:
    """Give every call that a part of `model` makes of its attention function to `stand_in`, which
    returns what the function would. Models that do not use the registry never call it."""
    registries = {id(r): r for m in model.modules() if (r := _registry(m)) is not None}
    for registry in registries.values():
        registry.get_interface = partial(_look_up, registry.get_interface, stand_in)
    try:
        yield
    finally:
        for registry in registries.values():
            del registry.get_interface  # the class's own shows again


def _look_up(
    look_up: Callable[[str, Attend], Attend], stand_in: StandIn, name: str, default: Attend
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
        call = AttentionCall(attend, name, module, query, key, value, attention_mask, options)
        return stand_in(call)

    return called


def _registry(module: torch.nn.Module) -> _Registry | None:
    """The look-up of attention functions in the file that `module` was written in."""
    file = sys.modules.get(type(module).__module__)
    return cast(_Registry | None, getattr(file, "ALL_ATTENTION_FUNCTIONS", None))
