"""Every default a person may want to edit, with unit and reason, and what one run is made of.

Edit the constants below, or override most of them with a flag of `main.py`. `check()` runs at the
start of every command and names a constant that makes no sense.
"""

import math
import os
from dataclasses import dataclass
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
MIN_QUERIES = 32  # ... of those that this many queries can see: the last few are rated by too few

# --- Pictures ---------------------------------------------------------------------------------

OUTPUT_DIR = "graphs"  # relative to the folder the command is run in
FIGURE_DPI = 120  # dots per inch of the PNG files

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
FOCUSES = ("all", "layers", "heads", "tokens", "embeddings")


class UsageError(Exception):
    """What a person did cannot work. One sentence: what was given, what is allowed, what to do."""


@dataclass(frozen=True)
class RunConfig:
    """One run: the flags of the command line over the defaults above."""

    mode: str = "analyze"
    analysis_focus: str = "all"
    model: str = DEFAULT_MODEL
    device: str = DEVICE
    dtype: str = DTYPE
    trust_remote_code: bool = TRUST_REMOTE_CODE
    prompt: str | None = None
    text_file: str | None = None
    use_wikitext: bool = USE_WIKITEXT
    wikitext_index: int = WIKITEXT_INDEX
    sequence_length: int | None = None  # tokens; None: the mode decides
    new_tokens: int = NEW_TOKENS
    output_dir: str = OUTPUT_DIR
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.prompt is not None and self.text_file is not None:
            raise UsageError("--prompt and --text_file were both given: keep the one to be read.")
        if self.sequence_length is not None and self.sequence_length < 1:
            raise UsageError(
                f"--sequence_length is {self.sequence_length}: it takes 1 or more tokens."
            )
        if self.new_tokens < 1:
            raise UsageError(f"--new_tokens is {self.new_tokens}: it takes 1 or more tokens.")
        if self.wikitext_index < 0:
            raise UsageError(
                f"--wikitext_index is {self.wikitext_index}: samples are counted from 0."
            )


def cache_folder() -> Path:
    """The user's folder for the converted default model; not created here."""
    chosen = os.environ.get("KV_CACHE_HOME") or CACHE_FOLDER
    if chosen:
        return Path(chosen).expanduser()
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


def _is_path(value: object) -> bool:
    return isinstance(value, str | Path) and bool(str(value).strip())


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
        "PATTERN_DIMS": (_is_count(PATTERN_DIMS, 1), "a whole number from 1"),
        "TOP_TOKENS": (_is_count(TOP_TOKENS, 1), "a whole number from 1"),
        "MIN_QUERIES": (_is_count(MIN_QUERIES, 1), "a whole number from 1"),
        "OUTPUT_DIR": (_is_path(OUTPUT_DIR), "a folder"),
        "FIGURE_DPI": (_is_number(FIGURE_DPI, 20, 1200), "a number between 20 and 1200"),
    }
    for name, (holds, allowed) in rules.items():
        if not holds:
            raise UsageError(f"config.py: {name} is {globals()[name]!r}: it takes {allowed}.")
