"""The settings that `--mode compare` measures, by family: label -> (method, its settings)."""

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields

import config
from compression.base import Compressor, ModelSide
from compression.methods import METHODS
from config import UsageError

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
    """The settings of these families, or of all; always with the untouched cache. levels: the
    shares of the tokens that evictions keep."""
    unknown = sorted(set(families or ()) - set(FAMILIES))
    if unknown:
        raise UsageError(f"--methods: {unknown[0]} is none of {', '.join(FAMILIES)}.")
    found = {}
    for family, settings in FAMILIES.items():
        if families is not None and family not in families and family != "none":
            continue
        if family in EVICTIONS and tuple(levels) != KEPT:
            settings = _at_levels(settings, levels)
        elif quick and families is None:
            settings = {k: v for k, v in settings.items() if k in QUICK.get(family, settings)}
        if settings:
            found[family] = settings
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
    return config.SINK_TOKENS + config.RECENT_TOKENS + 1
