"""Whether what a person wrote into config.py makes sense: a rule for each of its constants, which
the flags that go before them follow as well."""

import difflib
import math
from typing import Any

import config
from config import UsageError
from data.vocabulary import DEVICE_MAPS, DEVICES, DTYPES, EVICTIONS, OFFLOADS, PICTURE_FORMATS
from visualization.terminal.rules import (
    SHARE,
    SOME,
    SWITCH,
    Rule,
    above_zero,
    count,
    is_number,
    number,
    one_of,
    optional,
    path,
    several,
)

LONGEST = 60  # characters of a value that are shown


def _are_weights(weights: object) -> bool:
    if not isinstance(weights, dict) or set(weights) != {"key", "value", "energy"}:
        return False
    return all(is_number(w, 0, math.inf) for w in weights.values()) and sum(weights.values()) > 0


def _is_dense(share: Any) -> bool:
    return is_number(share, 0, 1) and is_number(config.SPARSE_DIM_SHARE, share, 1)


def _counts(of: str, *names: str, low: int = 1) -> dict[str, Rule]:
    return dict.fromkeys(names, count(low, of))


RULES: dict[str, Rule] = {
    "DEFAULT_MODEL": path("a model's name, hub id, folder or .gguf file", "NAME"),
    "DEVICE": one_of(*DEVICES),
    "DTYPE": one_of(*DTYPES),
    "DEVICE_MAP": optional(one_of(*DEVICE_MAPS), "auto or None"),
    "PREFILL_CHUNK": optional(count(1, "tokens"), "1 or more tokens, or None"),
    "CACHE_OFFLOAD": one_of(*OFFLOADS),
    "TRUST_REMOTE_CODE": SWITCH,
    "CACHE_FOLDER": optional(path("a folder", "FOLDER"), "a folder or None"),
    "USE_WIKITEXT": SWITCH,
    "WIKITEXT_INDEX": count(0, shown="INDEX"),
    "MIN_SAMPLE_CHARACTERS": count(1, "characters"),
    "HUB_PATIENCE_S": number(0.1, 60, "seconds between 0.1 and 60"),
    **_counts(
        "tokens",
        "SEQUENCE_LENGTH",
        "NEW_TOKENS",
        "TUCKER_SEQUENCE_LENGTH",
        "CONTEXT_TOKENS",
        "SCORE_TOKENS",
        "TRIAL_SCORE_TOKENS",
    ),
    "SPARSITY_THRESHOLD_PERCENTAGE": number(1e-6, 100, "a percentage above 0 and at most 100"),
    "IMPORTANCE_WEIGHTS": Rule(
        _are_weights, "weights from 0 for key, value and energy, not all of them 0"
    ),
    "SPARSE_DIM_SHARE": SHARE,
    "DENSE_DIM_SHARE": Rule(_is_dense, "a share between 0 and 1, not above SPARSE_DIM_SHARE"),
    "PATTERN_DIMS": count(1, "dimensions", 7),
    "TOP_TOKENS": count(1, "tokens", 15),
    "MIN_QUERIES": count(1, "queries"),
    **_counts("texts", "ANALYZED_TEXTS", "NUM_SAMPLES"),
    "ACCEPTABLE_KL": number(0, math.inf, "nats from 0", "NATS"),
    **_counts("ranks", "TOKEN_RANK", "EMBEDDING_RANK", "SUBSPACE_RANK"),
    "TOKEN_RANKS": several(count(1, "ranks", shown="RANK"), "ranks such as 16,32"),
    "EMBEDDING_RANKS": several(count(1, "ranks", shown="RANK"), "ranks such as 16,32"),
    **_counts("tokens", "SINK_TOKENS", "RECENT_TOKENS", low=0),
    "LEVELS": several(SOME, "shares above 0, at most 1, such as 0.75,0.5"),
    **dict.fromkeys(
        (
            "KEEP_TOKENS",
            "DIM_SIMILARITY",
            "LAYER_SIMILARITY",
            "HEAD_SIMILARITY",
            "TOKEN_SIMILARITY",
        ),
        SOME,
    ),
    "LARGEST_DIM_GROUP": count(1, "dimensions"),
    "CALIBRATION_TEXTS": count(1, "texts"),
    "PRUNED_LAYERS": count(1, "layers"),
    "CONTROLS": count(1, "choices"),
    "TOKEN_SCORES": several(one_of(*EVICTIONS), f"some of {', '.join(EVICTIONS)}"),
    "TRIAL_NOISE": above_zero("a relative error above 0", "ERROR"),
    "SIMILARITY_POSITIONS": count(1, "positions"),
    "OUTPUT_DIR": path("a folder", "FOLDER"),
    "FIGURE_FORMAT": one_of(*PICTURE_FORMATS),
    "FIGURE_DPI": number(20, 1200, "a number between 20 and 1200"),
}


def check() -> None:
    """Raise UsageError naming the first constant that is missing, that there is not, or that was
    edited into something unusable."""
    there = {name for name in vars(config) if name.isupper()}
    for name in sorted(there - set(RULES)):
        raise UsageError(f"config.py: {name} is no constant of this program", _meant(name))
    for name, rule in RULES.items():
        if name not in there:
            raise UsageError(f"config.py: {name} is missing", f"it takes {rule.words}")
        value = getattr(config, name)
        if not rule.holds(value):
            raise UsageError(f"config.py: {name} is {shortened(value)}", f"it takes {rule.words}")


def _meant(name: str) -> str:
    alike = difflib.get_close_matches(name, RULES, 1)
    return f"perhaps {alike[0]} is meant" if alike else "write it in small letters, or remove it"


def shortened(value: object) -> str:
    """A value as it is written, or as much of that as helps."""
    try:
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
    except ValueError:  # of an integer of more digits than Python writes
        return "a number without end"
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"
