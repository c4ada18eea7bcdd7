"""Run the model over a text and take its KV cache out: prefill, then greedy generation."""

import logging
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from config import UsageError
from data.cache import KINDS, KVCache, LayerKV, Past, PastLayer
from data.loaded_model import LoadedModel
from data.probe import AttentionProbe
from data.reading import read, step
from data.rotations import Rotations, is_stored, rotations
from data.texts import Sample
from data.watchers import TokenAttention

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prefill:
    """What reading a text leaves behind.

    next_token: (1, 1), the most likely continuation.
    past: the model's own cache object, which generation continues in place.
    attention: what tokens receive of whom, where it was measured from all queries.
    last_queries: of each layer of the cache (kv_heads, query heads, queries, key_dim), the last of
        the text, times what scores are scaled by, after rotary embedding; where only those were
        watched, and None of a layer where they are not of the keys that are cached.
    """

    cache: KVCache
    next_token: torch.Tensor
    past: Past = field(repr=False)
    attention: TokenAttention | None = field(default=None, repr=False)
    last_queries: tuple[torch.Tensor | None, ...] = field(default=(), repr=False)


def tokenise(
    loaded: LoadedModel, sample: Sample, sequence_length: int | None = None, new_tokens: int = 0
) -> torch.Tensor:
    """The first `sequence_length` token ids of a text, or all: (tokens,).

    `new_tokens` are to be generated after it. Raises UsageError for a text without tokens, and for
    one that the model has no positions for. Of a long text no more is read than that takes.
    """
    limit = loaded.max_positions
    if limit is not None and new_tokens >= limit:
        raise UsageError(
            f"`new_tokens` {new_tokens} leave no room for a text in the {limit} positions of "
            f"{loaded.name}",
            "lower it",
        )
    room = None if limit is None else limit - new_tokens
    asked = [n for n in (sequence_length, room and room + 1) if n is not None]
    token_ids = loaded.ids_of(sample.text, min(asked, default=None))
    if len(token_ids) == 0:
        raise UsageError(f"The text {sample.name} has no tokens", "give a longer one")
    if room is not None and len(token_ids) > room:
        generated = f" and `new_tokens` {new_tokens}" if new_tokens else ""
        raise UsageError(
            f"A text of more than {room} tokens{generated} is beyond the {limit} positions of "
            f"{loaded.name}",
            f"give `sequence_length` {room} or less",
        )
    if sequence_length is not None and len(token_ids) < sequence_length:
        log.warning(
            "The text has %d tokens, fewer than `sequence_length` %d: using all of them.",
            len(token_ids),
            sequence_length,
        )
    return token_ids


@torch.no_grad()
def prefill(
    loaded: LoadedModel, token_ids: torch.Tensor, probe: bool = False, recent_only: bool = False
) -> Prefill:
    """The text of (tokens,) token ids read, in chunks where it is longer than one; `probe` measures
    the attention they receive, with `recent_only` that from the last queries alone."""
    watch = AttentionProbe(len(token_ids), recent_only) if probe else None
    past, logits = read(loaded, token_ids, watch)
    layers = _layers(past, len(token_ids), loaded, rotations(loaded, len(token_ids)))
    attention = None
    last_queries: tuple[torch.Tensor | None, ...] = ()
    if watch:
        attention = watch.of_tokens({layer.index: layer.keys for layer in layers})
        layers = _with_attention(watch, layers)
        last_queries = tuple(watch.last_queries(layer.index) for layer in layers)
    cache = KVCache(layers, token_ids, len(token_ids), loaded.name)
    refuse_non_finite(cache, loaded.dtype)
    blind = [layer.recent_attention is None for layer in layers]
    if probe and any(blind):
        log.warning(
            "%s does not show its attention in %s: those entries of the attention columns are "
            "empty, and importance is of norms alone where all are.",
            loaded.name,
            "any layer" if all(blind) else "some layers",
        )
    return Prefill(cache, loaded.likeliest(logits), past, attention, last_queries)


@torch.no_grad()
def generate(loaded: LoadedModel, start: Prefill, new_tokens: int) -> KVCache:
    """The cache of the text and of `new_tokens` greedily chosen tokens after it.

    Goes on past an end-of-text token, so that there are as many as were asked for. Uses up
    `start.past`; `start.cache` stays as it is.
    """
    n_cached = start.cache.n_tokens
    tokens = [start.next_token]
    for i in tqdm(range(new_tokens - 1), desc="Generate", unit="token", leave=False):
        tokens.append(_step(loaded, tokens[-1], start.past, n_cached + i))
    # the last token's own keys and values
    _step(loaded, tokens[-1], start.past, n_cached + new_tokens - 1)
    new_ids = torch.cat(tokens, dim=1)[0].cpu()
    token_ids = torch.cat([start.cache.token_ids, new_ids])
    now = rotations(loaded, len(token_ids))
    kept = {x.index: x.rotary for x in start.cache.layers if x.rotary == now.get(x.index)}
    layers = _layers(start.past, len(token_ids), loaded, kept)
    cache = KVCache(layers, token_ids, n_cached, loaded.name)
    refuse_non_finite(cache, loaded.dtype)
    return cache


def refuse_non_finite(
    cache: KVCache, dtype: str, advice: str = "try `dtype` float32, or check the model's weights"
) -> None:
    """Raise UsageError naming the first layer whose keys or values hold NaN or Inf."""
    # Layers may be on several devices.
    peaks = [x.tensor(kind).abs().amax().cpu() for x in cache.layers for kind in KINDS]
    broken = (~torch.stack(peaks).isfinite()).nonzero().flatten().tolist()
    if broken:
        layer, kind = cache.layers[broken[0] // 2].index, KINDS[broken[0] % 2]
        raise UsageError(
            f"The {kind}s of layer {layer} of {cache.model} hold NaN or Inf in {dtype}",
            advice,
        )


def _step(loaded: LoadedModel, token: torch.Tensor, past: Past, n_past: int) -> torch.Tensor:
    return loaded.likeliest(step(loaded, token[0], past, n_past).logits)


def _layers(
    past: Past, n_tokens: int, loaded: LoadedModel, rotated_by: Rotations
) -> tuple[LayerKV, ...]:
    """What each layer holds after `n_tokens` tokens; the model's own tensors, not copies where
    that can be.

    transformers appends by making new tensors, so later steps do not reach into these.
    """
    settings = loaded.settings
    device = _for_sums(past)
    return tuple(
        LayerKV(
            keys=layer.keys[0].to(device),
            values=layer.values[0].to(device),
            positions=torch.arange(n_tokens - layer.keys.shape[-2], n_tokens),
            index=index,
            kind=_kind(layer, settings),
            rotary=rotated_by.get(index),
        )
        for index, layer in enumerate(past.layers)
        if is_stored(layer)
    )


def _for_sums(past: Past) -> torch.device:
    """Where sums over all layers can be taken in float64: where they are if that is one place, and
    none of Apple's graphics processors, which lack it."""
    places = {layer.keys.device for layer in past.layers if is_stored(layer)}
    alone = places.pop() if len(places) == 1 else torch.device("cpu")
    return torch.device("cpu") if alone.type == "mps" else alone


def _kind(layer: PastLayer, settings: object) -> str:
    latent = vars(settings).get("kv_lora_rank")  # not asked for: it may differ by layer
    if layer.keys.shape[1] == 1 and layer.keys.shape[-1] == latent:
        return "latent"
    return "sliding" if getattr(layer, "is_sliding", False) else "full"


def _with_attention(probe: AttentionProbe, layers: tuple[LayerKV, ...]) -> tuple[LayerKV, ...]:
    """The layers with the probe's measurements at the tokens that each still holds, where its keys
    are."""
    measured = probe.received({layer.index: layer.keys for layer in layers})
    watched = []
    for layer in layers:
        attention, recent = (
            None if x is None else x[:, layer.positions].to(layer.keys.device)
            for x in measured[layer.index]
        )
        watched.append(replace(layer, attention=attention, recent_attention=recent))
    return tuple(watched)
