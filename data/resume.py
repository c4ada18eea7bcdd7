"""Going on from a restored cache: what `model.generate` takes, and plain greedy continuation."""

from collections.abc import Iterator, Mapping

import torch

from config import UsageError
from data.cache import KVCache, Past
from data.forward import forward
from data.loaded_model import LoadedModel
from data.own_cache import OwnCache
from data.texts import printable


def as_past(
    loaded: LoadedModel,
    cache: KVCache,
    states: Mapping[str, torch.Tensor] | None = None,
    own: OwnCache | None = None,
) -> Past:
    """The model's own kind of cache with this content, for `past_key_values`.

    states: what the model keeps beside keys and values, as `own_cache.states_of` takes it out of a
    cache object. own: what the model itself keeps of as many tokens, where that is known already.

    Raises UsageError for a cache with evicted entries, which a model cannot be told of, and for
    states that are not given.
    """
    if any(layer.keep is not None for layer in cache.layers):
        raise UsageError("A cache with evicted entries cannot be generated from", "keep all tokens")
    own = own or OwnCache.of(loaded, cache.n_tokens, int(cache.token_ids[-1]))
    if not own.fit(states or {}):
        raise UsageError(
            f"{loaded.name} keeps more than keys and values (a state, or keys of an index), and "
            "the `states` that were given are not these",
            "give those of its own cache, data.own_cache.states_of",
        )
    return own.filled(cache, states or {})


def side_by_side(
    loaded: LoadedModel, full: list[int], other: list[int], name: str
) -> list[tuple[str, str]]:
    """Two continuations with what they came from; the first token that differs is marked."""
    same = next((i for i, (a, b) in enumerate(zip(full, other, strict=True)) if a != b), len(full))
    ends = "the same throughout" if same == len(full) else f"differs at token {same + 1}, after >>"

    def text(ids: list[int]) -> str:
        parts = [loaded.tokenizer.decode(part) for part in (ids[:same], ids[same:])]
        return printable(parts[0] + (" >> " + parts[1] if parts[1] else ""))

    return [("From the untouched cache", text(full)), (f"From {name}, {ends}", text(other))]


def greedy(loaded: LoadedModel, past: Past, n_past: int, token: int, n_tokens: int) -> list[int]:
    """The `n_tokens` most likely tokens after `token`, which follows the `n_past` in `past`."""
    return list(likeliest_after(loaded, past, n_past, torch.tensor([token]), n_tokens))


@torch.no_grad()
def likeliest_after(
    loaded: LoadedModel, past: Past, n_past: int, fed: torch.Tensor, n_tokens: int
) -> Iterator[int]:
    """The most likely tokens after (tokens,) token ids `fed` that follow the `n_past` in `past`,
    each by all before it."""
    loaded.refuse_unknown(fed)
    for _ in range(n_tokens):
        token = loaded.likeliest(forward(loaded, fed, past, n_past, last_only=True).logits)[0]
        n_past += len(fed)
        fed = token
        yield int(token)
