"""How strongly a model's predictions depend on each entry of a cache.

An error e of the cache moves the prediction p_s of a later token by KL(p || p') = e' F_s e / 2 to
second order, F_s the Fisher information E[g g'] with g the gradient of log p_s(y) by the cache and
y drawn from p_s itself (Kullback 1959; Amari, Natural gradient, 1998). The gradient of
sum_s eps_s log p_s(y_s) with random signs eps_s gives the sum of all F_s at once: E[g g'] = sum_s
F_s, for other signs' products vanish. KVQuant (arXiv 2401.18079) weighs errors in the same way.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from config import UsageError
from data import placement
from data.cache import KINDS, KVCache, LayerKV, Past
from data.expected_queries import expected_queries
from data.extraction import prefill
from data.forward import forward
from data.loaded_model import LoadedModel
from data.scoring import filled

# Of each text contexts of different lengths: how a token's weight falls with its age must hold for
# all. The longest comes first: layers that hold different tokens are told apart by it.
CONTEXTS = (2048, 2048, 512, 2048, 2048, 1024)
SCORED = 256  # tokens after each context; as many as the quality of a method is measured on
DRAWS = 2  # of each context: another costs a backward pass, another context four times that
SHORTEST = 8  # tokens of a context from which anything can be learned

# Words of autograd where something on the way cannot be differentiated.
NO_DERIVATIVE = ("does not require grad", "not implemented", "in-place", "inplace", "Inference")

Window = tuple[torch.Tensor, int]  # token ids (context + scored + 1,), tokens of context


@dataclass(frozen=True)
class Sensitivity:
    """One draw of the gradient for one context.

    cache: of the context, in float32.
    gradients: per cached layer "key" and "value", (heads, tokens, dim) in float32, of the sum over
        `n_scored` predictions; by the keys as they were before rotary embedding where that can be
        undone, else by the keys as stored.
    queries: by place of the layer in the cache (kv_heads, query heads, key_dim), the query that is
        to be expected of each head, such that its product with a key before rotary embedding is
        the score; without the layers of which it is not known.
    """

    cache: KVCache
    gradients: tuple[dict[str, torch.Tensor], ...]
    n_scored: int
    queries: dict[int, torch.Tensor] = field(default_factory=dict)


def windows(
    loaded: LoadedModel,
    text: str,
    contexts: Sequence[int] = CONTEXTS,
    n_scored: int = SCORED,
) -> list[Window]:
    """One stretch of token ids for each context length, at even distances in the text and
    without overlap; fewer where it ends. Shorter for a model with fewer positions. Each begins as
    the tokenizer begins a text, for so do all texts that are compressed."""
    limit = loaded.max_positions
    if limit is not None:
        n_scored = min(n_scored, limit // 4)
        contexts = [min(n, limit - n_scored - 1) for n in contexts]
    ids, first = loaded.ids_of(text, special_tokens=False), loaded.beginning
    lengths = [n + n_scored + 1 for n in contexts if n >= SHORTEST]
    while lengths and sum(lengths) > len(ids):
        lengths.pop()
    if not lengths:
        raise UsageError(
            f"{loaded.name} cannot be calibrated, for {len(ids)} tokens of text and "
            f"{limit or 'unlimited'} positions leave no room for a context and {n_scored} tokens "
            "after it"
        )
    gap = (len(ids) - sum(lengths)) // len(lengths)
    starts = [sum(lengths[:i]) + i * gap for i in range(len(lengths))]
    return [
        (torch.cat([first, ids[start : start + length - len(first)]]), length - n_scored - 1)
        for start, length in zip(starts, lengths, strict=True)
    ]


def sensitivities(
    loaded: LoadedModel, windows: Iterable[Window], n_draws: int = DRAWS
) -> Iterator[Sensitivity]:
    """Draws for each window, those of one on the same cache one after the other."""
    windows = tqdm(list(windows), desc="Calibrate", unit="text", leave=False)
    for number, (token_ids, n_context) in enumerate(windows):
        yield from draws(loaded, token_ids, n_context, n_draws, seed=number)


def draws(
    loaded: LoadedModel, token_ids: torch.Tensor, n_context: int, n_draws: int = 1, seed: int = 0
) -> list[Sensitivity]:
    """The first `n_context` token ids are cached, those up to the last but one are fed on top,
    which gives the predictions that each draw samples anew."""
    if placement.is_offloaded(loaded.model):
        raise UsageError(
            f"{loaded.name} cannot be calibrated, for its gradients take all of its weights at "
            "once, and some are kept in memory or on disk until they are used",
            "calibrate it on cards that hold it, or take another `dtype`",
        )
    start = prefill(loaded, token_ids[:n_context], probe=True, recent_only=True)
    cache = replace(start.cache, layers=tuple(_in_float32(x) for x in start.cache.layers))
    leaves = _leaves(cache)
    by = [x for pair in leaves for x in pair.values()]
    fed = token_ids[n_context:-1]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.enable_grad(), _frozen(loaded.model):
            past = filled(start.past, _with_leaves(cache, leaves), loaded.torch_dtype)
            _write_states_anew(past)
            logits = forward(loaded, fed, past, n_context).logits[0]
            log_probabilities = torch.log_softmax(logits.float(), dim=-1)
            _refuse_nan(log_probabilities, loaded)
            gradients = [
                torch.autograd.grad(
                    _drawn(log_probabilities, generator),
                    by,
                    retain_graph=n + 1 < n_draws,
                    allow_unused=True,
                )
                for n in range(n_draws)
            ]
    except RuntimeError as error:
        if any(words in str(error) for words in NO_DERIVATIVE):
            raise _no_gradients(loaded) from error
        raise  # lack of memory, for one
    unmoved = [leaf for leaf, g in enumerate(gradients[0]) if g is None]
    if unmoved:
        raise _no_gradients(loaded, _place(cache, unmoved[0]))
    if not all(g.isfinite().all() for each in gradients for g in each):
        raise UsageError(
            f"{loaded.name} cannot be calibrated, for its gradients hold NaN or Inf in "
            f"{loaded.dtype}"
        )
    queries = expected_queries(cache, start.last_queries)
    return [Sensitivity(cache, _by_layer(each), len(fed), queries) for each in gradients]


def _by_layer(gradients: tuple[torch.Tensor, ...]) -> tuple[dict[str, torch.Tensor], ...]:
    pairs = zip(gradients[::2], gradients[1::2], strict=True)
    return tuple(dict(zip(KINDS, pair, strict=True)) for pair in pairs)


def _refuse_nan(log_probabilities: torch.Tensor, loaded: LoadedModel) -> None:
    if log_probabilities.isnan().any():
        raise UsageError(
            f"{loaded.name} cannot be calibrated, for its predictions hold NaN in {loaded.dtype}",
            "try `dtype` float32, or check the model's weights",
        )


def _no_gradients(loaded: LoadedModel, by: str = "its cache") -> UsageError:
    return UsageError(
        f"{loaded.name} cannot be calibrated, for its predictions give no gradients by {by}"
    )


def _place(cache: KVCache, leaf: int) -> str:
    return f"the {KINDS[leaf % 2]}s of layer {cache.layers[leaf // 2].index}"


def _drawn(log_probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """sum_s eps_s log p_s(y_s) for (scored, vocabulary) log-probabilities."""
    shares = log_probabilities.detach().exp().cpu()
    tokens = torch.multinomial(shares, 1, generator=generator).to(log_probabilities.device)
    signs = 2 * torch.randint(0, 2, tokens.shape, generator=generator) - 1
    return (log_probabilities.gather(1, tokens) * signs.to(log_probabilities.device)).sum()


def _in_float32(layer: LayerKV) -> LayerKV:
    return replace(layer, keys=layer.keys.float(), values=layer.values.float())


def _leaves(cache: KVCache) -> list[dict[str, torch.Tensor]]:
    """Per layer what is differentiated by: keys, unrotated where that can be done, and values."""
    leaves = []
    for layer in cache.layers:
        keys = layer.keys if layer.rotary is None else layer.unrotated_keys()
        pair = {"key": keys, "value": layer.values}
        leaves.append({k: x.detach().clone().requires_grad_() for k, x in pair.items()})
    return leaves


def _with_leaves(cache: KVCache, leaves: list[dict[str, torch.Tensor]]) -> KVCache:
    """The same cache as a function of the leaves."""
    layers = []
    for layer, leaf in zip(cache.layers, leaves, strict=True):
        keys = leaf["key"]
        if layer.rotary is not None:
            keys = layer.rotary.rotated(keys, layer.positions)
        layers.append(replace(layer, keys=keys, values=leaf["value"]))
    return replace(cache, layers=tuple(layers))


def _write_states_anew(past: Past) -> None:
    """From here on the states of linear attention that this copy of a model's cache object holds
    are not overwritten: what follows goes into tensors of their own, for transformers writes in
    place, over what the graph has to remember."""
    for layer in past.layers:
        for kind in ("recurrent_state", "conv_state"):
            states = getattr(layer, f"{kind}s", None)
            if isinstance(states, dict):
                update = getattr(layer, f"update_{kind}")
                setattr(layer, f"update_{kind}", partial(_anew, update, states))


def _anew(
    update: Callable[..., torch.Tensor],
    states: dict[int, torch.Tensor | None],
    *arguments: Any,
    **named: Any,
) -> torch.Tensor:
    """What `update` gives, which writes over what `states` holds: copies by then."""
    for number, state in states.items():
        states[number] = None if state is None else state.clone()
    return update(*arguments, **named)


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """While entered, the graph holds nothing that only the gradients of weights would need."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
