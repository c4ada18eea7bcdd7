"""Every default a person may want to edit, with unit and reason, and the flags that override it.

Edit the constants below, or override most of them with a flag of `main.py`. `check()` runs at the
start of every command and names a constant that makes no sense.
"""

import argparse
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# --- Model ------------------------------------------------------------------------------------

DEFAULT_MODEL = "smollm2-135m"  # this name, a hub id, a local folder, or a .gguf file
DEVICE = "auto"  # auto takes cuda, then mps, then cpu
DTYPE = "auto"  # auto is float32 on the cpu, elsewhere what the checkpoint was saved in
TRUST_REMOTE_CODE = False  # True lets a model folder or hub repository run its own Python code

# Where the default model is kept; None is the convention of this system (~/.cache on Linux).
# The environment variable KV_CACHE_HOME goes before both.
CACHE_FOLDER = None

# --- Text -------------------------------------------------------------------------------------

USE_WIKITEXT = True  # False reads the offline corpus: the language reference inside Python
WIKITEXT_INDEX = 0  # which sample of the corpus; `--mode list_samples` shows them
MIN_SAMPLE_CHARACTERS = 5000  # shorter articles are no samples: about 1024 tokens of English
HUB_PATIENCE_S = 3.0  # seconds to wait for the hub's first answer before working without it

# --- Analysis ---------------------------------------------------------------------------------

SEQUENCE_LENGTH = 1024  # tokens of text that `analyze` reads; `analyze_generation` reads it all
NEW_TOKENS = 32  # tokens generated after the text, for the generation stages
SPARSITY_THRESHOLD_PERCENTAGE = 1.0  # % of the global maximum below which an entry counts as sparse
IMPORTANCE_WEIGHTS = {"key": 0.35, "value": 0.35, "energy": 0.30}  # of the token importance score
SPARSE_DIM_SHARE = 0.80  # a dimension sparser than this may be worth removing (red line)
DENSE_DIM_SHARE = 0.20  # a dimension less sparse than this is likely critical (green line)
PATTERN_DIMS = 5  # dimensions drawn in each panel of the position patterns
TOP_TOKENS = 5  # tokens named in pictures and findings ...
MIN_QUERIES = 64  # ... of those that this many queries can see: the last few are rated by too few

# --- Compression ------------------------------------------------------------------------------

TUCKER_SEQUENCE_LENGTH = 2048  # tokens of context that `tucker` compresses
SCORE_TOKENS = 256  # tokens after the context on which the cost is measured
NUM_SAMPLES = 4  # texts that are scored, for a standard error
TOKEN_RANK = 32
EMBEDDING_RANK = 32
TOKEN_RANKS = (16, 32, 64, 96)  # tried beside them, with each of the
EMBEDDING_RANKS = (16, 32, 48, 64)
SINK_TOKENS = 4  # first tokens kept as they are: nearly all queries look at them
RECENT_TOKENS = 64  # most recent tokens kept as they are

# --- Pictures ---------------------------------------------------------------------------------

OUTPUT_DIR = "graphs"  # relative to the folder the command is run in
FIGURE_DPI = 120  # dots per inch of the PNG files

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
FOCUSES = ("all", "layers", "heads", "tokens", "embeddings")
COMPRESSION_COUNTS = {
    "TUCKER_SEQUENCE_LENGTH": 1,
    "SCORE_TOKENS": 1,
    "NUM_SAMPLES": 1,
    "TOKEN_RANK": 1,
    "EMBEDDING_RANK": 1,
    "SINK_TOKENS": 0,
    "RECENT_TOKENS": 0,
}


class UsageError(Exception):
    """What a person did cannot work. One sentence: what was given, what is allowed, what to do."""


def _constant(name: str):
    """A field's default: the constant as it stands when a run is made, after `check`."""
    return field(default_factory=lambda: globals()[name])


@dataclass(frozen=True)
class RunConfig:
    """One run: the flags of the command line over the defaults above."""

    mode: str = "analyze"
    analysis_focus: str = "all"
    model: str = _constant("DEFAULT_MODEL")
    device: str = _constant("DEVICE")
    dtype: str = _constant("DTYPE")
    trust_remote_code: bool = _constant("TRUST_REMOTE_CODE")
    prompt: str | None = None
    text_file: str | None = None
    use_wikitext: bool = _constant("USE_WIKITEXT")
    wikitext_index: int = _constant("WIKITEXT_INDEX")
    sequence_length: int | None = None  # tokens; None: the mode decides
    new_tokens: int = _constant("NEW_TOKENS")
    score_tokens: int = _constant("SCORE_TOKENS")
    num_samples: int = _constant("NUM_SAMPLES")
    token_rank: int = _constant("TOKEN_RANK")
    embedding_rank: int = _constant("EMBEDDING_RANK")
    energy: float | None = None
    target_ratio: float | None = None
    sink_tokens: int = _constant("SINK_TOKENS")
    recent_tokens: int = _constant("RECENT_TOKENS")
    unrotated_keys: bool = False
    no_sensitivity: bool = False
    output_dir: str = _constant("OUTPUT_DIR")
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.prompt is not None and self.text_file is not None:
            raise UsageError("--prompt and --text_file were both given: keep the one to be read.")
        if self.sequence_length is not None and self.sequence_length < 1:
            raise UsageError(
                f"--sequence_length is {self.sequence_length}: it takes 1 or more tokens."
            )
        for name in ("new_tokens", "score_tokens", "num_samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}: it takes 1 or more.")
        if not self.output_dir.strip():
            raise UsageError("--output_dir is empty: give a folder.")
        if self.wikitext_index < 0:
            raise UsageError(
                f"--wikitext_index is {self.wikitext_index}: samples are counted from 0."
            )


SWITCH = {"action": argparse.BooleanOptionalAction}
FLAGS = {  # group -> field of RunConfig -> what argparse needs beside its name and default
    "what to do": {
        "mode": {"help": "what to do"},
        "analysis_focus": {"choices": FOCUSES, "help": "which pictures `analyze` makes"},
    },
    "model": {
        "model": {"help": "this name, a hub id, a local folder, or a .gguf file"},
        "device": {"choices": DEVICES, "help": "where to run"},
        "dtype": {"choices": DTYPES, "help": "in which precision"},
        "trust_remote_code": {**SWITCH, "help": "let a model run Python code of its own"},
    },
    "text": {
        "prompt": {"help": "this text"},
        "text_file": {"help": "a UTF-8 .txt file, or a .jsonl file with a field `text`"},
        "use_wikitext": {**SWITCH, "help": "a WikiText article, or else the offline corpus"},
        "wikitext_index": {"help": "which sample; `--mode list_samples` shows them"},
        "sequence_length": {
            "type": int,
            "help": f"tokens to read; where it is not given {SEQUENCE_LENGTH}, tucker: "
            f"{TUCKER_SEQUENCE_LENGTH}, analyze_generation: all",
        },
        "new_tokens": {"help": "tokens to generate after the text"},
    },
    "scoring, by modes that compress": {
        "score_tokens": {"help": "tokens after the context that are scored"},
        "num_samples": {"help": "texts to score"},
    },
    "tucker": {
        "token_rank": {"help": "rank along tokens"},
        "embedding_rank": {"help": "rank along embedding dimensions"},
        "energy": {"type": float, "help": "choose ranks that keep this share of squared norms"},
        "target_ratio": {
            "type": float,
            "help": "choose ranks for this ratio of what is decomposed",
        },
        "sink_tokens": {"help": "first tokens that stay uncompressed"},
        "recent_tokens": {"help": "most recent tokens that stay uncompressed"},
        "unrotated_keys": {
            "action": "store_true",
            "help": "decompose keys before rotary embedding; both ways are reported",
        },
        "no_sensitivity": {"action": "store_true", "help": "skip the measured cost of each layer"},
    },
    "output": {
        "output_dir": {"help": "folder of the results"},
        "quiet": {"action": "store_true", "help": "no progress bars and no findings"},
    },
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(f"{message}. `python main.py --help` shows all flags.")


def parser(modes: Iterable[str]) -> argparse.ArgumentParser:
    """All flags; their names and defaults are the fields of RunConfig."""
    p = _Parser(
        prog="main.py",
        description="Extract the KV cache of a language model on real text, analyse and draw it.",
        epilog="Defaults are edited in config.py.",
        allow_abbrev=False,
    )
    defaults = RunConfig()
    for group, flags in FLAGS.items():
        section = p.add_argument_group(group)
        for name, options in flags.items():
            default = getattr(defaults, name)
            if isinstance(default, int) and not isinstance(default, bool):
                options = {"type": int, **options}
            if name == "mode":
                options = {"choices": list(modes), **options}
            if default not in (None, False):
                shown = str(default).replace("%", "%%")
                options = {**options, "help": f"{options['help']} (default: {shown})"}
            section.add_argument(f"--{name}", default=default, **options)
    return p


def user_path(path: str, name: str) -> Path:
    """A path that a person gave as `name`, with ~ written out."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{name} is {path}: there is no such user's folder.") from None


def cache_folder() -> Path:
    """The user's folder for the converted default model; not created here."""
    chosen = os.environ.get("KV_CACHE_HOME") or CACHE_FOLDER
    if chosen:
        return user_path(chosen, "The cache folder")
    from platformdirs import user_cache_path

    return user_cache_path("kv-cache-visualization")


def _is_number(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high


def _is_count(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _are_weights(weights: object) -> bool:
    if not isinstance(weights, dict) or set(weights) != {"key", "value", "energy"}:
        return False
    return all(_is_number(w, 0, math.inf) for w in weights.values()) and sum(weights.values()) > 0


def _are_ranks(ranks: object) -> bool:
    return (
        isinstance(ranks, tuple | list) and len(ranks) > 0 and all(_is_count(r, 1) for r in ranks)
    )


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def check() -> None:
    """Raise UsageError naming the first constant above that was edited into something unusable."""
    share = "a share between 0 and 1"
    rules = {
        "DEFAULT_MODEL": (_is_path(DEFAULT_MODEL), "a model's name, hub id, folder or .gguf file"),
        "DEVICE": (DEVICE in DEVICES, f"one of {', '.join(DEVICES)}"),
        "DTYPE": (DTYPE in DTYPES, f"one of {', '.join(DTYPES)}"),
        "TRUST_REMOTE_CODE": (isinstance(TRUST_REMOTE_CODE, bool), "True or False"),
        "CACHE_FOLDER": (CACHE_FOLDER is None or _is_path(CACHE_FOLDER), "a folder or None"),
        "USE_WIKITEXT": (isinstance(USE_WIKITEXT, bool), "True or False"),
        "WIKITEXT_INDEX": (_is_count(WIKITEXT_INDEX, 0), "a whole number from 0"),
        "MIN_SAMPLE_CHARACTERS": (_is_count(MIN_SAMPLE_CHARACTERS, 1), "a whole number from 1"),
        "HUB_PATIENCE_S": (_is_number(HUB_PATIENCE_S, 0.1, 60), "seconds between 0.1 and 60"),
        "SEQUENCE_LENGTH": (_is_count(SEQUENCE_LENGTH, 1), "a whole number from 1"),
        "NEW_TOKENS": (_is_count(NEW_TOKENS, 1), "a whole number from 1"),
        "SPARSITY_THRESHOLD_PERCENTAGE": (
            _is_number(SPARSITY_THRESHOLD_PERCENTAGE, 1e-6, 100),
            "a percentage above 0 and at most 100",
        ),
        "IMPORTANCE_WEIGHTS": (
            _are_weights(IMPORTANCE_WEIGHTS),
            "weights from 0 for key, value and energy, not all of them 0",
        ),
        "SPARSE_DIM_SHARE": (_is_number(SPARSE_DIM_SHARE, 0, 1), share),
        "DENSE_DIM_SHARE": (
            _is_number(DENSE_DIM_SHARE, 0, 1) and _is_number(SPARSE_DIM_SHARE, DENSE_DIM_SHARE, 1),
            f"{share}, not above SPARSE_DIM_SHARE",
        ),
        "PATTERN_DIMS": (_is_number(PATTERN_DIMS, 1, 7) and _is_count(PATTERN_DIMS, 1), "1 to 7"),
        "TOP_TOKENS": (_is_number(TOP_TOKENS, 1, 15) and _is_count(TOP_TOKENS, 1), "1 to 15"),
        "MIN_QUERIES": (_is_count(MIN_QUERIES, 1), "a whole number from 1"),
        "TOKEN_RANKS": (_are_ranks(TOKEN_RANKS), "whole numbers from 1"),
        "EMBEDDING_RANKS": (_are_ranks(EMBEDDING_RANKS), "whole numbers from 1"),
        **{
            name: (_is_count(globals()[name], low), f"a whole number from {low}")
            for name, low in COMPRESSION_COUNTS.items()
        },
        "OUTPUT_DIR": (_is_path(OUTPUT_DIR), "a folder"),
        "FIGURE_DPI": (_is_number(FIGURE_DPI, 20, 1200), "a number between 20 and 1200"),
    }
    for name, (holds, allowed) in rules.items():
        if not holds:
            raise UsageError(f"config.py: {name} is {globals()[name]!r}: it takes {allowed}.")
