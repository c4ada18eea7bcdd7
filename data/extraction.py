"""Run the model over a text and take its KV cache out: prefill, then greedy generation."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from tqdm import tqdm

from config import UsageError
from data.cache import KINDS, KVCache, LayerKV, Past, PastLayer
from data.forward import Output, forward
from data.models import LoadedModel
from data.probe import AttentionProbe
from data.refusals import said, strangers_code
from data.rotations import Rotations, is_stored, rotations
from data.self_test import refuse_wrong_cache
from data.texts import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prefill:
    """What one forward pass over a text leaves behind.

    next_token: (1, 1), the most likely continuation.
    past: the model's own cache object, which generation continues in place.
    """

    cache: KVCache
    next_token: torch.Tensor
    past: Past = field(repr=False)


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
    """One forward pass over (tokens,) token ids; `probe` measures the attention they receive, with
    `recent_only` that from the last queries alone."""
    watch = AttentionProbe(len(token_ids), recent_only) if probe else None
    with watch.watching(loaded.model) if watch else nullcontext():
        output = _forward(loaded, token_ids)
    past = _own_cache(output, loaded)
    refuse_wrong_cache(loaded)
    layers = _layers(past, len(token_ids), loaded, rotations(loaded, len(token_ids)))
    if watch:
        layers = _with_attention(watch, layers)
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
    return Prefill(cache, loaded.likeliest(output.logits), past)


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
    peaks = torch.stack([x.tensor(kind).abs().amax() for x in cache.layers for kind in KINDS])
    broken = (~peaks.isfinite()).nonzero().flatten().tolist()
    if broken:
        layer, kind = cache.layers[broken[0] // 2].index, KINDS[broken[0] % 2]
        raise UsageError(
            f"The {kind}s of layer {layer} of {cache.model} hold NaN or Inf in {dtype}",
            advice,
        )


def _forward(
    loaded: LoadedModel, token_ids: torch.Tensor, past: Past | None = None, n_past: int = 0
) -> Output:
    with strangers_code(partial(_not_run, loaded)):
        return forward(loaded, token_ids, past, n_past, last_only=True)


def _not_run(loaded: LoadedModel, error: Exception) -> UsageError:
    if "only contain LinearAttention layers" in str(error):  # of transformers' own cache
        return _no_keys_and_values(loaded)
    return UsageError(
        f"{loaded.name} cannot be run ({said(error)})",
        "its settings and weights do not fit each other, or this version of transformers",
    )


def _step(loaded: LoadedModel, token: torch.Tensor, past: Past, n_past: int) -> torch.Tensor:
    return loaded.likeliest(_forward(loaded, token[0], past, n_past).logits)


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


def _layers(
    past: Past, n_tokens: int, loaded: LoadedModel, rotated_by: Rotations
) -> tuple[LayerKV, ...]:
    """What each layer holds after `n_tokens` tokens; the model's own tensors, not copies where
    that can be.

    transformers appends by making new tensors, so later steps do not reach into these.
    """
    settings = loaded.settings
    return tuple(
        LayerKV(
            keys=_with_doubles(layer.keys[0]),
            values=_with_doubles(layer.values[0]),
            positions=torch.arange(n_tokens - layer.keys.shape[-2], n_tokens),
            index=index,
            kind=_kind(layer, settings),
            rotary=rotated_by.get(index),
        )
        for index, layer in enumerate(past.layers)
        if is_stored(layer)
    )


def _with_doubles(x: torch.Tensor) -> torch.Tensor:
    """`x` where long sums can be taken in float64, which Apple's graphics processors lack."""
    return x.cpu() if x.device.type == "mps" else x


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
