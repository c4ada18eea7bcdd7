"""Evicted entries hidden from the index of sparse attention.

In DeepSeek-V3.2 (arXiv 2512.02556) and models after it a small index chooses the few tokens that
each query attends to, by keys of its own. A token that was evicted must not take one of those
places, so the index is given a mask in which it is not seen.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch

from config import UsageError
from data.cache import LayerKV
from data.loaded_model import LoadedModel

MASK = "attention_mask"  # of an index, by name: (..., queries, keys), as for attention


@contextmanager
def hidden_from_index(loaded: LoadedModel, evicted: Mapping[int, LayerKV]) -> Iterator[None]:
    """While entered, no index of the model chooses a token that every layer and head that goes by
    it has evicted. One that some of them keep still takes a place for all of them, as it would
    where the model is served. evicted: layer index -> a layer some of which was evicted."""
    with ExitStack() as entered:
        for index, layers in _indexes(loaded.model):
            gone = [evicted[layer] for layer in layers if layer in evicted]
            if gone and MASK not in inspect.signature(index.forward).parameters:
                raise UsageError(
                    f"{loaded.name} chooses the tokens that it attends to by an index from which "
                    "evicted ones cannot be hidden, so what evicting them costs cannot be measured",
                    "choose a method that keeps all tokens and heads",
                )
            if len(gone) == len(layers):
                kept = torch.stack([_kept(layer) for layer in gone]).any(0)
                hook = index.register_forward_pre_hook(partial(_masked, ~kept), with_kwargs=True)
                entered.callback(hook.remove)
        yield


def _kept(layer: LayerKV) -> torch.Tensor:
    """(tokens,): whether any head keeps a token."""
    everything = torch.ones(layer.n_tokens, dtype=torch.bool)
    return everything if layer.keep is None else layer.keep.any(0).cpu()


def _masked(
    hidden: torch.Tensor,
    index: torch.nn.Module,
    given: tuple[object, ...],
    named: dict[str, object],
) -> tuple[tuple[object, ...], dict[str, object]]:
    """What an index is given, its mask without the `hidden` (tokens,) of the cached ones, which
    are the first keys."""
    bound = inspect.signature(index.forward).bind(*given, **named)
    mask: torch.Tensor = bound.arguments[MASK]
    new = mask.shape[-1] - len(hidden)
    columns = torch.nn.functional.pad(hidden, (0, new)).to(mask.device)
    unseen = False if mask.dtype == torch.bool else -torch.inf
    bound.arguments[MASK] = mask.masked_fill(columns, unseen)
    return bound.args, bound.kwargs


def goes_by_index(attention: torch.nn.Module) -> bool:
    """Whether an attention module sees only what an index has chosen, its own or another's."""
    return isinstance(getattr(attention, "indexer", None), torch.nn.Module) or _shares(attention)


def _indexes(model: torch.nn.Module) -> list[tuple[torch.nn.Module, list[int]]]:
    """The indexes of a model, each with the layers that go by it: its own, and those after it that
    share it."""
    found: list[tuple[torch.nn.Module, list[int]]] = []
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if layer is None or not goes_by_index(module):
            continue
        if not _shares(module):
            found.append((cast(torch.nn.Module, module.indexer), [layer]))
        elif found:
            found[-1][1].append(layer)
    return found


def _shares(attention: torch.nn.Module) -> bool:
    kinds: list[str] | None = getattr(getattr(attention, "config", None), "indexer_types", None)
    layer: int | None = getattr(attention, "layer_idx", None)
    if kinds is None or layer is None or not hasattr(attention, "indexer"):
        return False
    return kinds[layer] == "shared"
