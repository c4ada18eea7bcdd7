"""Every default a person may want to edit, with unit and reason.

Edit the constants below, or override most of them with a flag of `main.py`. Every command checks
them on its start (visualization/terminal/config_check.py) and names one that makes no sense.
"""

import os
from pathlib import Path

# --- Model ------------------------------------------------------------------------------------

DEFAULT_MODEL = "smollm2-135m"  # this name, a hub id, a local folder, or a .gguf file
DEVICE = "auto"  # auto takes cuda, then mps, then cpu
DTYPE = "auto"  # auto is float32 on the cpu, elsewhere what the checkpoint was saved in
DEVICE_MAP = None  # "auto" spreads a model over all cards, then memory, then disk; DEVICE is moot
PREFILL_CHUNK = 2048  # tokens read at a time: what a longer text takes beside its cache is bounded
CACHE_OFFLOAD = "none"  # "memory" or "disk": keys and values are moved there as they are made
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
ANALYZED_TEXTS = 1  # texts that both read; of more, tables and pictures show means and errors
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
CONTEXT_TOKENS = 1024  # ... and the other modes that compress
SCORE_TOKENS = 256  # tokens after the context on which the cost is measured
NUM_SAMPLES = 4  # texts that are scored, for a standard error
ACCEPTABLE_KL = 0.01  # nats per token: what costs less is called cheap
TOKEN_RANK = 32
EMBEDDING_RANK = 32
TOKEN_RANKS = (16, 32, 64, 96)  # tried beside them, with each of the
EMBEDDING_RANKS = (16, 32, 48, 64)
SINK_TOKENS = 4  # first tokens kept as they are: nearly all queries look at them
RECENT_TOKENS = 64  # most recent tokens kept as they are
LEVELS = (0.75, 0.5, 0.25)  # kept: of dimensions by `compress` and `prune`, of tokens by `compare`
DIM_SIMILARITY = 0.9  # |cosine over tokens| from which dimensions of a head are merged ...
LARGEST_DIM_GROUP = 8  # ... into groups of at most this many
CALIBRATION_TEXTS = 2  # other texts that a basis is fitted on once per model
KEEP_TOKENS = 0.5  # share of the tokens that pruning by token keeps ...
TOKEN_SCORES = ("key_norm", "attention", "recent", "random")  # ... by each of these scores
PRUNED_LAYERS = 3  # how many the heuristics may name
CONTROLS = 3  # random choices of the same size that a recommendation has to beat
TRIAL_NOISE = 0.3  # relative error of the noise that the trial of heuristics adds
TRIAL_SCORE_TOKENS = 128  # scored in the trial, which runs some hundred forward passes

# --- Similarity -------------------------------------------------------------------------------

LAYER_SIMILARITY = 0.8  # |cosine| from which two layers are called alike, and are merged ...
HEAD_SIMILARITY = 0.8  # ... two KV heads of any layers ...
TOKEN_SIMILARITY = 0.9  # ... two tokens of one layer
SIMILARITY_POSITIONS = 256  # positions that are compared, the same ones everywhere
SUBSPACE_RANK = 16  # leading directions of which principal angles are taken

# --- Pictures ---------------------------------------------------------------------------------

OUTPUT_DIR = "graphs"  # relative to the folder the command is run in
FIGURE_FORMAT = "png"  # "pdf" and "svg" are drawings that stay sharp at any size
FIGURE_DPI = 120  # dots per inch of PNG files, and of dense parts of the others


class UsageError(Exception):
    """What a person did cannot work: one sentence of what was given and why it will not do, and
    of what is allowed or what to do instead. Arguments stand in it as `name`; where they came from
    the command line, that shows them as flags."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason, advice)
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.reason}: {self.advice}." if self.advice else f"{self.reason}."


def user_path(path: str, name: str) -> Path:
    """A path that a person gave as `name`, with ~ written out. Raises UsageError for one that no
    system takes, or that no table or manifest could name."""
    if "\0" in path or any("\ud800" <= c <= "\udfff" for c in path):
        raise UsageError(f"{name} is {path!r}", "a path is text in UTF-8 and without a zero byte")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{name} is {path}", "there is no such user's folder") from None


def cache_folder() -> Path:
    """The user's folder for the converted default model; not created here."""
    chosen = os.environ.get("KV_CACHE_HOME") or CACHE_FOLDER
    if chosen:
        return user_path(chosen, "The cache folder")
    from platformdirs import user_cache_path

    return user_cache_path("kv-cache-visualization")
