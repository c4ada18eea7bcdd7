"""The settings that `--mode compare` measures, by family: label -> (method, its settings)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import config
from compression.base import Compressor
from compression.methods.composed import Composed
from compression.methods.evictions import Eviction
from compression.methods.place_by_place import BetweenEnds
from compression.methods.tucker import Tucker
from compression.registry import METHODS
from compression.shapes import LayerShape
from config import UsageError
from data.cache import KVCache, LayerKV

Setting = tuple[str, dict[str, Any]]
Families = dict[str, dict[str, Setting]]
CODED_STEPS = (1.8e-5, 3.5e-5, 5e-5, 7e-5, 1e-4, 1.4e-4, 2e-4, 2.8e-4)
# Of all EVICTIONS; `prune` can be asked for all of them.
COMPARED_EVICTIONS = ("recent", "key_norm", "random", "heavy_hitter", "snapkv", "key_diff")


def families(levels: Sequence[float] | None = None) -> Families:
    """Every setting; plain tokens as config.py says now. levels: shares of the tokens that
    evictions keep, config.LEVELS where not given."""
    ends = {"sink_tokens": config.SINK_TOKENS, "recent_tokens": config.RECENT_TOKENS}
    low_rank = {**ends, "unrotated_keys": True}
    return {
        "none": {"none": ("none", {})},
        "coded": _coded("coded", CODED_STEPS),
        "coded_fixed": _coded("coded_fixed", CODED_STEPS[2:5]),
        "coded_chunks": _coded("coded_chunks", CODED_STEPS[1::2]),
        "kvtc": _kvtc(),
        "fp8": {"fp8": ("fp8", {})},
        "int8": {"int8": ("int8", {})},
        "kivi": _bits("kivi", recent_tokens=config.RECENT_TOKENS),
        "rotated": _bits("rotated", **ends),
        "svd": _kept("svd", (0.5, 0.25, 0.125), **low_rank),
        "cross_layer_svd": _kept("cross_layer_svd", (0.25, 0.125), **low_rank),
        "tucker": {
            f"tucker {tokens}/{dims}": ("tucker", {**_ranks(tokens, dims), **low_rank})
            for tokens, dims in ((128, 64), (64, 48), (32, 32))
        },
        "tucker_quantised": {
            f"tucker_quantised 128/64 int{bits}": (
                "tucker_quantised",
                {**_ranks(128, 64), **low_rank, "bits": bits},
            )
            for bits in (8, 4)
        },
        **{
            name: _kept(name, levels or config.LEVELS, sink_tokens=config.SINK_TOKENS)
            for name in COMPARED_EVICTIONS
        },
        "composed": {
            "composed snapkv 0.5 + kivi-4": (
                "composed",
                {
                    "eviction": {"name": "snapkv", "keep": 0.5},
                    "then": {"name": "kivi", "bits": 4, "recent_tokens": 0},
                },
            )
        },
    }


def _coded(method: str, steps: Sequence[float]) -> dict[str, Setting]:
    return {f"{method} {step:.1e}": (method, {"step": step}) for step in steps}


def _kvtc() -> dict[str, Setting]:
    """Budgets of KVTC with the plain tokens of its paper, and two with as few as `coded` has, for
    short contexts, of which 132 tokens are much."""
    as_published = {f"kvtc {ratio}": ("kvtc", {"ratio": ratio}) for ratio in (4, 8, 16, 32, 64)}
    few: dict[str, Any] = {"sink_tokens": 1, "recent_tokens": 0}
    bare = {f"kvtc {ratio} bare": ("kvtc", {"ratio": ratio, **few}) for ratio in (8, 16, 32)}
    return as_published | bare


def _kept(method: str, shares: Sequence[float], **settings: Any) -> dict[str, Setting]:
    return {f"{method} {keep:g}": (method, {"keep": keep, **settings}) for keep in shares}


def _ranks(tokens: int, dims: int) -> dict[str, int]:
    return {"token_rank": tokens, "embedding_rank": dims}


def _bits(method: str, **settings: Any) -> dict[str, Setting]:
    return {f"{method}-{bits}": (method, {"bits": bits, **settings}) for bits in (4, 3, 2)}


QUICK = {
    "coded": ("coded 5.0e-05", "coded 1.4e-04"),
    "coded_fixed": (),
    "coded_chunks": (),
    "kvtc": ("kvtc 16",),
    "kivi": ("kivi-4", "kivi-2"),
    "rotated": ("rotated-4",),
    "svd": ("svd 0.5",),
    "cross_layer_svd": (),
    "tucker": ("tucker 32/32",),
    "tucker_quantised": (),
    "recent": ("recent 0.5",),
    "key_norm": ("key_norm 0.5",),
    "random": (),
    "heavy_hitter": (),
    "snapkv": ("snapkv 0.5",),
    "key_diff": (),
    "composed": (),
}
# What `tasks` sets beside each other where nothing is named: a task takes many passes.
EXAMINED = {
    "none": ("none",),
    "coded": ("coded 5.0e-05", "coded 1.0e-04", "coded 2.0e-04"),
    "kvtc": ("kvtc 8", "kvtc 16", "kvtc 16 bare", "kvtc 32 bare"),
    "fp8": ("fp8",),
    "kivi": ("kivi-4", "kivi-2"),
    "snapkv": ("snapkv 0.5", "snapkv 0.25"),
}
# Label -> the setting of a serving engine that stores alike
ENGINES = {
    "fp8": "vLLM --kv-cache-dtype fp8_e4m3",
    "int8": "llama.cpp -ctk q8_0 -ctv q8_0",
    "kivi-4": 'transformers cache_implementation="quantized", cache_config={"nbits": 4}, or '
    "llama.cpp -ctk q4_0 -ctv q4_0",
    "kivi-2": 'transformers cache_implementation="quantized", cache_config={"nbits": 2}',
}


def chosen(
    names: Iterable[str] | None, quick: bool = False, levels: Sequence[float] | None = None
) -> Families:
    """The settings of these families, or of all; always with the untouched cache. quick: fewer of
    each family, and only families that `QUICK` does not leave out, unless they are named. levels:
    the shares of the tokens that evictions keep, all of which are taken where they are other than
    config.LEVELS."""
    every = families(levels)
    asked = set(COMPARED_EVICTIONS) if levels and tuple(levels) != tuple(config.LEVELS) else set()
    wanted = None if names is None else {"none", *names}
    unknown = sorted((wanted or set()) - set(every))
    if unknown:
        raise UsageError(
            f"{unknown[0]} of `methods` is not known", f"take some of {', '.join(every)}"
        )
    picked: Families = {}
    for family, settings in every.items():
        quickly = QUICK.get(family, settings) if quick and family not in asked else settings
        few = [label for label in quickly if label in settings]
        left_out = quick and not QUICK.get(family, settings)
        if (not left_out) if wanted is None else (family in wanted):
            picked[family] = {label: settings[label] for label in few or list(settings)[:1]}
    return picked


def one(name: str, usual: str) -> Setting:
    """The setting of a label, or of a family: its first, or `usual` where that is of the family."""
    every = families()
    for family, settings in every.items():
        if name in settings:
            return settings[name]
        if name == family:
            return settings.get(usual, next(iter(settings.values())))
    raise UsageError(f"{name} of `methods` is not known", f"take one of {', '.join(every)}")


def smallest_context() -> int:
    """Tokens below which the ends that stay plain are all there is."""
    return config.SINK_TOKENS + config.RECENT_TOKENS + 1


def evicts(method: str) -> bool:
    """Whether a method of this name hides tokens from the model."""
    return issubclass(METHODS[method], Eviction | Composed)


def unfit(method: Compressor, cache: KVCache) -> str | None:
    """Why a method can do nothing with a cache, in words; None where it can.

    One layer of each shape is tried. What was learned of a model fits its cache, and is not tried.
    """
    if isinstance(method, BetweenEnds) and method.is_idle(cache):
        return "all cached tokens are among the first and the most recent ones, which stay plain"
    first = {_shape(layer): layer for layer in reversed(cache.layers)}
    for layer in first.values() if method.calibration is None else ():
        try:
            method.encode(replace(cache, layers=(layer,)))
        except UsageError as error:
            return _reason(method, layer, error)
    return None


def _shape(layer: LayerKV) -> tuple[object, ...]:
    """What tells layers apart that a method may refuse."""
    unknown = layer.attention is None, layer.recent_attention is None, layer.rotary is None
    return layer.keys.shape, layer.values.shape, *unknown


def _reason(method: Compressor, layer: LayerKV, refusal: UsageError) -> str:
    """A refusal without its advice, which is for one who gave the setting himself."""
    if not isinstance(method, Tucker) or layer.rotary is None:
        return refusal.reason
    span = method.span(LayerShape.of(layer))
    dims = min(layer.keys.shape[2], layer.values.shape[2])
    return (
        f"layer {layer.index} is too small for these ranks: KV heads x tokens that do not stay "
        f"plain x dimensions are {layer.n_heads} x {span.stop - span.start} x {dims}"
    )
