"""What every method is tried with: settings, what it would have learned, every kind of cache."""

from functools import cache as once

from compression.coded.calibration import calibrate
from compression.methods import kvtc_fit
from compression.methods.dimensions import fitted_bases
from compression.registry import make, needs_calibration
from data.extraction import prefill
from tests import families
from tests.caches import random_gradients

ONES = {"token_rank": 1, "embedding_rank": 1}
CHOSEN = {"token_rank": None, "embedding_rank": None}
SETTINGS = {
    "none": [{}],
    "coded": [{"step": 0.03}, {"step": 0.3, "sink_tokens": 4}, {"step": 1e-3, "sink_tokens": 0}],
    "coded_fixed": [{"step": 0.03}, {"step": 1e-4, "sink_tokens": 0}],
    "kvtc": [
        {"ratio": 4, "sink_tokens": 1, "recent_tokens": 2},
        {"ratio": 8, "sink_tokens": 0, "recent_tokens": 0},
        {"ratio": 64},
    ],
    "coded_chunks": [
        {"step": 0.03, "chunk_tokens": 4},
        {"step": 1e-3, "chunk_tokens": 3, "recent_tokens": 2},
        {"step": 0.3},
    ],
    "fp8": [{}, {"sink_tokens": 1, "recent_tokens": 2}],
    "int8": [{}],
    "kivi": [{"bits": 4, "recent_tokens": 0}, {"bits": 3, "group": 4, "recent_tokens": 2}],
    "rotated": [{"bits": 3}, {"bits": 2, "unrotated_keys": True, "sink_tokens": 1}],
    "tucker": [
        ONES,
        ONES | {"sink_tokens": 2, "recent_tokens": 1},
        ONES | {"sink_tokens": 1000},
        ONES | {"sink_tokens": 1, "unrotated_keys": True},
        CHOSEN | {"energy": 0.9},
        CHOSEN | {"target_ratio": 1.0},
    ],
    "tucker_quantised": [ONES, ONES | {"bits": 4}],
    "svd": [{"keep": 0.5}, {"keep": None, "energy": 0.9, "unrotated_keys": True}],
    "cross_layer_svd": [{"keep": 0.5, "group": 2}, {"keep": 1.0, "sink_tokens": 1}],
    "merged_dims": [{"keep": 0.5}, {"keep": 1.0, "similarity": 0.3, "largest": 3}],
    "dropped_dims": [{"keep": 0.5}, {"sparser": 0.2}, {"sparser": 0.2, "at_random": 1}],
    "embedding_factor": [
        {"keep": 0.5, "unrotated_keys": True, "sink_tokens": 2, "recent_tokens": 1}
    ],
    "pca": [{"keep": 0.25}, {"keep": 1.0}],
    "calibrated_pca": [{"keep": 0.5}, {"keep": 1.0, "unrotated_keys": True}],
    "recent": [{"keep": 0.5}],
    "key_norm": [{"keep": 0.4, "sink_tokens": 1}],
    "random": [{"keep": 0.1, "seed": 3, "sink_tokens": 0}],
    "attention": [{"keep": 0.4}],
    "importance": [{"keep": 0.9, "recent_tokens": 1}],
    "heavy_hitter": [{"keep": 0.5}],
    "snapkv": [{"keep": 0.5, "recent_tokens": 2}],
    "key_diff": [{"keep": 0.3, "sink_tokens": 1, "recent_tokens": 1}],
    "evict": [{}, {"layers": (0, 3)}, {"heads": ((0, 0), (2, 1)), "layers": (5,)}],
    "zero_small": [{"percentage": 0.0}, {"percentage": 20.0}],
    "merged_heads": [{}, {"unrotated_keys": True}],  # groups of heads: test_merging.py
    "merged_tokens": [{"similarity": 0.2}, {"similarity": 1.0, "unrotated_keys": True}],
    "composed": [
        {"eviction": {"name": "key_diff", "keep": 0.5}, "then": {"name": "int8"}},
        {
            "eviction": {"name": "importance", "keep": 0.4},
            "then": {"name": "calibrated_pca", "keep": 0.5, "unrotated_keys": True},
        },
    ],
}
CASES = [(name, number) for name, each in SETTINGS.items() for number in range(len(each))]
# Of each kind of cache one: all alike, not rotated, windows, partly rotated with unequal widths, a
# latent, a layer without keys and values, layers of different widths, no attention to see.
KINDS_OF_CACHE = (
    "llama_gqa",
    "gpt2",
    "gemma2",
    "mimo",
    "deepseek_v3",
    "qwen3_next",
    "gemma4",
    "falcon",
)


@once
def learned(which, cache_of, unrotated=False):
    """What a method would have learned of a model on another text with caches of these shapes."""
    if which == "bases":
        return fitted_bases([cache_of()], unrotated, "another text")
    if which == "kvtc":
        return kvtc_fit.fitted([cache_of()], "another text")
    # With no room each layer has a basis of its own, so that there is something to turn together.
    return calibrate([random_gradients(cache_of())], "random gradients", room=1)


def calibration_for(name, number, cache_of):
    settings = SETTINGS[name][number]
    if not needs_calibration(name, settings):
        return None
    if name.startswith("coded"):
        return learned("gradients", cache_of)
    if name == "kvtc":
        return learned("kvtc", cache_of)
    return learned("bases", cache_of, settings.get("then", settings).get("unrotated_keys", False))


def method_for(name, number, cache_of):
    return make(name, SETTINGS[name][number], calibration_for(name, number, cache_of))


@once
def of_family(family):
    start = prefill(families.loaded(family), families.token_ids(24), probe=True)
    return lambda: start.cache


def asks_for_attention(method):
    evicts = getattr(method, "eviction", method)
    return evicts.name in {"attention", "importance", "heavy_hitter", "snapkv"}
