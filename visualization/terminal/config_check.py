"""Whether what a person wrote into config.py makes sense."""

import math

import config
from config import UsageError
from visualization.terminal.rules import (
    SHARE,
    SOME,
    SWITCH,
    Rule,
    count,
    is_number,
    is_text,
    number,
    one_of,
    several,
)

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


def _are_weights(weights: object) -> bool:
    if not isinstance(weights, dict) or set(weights) != {"key", "value", "energy"}:
        return False
    return all(is_number(w, 0, math.inf) for w in weights.values()) and sum(weights.values()) > 0


RULES: dict[str, Rule] = {
    "DEFAULT_MODEL": (is_text, "a model's name, hub id, folder or .gguf file"),
    "DEVICE": one_of(*config.DEVICES),
    "DTYPE": one_of(*config.DTYPES),
    "TRUST_REMOTE_CODE": SWITCH,
    "CACHE_FOLDER": (lambda value: value is None or is_text(value), "a folder or None"),
    "USE_WIKITEXT": SWITCH,
    "WIKITEXT_INDEX": count(0),
    "HUB_PATIENCE_S": number(0.1, 60, "seconds between 0.1 and 60"),
    "SPARSITY_THRESHOLD_PERCENTAGE": number(1e-6, 100, "a percentage above 0 and at most 100"),
    "IMPORTANCE_WEIGHTS": (
        _are_weights,
        "weights from 0 for key, value and energy, not all of them 0",
    ),
    "SPARSE_DIM_SHARE": SHARE,
    "DENSE_DIM_SHARE": (
        lambda v: is_number(v, 0, 1) and is_number(config.SPARSE_DIM_SHARE, v, 1),
        "a share between 0 and 1, not above SPARSE_DIM_SHARE",
    ),
    "PATTERN_DIMS": count(1, 7),
    "TOP_TOKENS": count(1, 15),
    "TOKEN_RANKS": several(count(1), "whole numbers from 1"),
    "EMBEDDING_RANKS": several(count(1), "whole numbers from 1"),
    "SINK_TOKENS": count(0),
    "RECENT_TOKENS": count(0),
    "LEVELS": several(SOME, "shares above 0, at most 1"),
    "ACCEPTABLE_KL": number(0, math.inf, "nats from 0"),
    "TRIAL_NOISE": number(1e-6, 10, "a relative error above 0, at most 10"),
    "OUTPUT_DIR": (is_text, "a folder"),
    "FIGURE_DPI": number(20, 1200, "a number between 20 and 1200"),
    **dict.fromkeys(("KEEP_TOKENS", *SIMILARITIES), SOME),
    **dict.fromkeys(COUNTS, count(1)),
}


def check() -> None:
    """Raise UsageError naming the first constant that was edited into something unusable."""
    for name, (holds, allowed) in RULES.items():
        if not holds(getattr(config, name)):
            raise UsageError(
                f"config.py: {name} is {getattr(config, name)!r}", f"it takes {allowed}"
            )
