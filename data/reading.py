"""A text fed to the model: at once, or some tokens at a time on top of what is cached by then.

Chunks bound what a long text takes beside its cache: hidden states and masks are of a chunk, not of
the text. Keys, values and states come out as those of one pass, up to rounding.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from tqdm import tqdm

from config import UsageError
from data.cache import Past
from data.forward import Output, forward, one_by_one
from data.loaded_model import LoadedModel
from data.offloading import offloaded
from data.probe import AttentionProbe
from data.refusals import said, strangers_code
from data.rotations import is_stored
from data.self_test import refuse_wrong_cache

log = logging.getLogger(__name__)

POSITIONS = "position_ids"  # of a rotary module, by name: (..., tokens)


def read(
    loaded: LoadedModel, token_ids: torch.Tensor, probe: AttentionProbe | None = None
) -> tuple[Past, torch.Tensor]:
    """The model's cache object after (tokens,) token ids, and (1, n, vocabulary) logits of which
    the last are of the last token. Nothing goes on from a cache before the self-test has passed.

    probe: sees every pass over the text, and no others.
    """
    n_tokens = len(token_ids)
    first, *others = token_ids.split(loaded.chunk_for(n_tokens) or n_tokens)
    output = _passed(loaded, first, n_tokens, probe)
    past, n_past = _own_cache(output, loaded), len(first)
    refuse_wrong_cache(loaded)
    if others:
        for chunk in tqdm(_bearable(loaded, others), desc="Read", unit="chunk", leave=False):
            output = _passed(loaded, chunk, n_tokens, probe, past, n_past)
            n_past += len(chunk)
    return past, output.logits


def step(loaded: LoadedModel, token_ids: torch.Tensor, past: Past | None, n_past: int) -> Output:
    """One pass over token ids on top of `past`, with the logits of the last alone."""
    with strangers_code(partial(_not_run, loaded)):
        return forward(loaded, token_ids, past, n_past, last_only=True)


def _passed(
    loaded: LoadedModel,
    token_ids: torch.Tensor,
    n_tokens: int,
    probe: AttentionProbe | None,
    past: Past | None = None,
    n_past: int = 0,
) -> Output:
    with ExitStack() as entered:
        if n_tokens > len(token_ids):
            entered.enter_context(_rotated_as_at_once(loaded.model, n_tokens))
        if loaded.cache_offload != "none":
            entered.enter_context(offloaded(loaded.cache_offload, n_tokens))
        if probe is not None:
            entered.enter_context(probe.watching(loaded.model, n_past + len(token_ids)))
        return step(loaded, token_ids, past, n_past)


def _bearable(loaded: LoadedModel, chunks: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same tokens one by one where a model is right in no other way."""
    if loaded.model not in one_by_one:
        return chunks
    log.warning(
        "%s is right on top of its cache only if it is given one token after the other: what "
        "follows the first `prefill_chunk` is read so, which takes long.",
        loaded.name,
    )
    return list(torch.cat(chunks).split(1))


@contextmanager
def _rotated_as_at_once(model: torch.nn.Module, n_tokens: int) -> Iterator[None]:
    """While entered, rotary modules whose frequencies follow from the length of a text take them
    for `n_tokens`, whatever part of it they are given."""
    with ExitStack() as entered:
        for module in model.modules():
            if _depends_on_length(module):
                before = partial(_with_last, n_tokens - 1)
                hooks = (
                    module.register_forward_pre_hook(before, with_kwargs=True),
                    module.register_forward_hook(_without_last),
                )
                for hook in hooks:
                    entered.callback(hook.remove)
        yield


def _depends_on_length(module: torch.nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)  # one, or one for each type of layer
    several = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(k, str) and ("dynamic" in k or k == "longrope") for k in several)


def _with_last(
    last: int, module: torch.nn.Module, given: tuple[object, ...], named: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """What a rotary module is given, the last position of the text after the positions."""
    bound = inspect.signature(module.forward).bind(*given, **named)
    places: torch.Tensor = bound.arguments[POSITIONS]
    end = torch.full_like(places[..., :1], last)
    bound.arguments[POSITIONS] = torch.cat([places, end], dim=-1)
    return bound.args, bound.kwargs


def _without_last(
    module: torch.nn.Module, given: tuple[object, ...], tables: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Tables (texts, tokens, dim) without those of the position that was added."""
    return tuple(table[:, :-1] for table in tables)


def _not_run(loaded: LoadedModel, error: Exception) -> UsageError:
    if "only contain LinearAttention layers" in str(error):  # of transformers' own cache
        return _no_keys_and_values(loaded)
    return UsageError(
        f"{loaded.name} cannot be run ({said(error)})",
        "its settings and weights do not fit each other, or this version of transformers",
    )


def _own_cache(output: Output, loaded: LoadedModel) -> Past:
    past: Past | None = getattr(output, "past_key_values", None)
    if past is None or not any(is_stored(layer) for layer in getattr(past, "layers", ())):
        raise _no_keys_and_values(loaded)
    return past


def _no_keys_and_values(loaded: LoadedModel) -> UsageError:
    return UsageError(
        f"{loaded.name} keeps no keys and values that could be analysed (its layers hold a "
        "fixed-size state, as state-space, recurrent and linear-attention ones, or no cache at "
        "all)",
        "give a model that attends to its past",
    )
