"""Whether what a person wrote into config.py makes sense."""

import math
from collections.abc import Callable

import config
from config import UsageError

SIMILARITIES = ("DIM_SIMILARITY", "LAYER_SIMILARITY", "HEAD_SIMILARITY", "TOKEN_SIMILARITY")
COUNTS = (  # constants that are whole numbers from 1
    "MIN_SAMPLE_CHARACTERS",
    "SEQUENCE_LENGTH",
    "NEW_TOKENS",
    "MIN_QUERIES",
    "TUCKER_SEQUENCE_LENGTH",
    "CONTEXT_TOKENS",
    "SCORE_TOKENS",
    "NUM_SAMPLES",
    "TOKEN_RANK",
    "EMBEDDING_RANK",
    "LARGEST_DIM_GROUP",
    "CALIBRATION_TEXTS",
    "PRUNED_LAYERS",
    "CONTROLS",
    "TRIAL_SCORE_TOKENS",
    "SIMILARITY_POSITIONS",
    "SUBSPACE_RANK",
)


def _is_number(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high


def _are_weights(weights: object) -> bool:
    if not isinstance(weights, dict) or set(weights) != {"key", "value", "energy"}:
        return False
    return all(_is_number(w, 0, math.inf) for w in weights.values()) and sum(weights.values()) > 0


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


Rule = tuple[Callable[[object], bool], str]  # whether a value will do, and which values do


def _number(low: float, high: float, words: str) -> Rule:
    return (lambda value: _is_number(value, low, high)), words


def _count(low: int, high: float = math.inf) -> Rule:
    whole = lambda value: isinstance(value, int) and _is_number(value, low, high)  # noqa: E731
    return whole, f"a whole number from {low}" if high == math.inf else f"{low} to {high}"


def _several(rule: Rule, words: str) -> Rule:
    holds, _ = rule
    return (lambda v: isinstance(v, tuple | list) and len(v) > 0 and all(map(holds, v))), words


def _one_of(*allowed: object) -> Rule:
    return (lambda value: value in allowed), f"one of {', '.join(map(str, allowed))}"


_SWITCH: Rule = (lambda value: isinstance(value, bool)), "True or False"
_SHARE = _number(0, 1, "a share between 0 and 1")
_SOME = _number(1e-6, 1, "a share above 0, at most 1")
RULES: dict[str, Rule] = {
    "DEFAULT_MODEL": (_is_path, "a model's name, hub id, folder or .gguf file"),
    "DEVICE": _one_of(*config.DEVICES),
    "DTYPE": _one_of(*config.DTYPES),
    "TRUST_REMOTE_CODE": _SWITCH,
    "CACHE_FOLDER": (lambda value: value is None or _is_path(value), "a folder or None"),
    "USE_WIKITEXT": _SWITCH,
    "WIKITEXT_INDEX": _count(0),
    "HUB_PATIENCE_S": _number(0.1, 60, "seconds between 0.1 and 60"),
    "SPARSITY_THRESHOLD_PERCENTAGE": _number(1e-6, 100, "a percentage above 0 and at most 100"),
    "IMPORTANCE_WEIGHTS": (
        _are_weights,
        "weights from 0 for key, value and energy, not all of them 0",
    ),
    "SPARSE_DIM_SHARE": _SHARE,
    "DENSE_DIM_SHARE": (
        lambda v: _is_number(v, 0, 1) and _is_number(config.SPARSE_DIM_SHARE, v, 1),
        "a share between 0 and 1, not above SPARSE_DIM_SHARE",
    ),
    "PATTERN_DIMS": _count(1, 7),
    "TOP_TOKENS": _count(1, 15),
    "TOKEN_RANKS": _several(_count(1), "whole numbers from 1"),
    "EMBEDDING_RANKS": _several(_count(1), "whole numbers from 1"),
    "SINK_TOKENS": _count(0),
    "RECENT_TOKENS": _count(0),
    "LEVELS": _several(_SOME, "shares above 0, at most 1"),
    "ACCEPTABLE_KL": _number(0, math.inf, "nats from 0"),
    "TRIAL_NOISE": _number(1e-6, 10, "a relative error above 0, at most 10"),
    "OUTPUT_DIR": (_is_path, "a folder"),
    "FIGURE_DPI": _number(20, 1200, "a number between 20 and 1200"),
    **dict.fromkeys(("KEEP_TOKENS", *SIMILARITIES), _SOME),
    **dict.fromkeys(COUNTS, _count(1)),
}


def check() -> None:
    """Raise UsageError naming the first constant that was edited into something unusable."""
    for name, (holds, allowed) in RULES.items():
        if not holds(getattr(config, name)):
            raise UsageError(f"config.py: {name} is {getattr(config, name)!r}: it takes {allowed}.")
