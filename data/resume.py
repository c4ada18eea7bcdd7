"""Going on from a restored cache: what `model.generate` takes, and plain greedy continuation."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from config import UsageError
from data import extraction
from data.cache import KVCache, Past
from data.forward import forward
from data.models import LoadedModel
from data.texts import printable


def as_past(loaded: LoadedModel, cache: KVCache) -> DynamicCache:
    """The model's own kind of cache with this content, for `past_key_values`.

    Raises UsageError for a cache with evicted entries, which a model cannot be told of, and for
    models that keep states beside keys and values, which a KVCache does not hold.
    """
    if any(layer.keep is not None for layer in cache.layers):
        raise UsageError("A cache with evicted entries cannot be generated from", "keep all tokens")
    refuse_states(loaded)
    past = _empty(loaded)
    for layer in sorted(cache.layers, key=lambda layer: layer.index):
        index = layer.index
        both = (x[None].to(loaded.device, loaded.torch_dtype) for x in (layer.keys, layer.values))
        past.update(*both, index)
        if hasattr(past.layers[index], "cumulative_length"):  # of a window that has forgotten some
            past.layers[index].cumulative_length = cache.n_tokens
    return past


def _empty(loaded: LoadedModel) -> DynamicCache:
    return DynamicCache(config=loaded.settings)


def refuse_states(loaded: LoadedModel) -> None:
    """Raise UsageError for a model that keeps states beside keys and values."""
    if not all(map(_without_state, _empty(loaded).layers)):
        raise UsageError(
            f"{loaded.name} keeps more than keys and values (a state, or keys of an index), which "
            "is not stored",
            "give a model whose layers keep keys and values alone",
        )


def _without_state(layer: object) -> bool:
    """Whether a layer of the model's cache holds keys and values alone, or nothing of its own, as
    one that reads another's. Subclasses hold more: states, keys of an index."""
    nothing = {"keys", "values", "is_initialized"}
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) or vars(layer).keys() <= nothing


def own_sizes(
    loaded: LoadedModel, n_tokens: int, token: int
) -> list[tuple[int, str, int, int, int, int]]:
    """(index, kind, heads, tokens, key_dim, value_dim) of each layer that the model caches of so
    many tokens, as one pass over one token tells."""
    own = extraction.prefill(loaded, torch.tensor([token]))
    sizes = []
    for x in own.cache.layers:
        window = getattr(own.past.layers[x.index], "sliding_window", None)
        held = n_tokens if window is None else min(n_tokens, window - 1)
        sizes.append((x.index, x.kind, x.n_heads, held, x.keys.shape[2], x.values.shape[2]))
    return sizes


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


@torch.no_grad()
def greedy(loaded: LoadedModel, past: Past, n_past: int, token: int, n_tokens: int) -> list[int]:
    """The `n_tokens` most likely tokens after `token`, which follows the `n_past` in `past`."""
    fed = torch.tensor([token])
    loaded.refuse_unknown(fed)
    continued = []
    for i in range(n_tokens):
        fed = loaded.likeliest(forward(loaded, fed, past, n_past + i).logits)[0]
        continued.append(int(fed))
    return continued
