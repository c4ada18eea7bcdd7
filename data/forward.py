"""The one way to run a model: where its tokens stand in the text is always said.

Left to themselves some models count from 0 on every call, whatever their cache holds (Bamba), and
go on from the wrong place in silence. Others forget a part of their cache when they are given
several tokens on top of it (the state of Jamba and Zamba, MiniMax the order of the tokens): those
that the self-test finds out are given one after the other.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, get_args
from weakref import WeakSet

import torch

from data.cache import Past
from data.loaded_model import LoadedModel

one_by_one: WeakSet[torch.nn.Module] = WeakSet()  # models that are right in no other way


class Output(Protocol):
    """Of a model that keeps keys and values; others have no `past_key_values`."""

    @property
    def logits(self) -> torch.Tensor: ...

    @property
    def past_key_values(self) -> Past: ...


@dataclass(frozen=True)
class _Steps:
    """What the outputs of single tokens come to."""

    logits: torch.Tensor
    past_key_values: Past


def forward(
    loaded: LoadedModel,
    token_ids: torch.Tensor,
    past: Past | None = None,
    n_past: int = 0,
    last_only: bool = False,
) -> Output:
    """The model's output for (tokens,) token ids that follow the `n_past` tokens in `past`.

    last_only: logits of the last position alone, which for a long text are smaller than the cache
    by far where all of them would be larger.
    """
    positions = torch.arange(n_past, n_past + len(token_ids))
    if past is not None and len(token_ids) > 1 and loaded.model in one_by_one:
        steps = [
            forward_at(loaded, token[None], position[None], past, last_only)
            for token, position in zip(token_ids.split(1), positions.split(1), strict=True)
        ]
        kept = steps[-1:] if last_only else steps
        return _Steps(torch.cat([step.logits for step in kept], dim=1), past)
    return forward_at(loaded, token_ids[None], positions[None], past, last_only)


def forward_at(
    loaded: LoadedModel,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    past: Past | None = None,
    last_only: bool = False,
) -> Output:
    """The same for (texts, tokens) token ids at these positions, in as far as it is told them."""
    told: dict[str, object] = {"past_key_values": past, "use_cache": True}
    accepted = parameters(loaded)
    places = positions.to(loaded.device)
    if "position_ids" in accepted:
        told["position_ids"] = places
    if "cache_position" in accepted:
        told["cache_position"] = places[0]
    if last_only and "logits_to_keep" in accepted:
        told["logits_to_keep"] = _last_place(accepted["logits_to_keep"], places)
    output: Output = loaded.model(token_ids.to(loaded.device), **told)
    return output


def _last_place(kept: inspect.Parameter, places: torch.Tensor) -> torch.Tensor | int:
    """What keeps the logits of the last position: its place, where the model takes one. Given their
    number, models whose last layers have no cache of their own run these on that position alone,
    and nothing is seen of the attention of others."""
    if torch.Tensor in get_args(kept.annotation):
        return torch.tensor([places.shape[1] - 1], device=places.device)
    return 1


def parameters(loaded: LoadedModel) -> Mapping[str, inspect.Parameter]:
    """What the model's `forward` can be given, by name."""
    return inspect.signature(loaded.model.forward).parameters


def some_token_ids(loaded: LoadedModel, n_tokens: int) -> torch.Tensor:
    """(n_tokens,) ids, the same each time, from where vocabularies have common parts of words:
    special tokens stand at their ends."""
    size = loaded.vocabulary or 1  # an id that every model has
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size // 4, max(1, 3 * size // 4), (n_tokens,), generator=generator)
