"""What the model makes of a cache: its predictions of the text that follows, teacher-forced."""

import copy
import logging
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from config import RunConfig, UsageError
from data import texts
from data.attention import wrapped_attention
from data.cache import KVCache, LayerKV
from data.models import LoadedModel
from data.resume import greedy
from data.texts import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Continuation:
    """Scores the text after a cached context, on top of any restored form of that context.

    past: the model's own cache object after the context; it is copied, never written to.
    token_ids: (scored + 1,) the tokens after the context. The first is fed, not scored, so that
        even the first scored token is predicted by a query that sees the restored cache.
    """

    loaded: LoadedModel
    past: object
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
        model = self.loaded.model
        past = filled(self.past, cache, model.dtype)
        fed = self.token_ids[None, :-1].to(model.device)
        with _evicted_hidden(self.loaded, cache):
            logits = model(fed, past_key_values=past, use_cache=True).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)

    @torch.no_grad()
    def greedy(self, cache: KVCache, n_tokens: int) -> list[int]:
        """The most likely `n_tokens` after the context and the first token that follows it."""
        past = filled(self.past, cache, self.loaded.model.dtype)
        with _evicted_hidden(self.loaded, cache):
            return greedy(self.loaded, past, int(self.token_ids[0]), n_tokens)

    def nats(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """(scored,) nats that the true next tokens cost."""
        targets = self.token_ids[1:].to(log_probabilities.device)
        return -log_probabilities.gather(1, targets[:, None])[:, 0]


def filled(past, cache: KVCache, dtype: torch.dtype):
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
def _evicted_hidden(loaded: LoadedModel, cache: KVCache):
    """While entered, no query of the model sees an entry that was evicted."""
    layers = {layer.index: layer for layer in cache.layers if layer.keep is not None}
    cached = {layer.index for layer in cache.layers}
    reached = set()
    owners = {}  # address of the keys that a layer attended to last -> the layer

    def attend(attend, name, module, query, key, value, attention_mask, **kwargs):
        index = getattr(module, "layer_idx", None)
        # A layer without a cache of its own reads the keys of one that has.
        layer = layers.get(index) if index in cached else owners.get(key.data_ptr())
        if index in cached:
            owners[key.data_ptr()] = layer
        if layer is not None:
            reached.add(layer.index)
            attention_mask = _with_evictions(attention_mask, layer, query, key, name)
        return attend(module, query, key, value, attention_mask, **kwargs)

    if not layers:
        yield
        return
    with wrapped_attention(loaded.model, attend):
        yield
    if reached != set(layers):
        raise UsageError(
            f"{loaded.name} does not let entries of its cache be hidden, so what evicting them "
            "costs cannot be measured: choose a method that keeps all tokens and heads."
        )


def _with_evictions(
    mask: torch.Tensor | None, layer: LayerKV, query: torch.Tensor, key: torch.Tensor, name: str
) -> torch.Tensor:
    """The mask (1, 1 or heads, queries, keys) with the layer's evicted entries hidden: the cached
    tokens are the first keys, the queries' own the last."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    kept = torch.ones(layer.n_heads, n_keys, dtype=torch.bool, device=query.device)
    kept[:, : layer.n_tokens] = layer.keep
    kept = kept.repeat_interleave(query.shape[1] // layer.n_heads, dim=0)[None, :, None]
    if mask is None:  # plain causal attention, the last query at the last key
        causal = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device)
        mask = causal.tril(n_keys - n_queries)[None, None]
    if mask.dtype == torch.bool:
        visible = mask & kept
    else:
        return mask.masked_fill(~kept, torch.finfo(mask.dtype).min)
    if name == "eager":  # which adds its mask
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        return zero.masked_fill(~visible, torch.finfo(query.dtype).min)
    return visible


Text = tuple[Sample, torch.Tensor]  # a text, and its first token ids (tokens,)


def long_enough(loaded: LoadedModel, run: RunConfig, context_tokens: int) -> list[Text]:
    """The first `num_samples` texts of a run with a context and scored tokens after it, and their
    first (context + 1 + scored,) token ids: the one between is fed and not scored. Where the run
    gives a continuation, that is what is scored."""
    follows = _continuation(loaded, run)
    n_scored = run.n_scored() if follows is None else len(follows)
    need = context_tokens + 1 + (0 if follows is not None else n_scored)
    asked = f"A context of {context_tokens} tokens and {n_scored} scored ones"
    limit = loaded.max_positions
    if limit is not None and context_tokens + 1 + n_scored > limit:
        raise UsageError(
            f"{asked} are beyond the {limit} positions of {loaded.name}: lower --context_tokens "
            "or --score_tokens."
        )
    candidates = texts.candidates(run)
    found, longest = _first(loaded, candidates, need, run.n_texts())
    if not found:
        raise UsageError(
            f"{asked} need a text of {need} tokens, the longest here has {longest}: give a longer "
            "one, or lower --context_tokens or --score_tokens."
        )
    if len(found) < min(run.n_texts(), len(candidates)):
        log.warning(
            "Only %d of the %d texts of --num_samples are long enough (%d tokens): using those.",
            len(found),
            run.n_texts(),
            need,
        )
    if follows is None:
        return found
    return [(sample, torch.cat([ids, follows])) for sample, ids in found]


def _continuation(loaded: LoadedModel, run: RunConfig) -> torch.Tensor | None:
    if run.continuation is None:
        return None
    ids = loaded.tokenizer(run.continuation, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError("--continuation has no tokens: give the text that is to be scored.")
    return torch.tensor(ids)


def _first(loaded: LoadedModel, samples, n_tokens: int, most: int) -> tuple[list[Text], int]:
    """Of the samples that have `n_tokens`, the first `most` with their first tokens; and how many
    tokens the longest of those looked at has."""
    found, longest = [], 0
    for sample in samples:
        if len(found) == most:
            break
        ids = torch.tensor(loaded.tokenizer(sample.text)["input_ids"][:n_tokens])
        longest = max(longest, len(ids))
        if len(ids) == n_tokens:
            found.append((sample, ids))
    return found, longest


def others(loaded: LoadedModel, scored: list[Sample], n_tokens: int, most: int) -> list[Text]:
    """Up to `most` texts of the offline corpus that are not among the `scored` ones, to learn from:
    what is learned on a text says nothing of it."""
    apart = [s for s in texts.reference_samples() if s.sha256 not in {t.sha256 for t in scored}]
    found, longest = _first(loaded, apart, n_tokens, most)
    if most and not found:
        raise UsageError(
            f"No other text of the offline corpus has the {n_tokens} tokens that calibration takes "
            f"(the longest has {longest}): lower --context_tokens."
        )
    return found
