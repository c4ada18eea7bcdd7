"""The settings that `--mode compare` measures, by family: label -> (method, its settings)."""

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, replace

from compression.base import Compressor, LayerShape, ModelSide
from compression.between import BetweenEnds
from compression.composed import Composed
from compression.methods import METHODS
from compression.pruning import Eviction
from compression.tucker import Tucker
from config import UsageError
from data.cache import KVCache, LayerKV

Setting = tuple[str, dict]
ENDS = {"sink_tokens": 4, "recent_tokens": 64}
LOW_RANK = {**ENDS, "unrotated_keys": True}
CODED_STEPS = (1.8e-5, 3.5e-5, 5e-5, 7e-5, 1e-4, 1.4e-4, 2e-4)
KEPT = (0.75, 0.5, 0.25)


def _kept(method: str, **settings) -> dict[str, Setting]:
    return {f"{method} {keep:g}": (method, {"keep": keep, **settings}) for keep in KEPT}


def _scored(score: str) -> dict[str, Setting]:
    settings = {"score": score, "sink_tokens": 4}
    return {f"{score} {k:g}": ("evict_tokens", {"keep": k, **settings}) for k in KEPT}


def _ranks(tokens: int, dims: int) -> dict[str, int]:
    return {"token_rank": tokens, "embedding_rank": dims}


def _bits(method: str, **settings) -> dict[str, Setting]:
    return {f"{method}-{bits}": (method, {"bits": bits, **settings}) for bits in (4, 3, 2)}


FAMILIES: dict[str, dict[str, Setting]] = {
    "none": {"none": ("none", {})},
    "coded": {f"coded {step:.1e}": ("coded", {"step": step}) for step in CODED_STEPS},
    "coded_fixed": {
        f"coded_fixed {step:.1e}": ("coded_fixed", {"step": step}) for step in CODED_STEPS[2:5]
    },
    "fp8": {"fp8": ("fp8", {})},
    "int8": {"int8": ("int8", {})},
    "kivi": _bits("kivi", recent_tokens=64),
    "rotated": _bits("rotated", **ENDS),
    "svd": {f"svd {keep:g}": ("svd", {"keep": keep, **LOW_RANK}) for keep in (0.5, 0.25, 0.125)},
    "cross_layer_svd": {
        f"cross_layer_svd {keep:g}": ("cross_layer_svd", {"keep": keep, **LOW_RANK})
        for keep in (0.25, 0.125)
    },
    "tucker": {
        f"tucker {tokens}/{dims}": ("tucker", {**_ranks(tokens, dims), **LOW_RANK})
        for tokens, dims in ((128, 64), (64, 48), (32, 32))
    },
    "tucker_quantised": {
        f"tucker 128/64 int{bits}": (
            "tucker_quantised",
            {**_ranks(128, 64), **LOW_RANK, "bits": bits},
        )
        for bits in (8, 4)
    },
    "recent": _scored("recent"),
    "key_norm": _scored("key_norm"),
    "random": _scored("random"),
    "heavy_hitter": _kept("heavy_hitter"),
    "snapkv": _kept("snapkv"),
    "key_diff": _kept("key_diff"),
    "composed": {
        "snapkv 0.5 + kivi-4": (
            "composed",
            {
                "eviction": {"name": "snapkv", "keep": 0.5},
                "then": {"name": "kivi", "bits": 4, "recent_tokens": 0},
            },
        )
    },
}
EVICTIONS = ("recent", "key_norm", "random", "heavy_hitter", "snapkv", "key_diff")
QUICK = {
    "coded": ("coded 5.0e-05", "coded 1.4e-04"),
    "coded_fixed": (),
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
# Family -> the setting of a serving engine that stores alike
ENGINES = {
    "fp8": "vLLM --kv-cache-dtype fp8_e4m3",
    "int8": "llama.cpp -ctk q8_0 -ctv q8_0",
    "kivi": 'transformers cache_implementation="quantized", cache_config={"nbits": 4 or 2}; '
    "llama.cpp -ctk q4_0 -ctv q4_0",
}


def chosen(
    families: Iterable[str] | None, quick: bool, levels: Sequence[float] = KEPT
) -> dict[str, dict[str, Setting]]:
    """The settings of these families, or of all; always with the untouched cache. quick: fewer of
    each family, and only families that `QUICK` does not leave out, unless they are named. levels:
    the shares of the tokens that evictions keep."""
    unknown = sorted(set(families or ()) - set(FAMILIES))
    if unknown:
        raise UsageError(f"--methods: {unknown[0]} is none of {', '.join(FAMILIES)}.")
    found = {}
    for family, settings in FAMILIES.items():
        if families is not None and family not in families and family != "none":
            continue
        few = QUICK.get(family, tuple(settings)) if quick else tuple(settings)
        if families is None and not few:
            continue
        if family in EVICTIONS and tuple(levels) != KEPT:
            found[family] = _at_levels(settings, levels)
        else:
            found[family] = {label: settings[label] for label in few or list(settings)[:1]}
    return found


def _at_levels(settings: dict[str, Setting], levels: Sequence[float]) -> dict[str, Setting]:
    """The first of these settings with other kept shares."""
    label, (method, values) = next(iter(settings.items()))
    family = label.split()[0]
    return {f"{family} {keep:g}": (method, values | {"keep": keep}) for keep in levels}


def made(setting: Setting, model_side: ModelSide | None) -> Compressor:
    """The method of a setting; those that are calibrated get what was learned of the model."""
    name, settings = setting
    side = {"model_side": model_side} if calibrated(name) else {}
    return METHODS[name](**settings, **side)


def calibrated(name: str) -> bool:
    """Whether a method cannot do without what was learned of the model."""
    needed = [f.name for f in fields(METHODS[name]) if f.default is MISSING]
    return "model_side" in needed


def smallest_context() -> int:
    """Tokens below which the ends that stay plain are all there is."""
    return ENDS["sink_tokens"] + ENDS["recent_tokens"] + 1


def evicts(method: Compressor) -> bool:
    return isinstance(method, Eviction | Composed)


def unfit(method: Compressor, cache: KVCache) -> str | None:
    """Why a method can do nothing with a cache, in words; None where it can.

    One layer of each shape is tried. What was learned of a model fits its cache, and is not tried.
    """
    if isinstance(method, BetweenEnds) and method.is_idle(cache):
        return "all cached tokens are among the first and the most recent ones, which stay plain"
    first = {_shape(layer): layer for layer in reversed(cache.layers)}
    for layer in first.values() if method.model_side is None else ():
        try:
            method.encode(replace(cache, layers=(layer,)))
        except UsageError as error:
            return _reason(method, layer, str(error))
    return None


def _shape(layer: LayerKV) -> tuple:
    """What tells layers apart that a method may refuse."""
    unknown = layer.attention is None, layer.recent_attention is None, layer.rotary is None
    return layer.keys.shape, layer.values.shape, *unknown


def _reason(method: Compressor, layer: LayerKV, refusal: str) -> str:
    """A refusal without its advice, which is for one who gave the setting himself."""
    if not isinstance(method, Tucker) or layer.rotary is None:
        return refusal.split(": ")[0].rstrip(".")
    span = method.span(LayerShape.of(layer))
    dims = min(layer.keys.shape[2], layer.values.shape[2])
    return (
        f"layer {layer.index} is too small for these ranks: KV heads x tokens that do not stay "
        f"plain x dimensions are {layer.n_heads} x {span.stop - span.start} x {dims}"
    )
