"""What the model makes of a cache: its predictions of the text that follows, teacher-forced."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from config import UsageError
from data.attention import AttentionCall, Output, wrapped_attention
from data.cache import KVCache, LayerKV, Past
from data.forward import forward
from data.loaded_model import LoadedModel
from data.resume import greedy, likeliest_after
from data.sparse_index import hidden_from_index


@dataclass(frozen=True)
class Continuation:
    """Scores the text after a cached context, on top of any restored form of that context.

    past: the model's own cache object after the context; it is copied, never written to.
    token_ids: (scored + 1,) the tokens after the context. The first is fed, not scored, so that
        even the first scored token is predicted by a query that sees the restored cache.
    """

    loaded: LoadedModel
    past: Past
    token_ids: torch.Tensor

    @property
    def n_scored(self) -> int:
        return len(self.token_ids) - 1

    @torch.no_grad()
    def log_probabilities(self, cache: KVCache) -> torch.Tensor:
        """(scored, vocabulary) natural logarithms, one forward pass on top of `cache`.

        Evicted entries keep their place, so that tokens stand at their original positions, but
        are invisible to every query; new tokens see each other.
        """
        past = filled(self.past, cache, self.loaded.torch_dtype)
        with _evicted_hidden(self.loaded, cache, past):
            output = forward(self.loaded, self.token_ids[:-1], past, cache.n_tokens)
        logits = output.logits[0]
        return torch.log_softmax(logits.float(), dim=-1)

    @torch.no_grad()
    def greedy(self, cache: KVCache, n_tokens: int) -> list[int]:
        """The most likely `n_tokens` after the context and the first token that follows it."""
        past = filled(self.past, cache, self.loaded.torch_dtype)
        with _evicted_hidden(self.loaded, cache, past):
            return greedy(self.loaded, past, cache.n_tokens, int(self.token_ids[0]), n_tokens)

    @torch.no_grad()
    def said(
        self, cache: KVCache, n_tokens: int, is_enough: Callable[[list[int]], bool] | None = None
    ) -> list[int]:
        """The most likely `n_tokens` after all of `token_ids`, which are fed on top of `cache`;
        fewer where those so far are enough."""
        past = filled(self.past, cache, self.loaded.torch_dtype)
        tokens: list[int] = []
        with _evicted_hidden(self.loaded, cache, past):
            each = likeliest_after(self.loaded, past, cache.n_tokens, self.token_ids, n_tokens)
            for token in each:
                tokens.append(token)
                if is_enough is not None and is_enough(tokens):
                    break
        return tokens

    def nats(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """(scored,) nats that the true next tokens cost."""
        targets = self.token_ids[1:].to(log_probabilities.device)
        return -log_probabilities.gather(1, targets[:, None])[:, 0]


def filled(past: Past, cache: KVCache, dtype: torch.dtype) -> Past:
    """A copy of the model's cache object with the keys and values of `cache` in place of its own;
    whatever else it holds (states of linear attention, window counters) is copied."""
    tensors = [x for layer in cache.layers for x in vars(past.layers[layer.index]).values()]
    stored = {id(x): x for x in tensors if isinstance(x, torch.Tensor) and x.ndim == 4}
    replaced = copy.deepcopy(past, memo=stored)  # not the keys and values: they are replaced
    for layer in cache.layers:
        held = replaced.layers[layer.index]
        device = held.keys.device
        held.keys = layer.keys[None].to(device, dtype)
        held.values = layer.values[None].to(device, dtype)
    return replaced


@contextmanager
def _evicted_hidden(loaded: LoadedModel, cache: KVCache, past: Past) -> Iterator[None]:
    """While entered, no query of the model, run on top of `past`, which holds `cache`, sees an
    entry that was evicted."""
    layers: dict[int | None, LayerKV] = {
        layer.index: layer for layer in cache.layers if layer.keep is not None
    }
    reached = set()

    def hidden(call: AttentionCall) -> Output:
        layer = layers.get(call.slot)
        if layer is None:
            return call.run()
        reached.add(layer.index)
        n_new = past.layers[layer.index].get_seq_length() - cache.n_tokens
        if call.key.shape[-2] > layer.n_tokens + n_new:
            raise _attends_to_more(loaded, layer)
        return replace(call, mask=_with_evictions(call, layer, n_new)).run()

    if not layers:
        yield
        return
    evicted = {layer.index: layer for layer in layers.values()}
    with wrapped_attention(loaded.model, hidden), hidden_from_index(loaded, evicted):
        yield
    if reached != set(layers):
        raise UsageError(
            f"{loaded.name} does not let entries of its cache be hidden, so what evicting them "
            "costs cannot be measured",
            "choose a method that keeps all tokens and heads",
        )


def _attends_to_more(loaded: LoadedModel, layer: LayerKV) -> UsageError:
    return UsageError(
        f"Layer {layer.index} of {loaded.name} attends to other entries beside those of its "
        "tokens, in which what is evicted would still be seen, so what that costs cannot be "
        "measured",
        "choose a method that keeps all tokens and heads",
    )


def _with_evictions(call: AttentionCall, layer: LayerKV, n_new: int) -> torch.Tensor:
    """The call's mask (1, 1 or heads, queries, keys) with the layer's evicted entries hidden: the
    first keys are those of its tokens that a window has not forgotten, the last `n_new` are of
    later tokens."""
    query, mask = call.query, call.mask
    n_queries, n_keys = query.shape[-2], call.key.shape[-2]
    kept = torch.ones(layer.n_heads, n_keys, dtype=torch.bool, device=query.device)
    n_held = min(layer.n_tokens, n_keys - n_new)
    if layer.keep is not None and n_held > 0:
        kept[:, :n_held] = layer.keep[:, -n_held:]
    kept = kept.repeat_interleave(query.shape[1] // layer.n_heads, dim=0)[None, :, None]
    if mask is None:  # plain causal attention, the last query at the last key
        causal = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device)
        mask = causal.tril(n_keys - n_queries)[None, None]
    if mask.dtype == torch.bool:
        visible = mask & kept
    else:
        return mask.masked_fill(~kept, torch.finfo(mask.dtype).min)
    if call.name == "eager":  # which adds its mask
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        return zero.masked_fill(~visible, torch.finfo(query.dtype).min)
    return visible
