"""Every default a person may want to edit, with unit and reason, and the flags that override it.

Edit the constants below, or override most of them with a flag of `main.py`. Every command checks
them on its start (data/config_check.py) and names a constant that makes no sense.
"""

import argparse
import math
import os
from collections.abc import Callable
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
LEVELS = (0.75, 0.5, 0.25)  # shares of the embedding dimensions that `compress` keeps
DIM_SIMILARITY = 0.9  # |cosine over tokens| from which dimensions of a head are merged ...
LARGEST_DIM_GROUP = 8  # ... into groups of at most this many
CALIBRATION_TEXTS = 2  # other texts that a basis is fitted on once per model
KEEP_TOKENS = 0.5  # share of the tokens that pruning by token keeps
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
FIGURE_DPI = 120  # dots per inch of the PNG files

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
FOCUSES = ("all", "layers", "heads", "tokens", "embeddings")
PRUNE_METHODS = ("layer", "head", "dimension", "threshold", "token")
TOKEN_SCORES = ("key_norm", "attention", "recent", "random")


class UsageError(Exception):
    """What a person did cannot work. One sentence: what was given, what is allowed, what to do."""


def _shares(text: str) -> tuple[float, ...]:
    """0.75,0.5 -> (0.75, 0.5)"""
    return _listed(text, float, "shares such as 0.75,0.5")


def _names(text: str) -> tuple[str, ...]:
    """coded,kivi -> ("coded", "kivi")"""
    return tuple(name.strip() for name in text.split(","))


def _layers(text: str) -> tuple[int, ...]:
    """0,1,2 -> (0, 1, 2)"""
    return _listed(text, int, "layers such as 0,1,2")


def _heads(text: str) -> tuple[tuple[int | None, int], ...]:
    """4:0,2 -> ((4, 0), (None, 2)): head 0 of layer 4, and head 2 of every layer."""

    def head(part: str) -> tuple[int | None, int]:
        layer, colon, number = part.rpartition(":")
        return (int(layer) if colon else None), int(number)

    return _listed(text, head, "KV heads such as 0,2 or, as layer:head, 4:0,4:2")


def _listed(text: str, read: Callable, allowed: str) -> tuple:
    try:
        return tuple(read(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} was given: it takes {allowed}") from None


def _flag(default: object, group: str, text: str, **options):
    """A field of RunConfig that is a flag of the same name; `options` go to argparse."""
    return field(default=default, metadata={"group": group, "help": text, **options})


def _set_by(constant: str, group: str, text: str, **options):
    """The same with a constant above for its default, as it stands when a run is made."""
    now = lambda: globals()[constant]  # noqa: E731
    return field(default_factory=now, metadata={"group": group, "help": text, **options})


WHAT, MODEL, TEXT, SCORING = "what to do", "model", "text", "scoring, by modes that compress"
RANKS, PRUNE, COMPARE, OUTPUT = "tucker and compress", "prune", "compare and store", "output"
SWITCH = {"action": "store_true"}
EITHER = {"action": argparse.BooleanOptionalAction}


@dataclass(frozen=True)
class RunConfig:
    """One run: the flags of the command line over the defaults above."""

    mode: str = _flag("analyze", WHAT, "what to do")
    analysis_focus: str = _flag("all", WHAT, "which pictures `analyze` makes", choices=FOCUSES)
    measure: bool = _flag(False, WHAT, "let `analyze` measure its recommendations", **SWITCH)
    model: str = _set_by("DEFAULT_MODEL", MODEL, "this name, a hub id, a folder, or a .gguf file")
    device: str = _set_by("DEVICE", MODEL, "where to run", choices=DEVICES)
    dtype: str = _set_by("DTYPE", MODEL, "in which precision", choices=DTYPES)
    trust_remote_code: bool = _set_by(
        "TRUST_REMOTE_CODE", MODEL, "let a model run Python code of its own", **EITHER
    )
    prompt: str | None = _flag(None, TEXT, "this text")
    text_file: str | None = _flag(
        None, TEXT, "a UTF-8 .txt file, or a .jsonl file with a field `text`"
    )
    use_wikitext: bool = _set_by(
        "USE_WIKITEXT", TEXT, "a WikiText article, or else the offline corpus", **EITHER
    )
    wikitext_index: int = _set_by(
        "WIKITEXT_INDEX", TEXT, "which sample; `--mode list_samples` shows them"
    )
    sequence_length: int | None = _flag(
        None,
        TEXT,
        f"tokens to read; where it is not given {SEQUENCE_LENGTH}, tucker: "
        f"{TUCKER_SEQUENCE_LENGTH}, analyze_generation: all",
        type=int,
    )
    new_tokens: int = _set_by("NEW_TOKENS", TEXT, "tokens to generate after the text")
    context_tokens: int | None = _flag(
        None, SCORING, "tokens whose cache is compressed; another name for --sequence_length",
        type=int,
    )  # fmt: skip
    score_tokens: int | None = _flag(
        None,
        SCORING,
        f"tokens after the context to score; where it is not given {SCORE_TOKENS}, fewer with "
        "--quick",
        type=int,
    )
    num_samples: int | None = _flag(
        None,
        SCORING,
        f"texts to score; where it is not given {NUM_SAMPLES}, fewer with --quick",
        type=int,
    )
    continuation: str | None = _flag(None, SCORING, "score this text after the context instead")
    token_rank: int = _set_by("TOKEN_RANK", RANKS, "rank along tokens")
    embedding_rank: int = _set_by("EMBEDDING_RANK", RANKS, "rank along embedding dimensions")
    energy: float | None = _flag(
        None, RANKS, "choose ranks that keep this share of squared norms", type=float
    )
    target_ratio: float | None = _flag(
        None, RANKS, "choose ranks for this ratio of what is decomposed", type=float
    )
    sink_tokens: int = _set_by("SINK_TOKENS", RANKS, "first tokens that stay uncompressed")
    recent_tokens: int = _set_by(
        "RECENT_TOKENS", RANKS, "most recent tokens that stay uncompressed"
    )
    unrotated_keys: bool = _flag(
        False, RANKS, "also compress keys as they were before rotary embedding", **SWITCH
    )
    no_sensitivity: bool = _flag(False, RANKS, "skip the measured cost of each layer", **SWITCH)
    levels: tuple[float, ...] = _set_by(
        "LEVELS",
        RANKS,
        "shares that are kept: of dimensions by compress, of tokens by compare",
        type=_shares,
    )
    prune_layers: tuple[int, ...] | None = _flag(
        None, PRUNE, "layers to prune: 0,1,2", type=_layers
    )
    prune_heads: tuple | None = _flag(
        None,
        PRUNE,
        "KV heads to prune: 0,2 in every layer (or in those of --prune_layers), 4:0 in layer 4",
        type=_heads,
    )
    prune_method: str | None = _flag(None, PRUNE, "what to prune by", choices=PRUNE_METHODS)
    keep_tokens: float | None = _flag(None, PRUNE, "share of the tokens to keep", type=float)
    token_score: str | None = _flag(
        None, PRUNE, "which tokens to keep; without it each is tried", choices=TOKEN_SCORES
    )
    trial: bool = _flag(
        False, PRUNE, "put the heuristics on trial: measure each layer and KV head", **SWITCH
    )
    methods: tuple[str, ...] | None = _flag(
        None, COMPARE, "only these families of methods: coded,kivi", type=_names
    )
    quick: bool = _flag(False, COMPARE, "fewer settings, texts and scored tokens", **SWITCH)
    max_bits: float | None = _flag(None, COMPARE, "budget: bits per value", type=float)
    max_bytes_per_token: float | None = _flag(
        None, COMPARE, "budget: stored bytes per token of context", type=float
    )
    max_kl: float | None = _flag(None, COMPARE, "budget: nats per token", type=float)
    memory_gib: float | None = _flag(
        None, COMPARE, "a card's memory: how long could a context be?", type=float
    )
    show_generation: int = _flag(
        0, COMPARE, "tokens to generate from the full and the compressed cache, side by side"
    )
    save_compressed: str | None = _flag(None, COMPARE, "store: the file of a compressed prompt")
    load_compressed: str | None = _flag(None, COMPARE, "store: go on from such a file")
    output_dir: str = _set_by("OUTPUT_DIR", OUTPUT, "folder of the results")
    quiet: bool = _flag(False, OUTPUT, "no progress bars and no findings", **SWITCH)

    def __post_init__(self) -> None:
        if self.prompt is not None and self.text_file is not None:
            raise UsageError("--prompt and --text_file were both given: keep the one to be read.")
        if None not in (self.sequence_length, self.context_tokens):
            raise UsageError("--sequence_length and --context_tokens were both given: keep one.")
        for name in ("sequence_length", "context_tokens", *COUNTED_FLAGS):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value}: it takes 1 or more.")
        for name in ("levels", "keep_tokens"):
            given = getattr(self, name)
            for share in given if isinstance(given, tuple) else (given,):
                if share is not None and not 0 < share <= 1:
                    raise UsageError(f"--{name}: {share:g} is no share above 0 and at most 1.")
        for name in ("max_bits", "max_bytes_per_token", "max_kl", "memory_gib"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name} is {value:g}: it takes a number above 0.")
        if self.show_generation < 0:
            raise UsageError(f"--show_generation is {self.show_generation}: 0 or more tokens.")
        if not self.output_dir.strip():
            raise UsageError("--output_dir is empty: give a folder.")
        if self.wikitext_index < 0:
            raise UsageError(
                f"--wikitext_index is {self.wikitext_index}: samples are counted from 0."
            )

    def context(self, default: int) -> int:
        """Tokens whose cache is compressed."""
        return self.context_tokens or self.sequence_length or default

    def n_scored(self) -> int:
        """Tokens after the context to score."""
        return self.score_tokens or SCORE_TOKENS

    def n_texts(self) -> int:
        """Texts to score."""
        return self.num_samples or NUM_SAMPLES


COUNTED_FLAGS = ("new_tokens", "score_tokens", "num_samples")


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
