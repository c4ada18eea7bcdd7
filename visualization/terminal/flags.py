"""The flags of the command line: one declaration of each, with its default, what it takes, and the
modes that take it.

The library knows nothing of them: a mode hands each function the flags that have the names of its
arguments (`arguments_of`), and where a message of the library names an argument as `name`,
`as_flags` shows the flag.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import config
from data.vocabulary import EVICTIONS, FAMILIES, FOCUSES, PRUNE_METHODS
from visualization.terminal import rules
from visualization.terminal.config_check import RULES
from visualization.terminal.modes import MODES
from visualization.terminal.rules import SOME, SWITCH, WORDS, Rule, above_zero, count, one_of

Given = dict[str, Any]  # flag -> its value, as typed or its default
Condition = tuple[str, tuple[object, ...]]  # a flag, and which of its values will do; () for any

WHAT, MODEL, TEXT, SCORING = "what to do", "model", "text", "how much is read and scored"
COMPRESSION, PRUNING, BUDGET, OUTPUT = "compression", "pruning", "methods and budgets", "output"
CLUSTER = "many models, many machines"

ALL = tuple(MODES)
STUDIES = ("analyze_similarity", "tucker", "compress", "prune", "compare", "tasks")
DRAW = ("analyze", "analyze_generation", *STUDIES)
PLAIN_ENDS = ("analyze_similarity", "tucker", "compress")
READ = (*DRAW, "store")
LOAD = (*READ, "calibrate")
CONTEXTS = {
    "analyze": "SEQUENCE_LENGTH",
    "tucker": "TUCKER_SEQUENCE_LENGTH",
    **dict.fromkeys(
        ("analyze_similarity", "compress", "prune", "compare", "tasks"), "CONTEXT_TOKENS"
    ),
}
TEXTS = {
    **dict.fromkeys(("analyze", "analyze_generation"), "ANALYZED_TEXTS"),
    **dict.fromkeys(STUDIES, "NUM_SAMPLES"),
}
FEWER = dict.fromkeys(("compare", "tasks"), "fewer with --quick")
MEASURED = {"analyze": ("measure", (True,))}
SHOWN = {"analyze": ("analysis_focus", ("all", "cache"))}
ON_CLUSTER = dict.fromkeys(DRAW, ("ray", ()))
STORED_TEXT = ("load_compressed",)  # is of the file
ALONE = (
    "analyze",
    *(mode for mode in STUDIES if mode != "tasks"),
)  # with a saved cache as well, beside which these have no use:
LOADING = "device", "dtype", "device_map", "prefill_chunk", "cache_offload", "trust_remote_code"
NEED_A_MODEL = (
    *(*LOADING, "models", "ray", "measure", "no_sensitivity", "trial"),
    *("prompt", "text_file", "use_wikitext", "wikitext_index", "sequence_length"),
    *("context_tokens", "new_tokens", "score_tokens", "num_samples", "continuation"),
    *("tasks", "max_kl", "memory_gib", "show_generation", "save_cache"),
)
# Mode -> those that are of use after all where its model is named beside the cache
OF_ITS_COST = {
    "compare": (
        *(*LOADING, "prompt", "text_file", "sequence_length", "context_tokens", "score_tokens"),
        *("max_kl", "memory_gib", "show_generation"),
    )
}


@dataclass(frozen=True)
class Flag:
    """default: a value, or the name of a constant of config.py, read when a run starts.
    usual: mode -> the constant that holds where the flag is not given, told in the help alone.
    more: mode -> what there is to say beside the text. only_with: mode -> what has to be given as
    well. not_beside: flags beside which it would be ignored."""

    name: str
    group: str
    modes: tuple[str, ...]
    text: str
    rule: Rule
    default: Any = None
    usual: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    only_with: Mapping[str, Condition] = field(default_factory=dict)
    not_beside: tuple[str, ...] = ()

    def default_now(self) -> Any:
        is_constant = isinstance(self.default, str) and self.default.isupper()
        return getattr(config, self.default) if is_constant else self.default

    def usually(self, mode: str) -> Any:
        """What holds in a mode where it is not given, as far as that can be said."""
        return getattr(config, self.usual[mode]) if mode in self.usual else self.default_now()


def _layer_and_head(text: str) -> tuple[int | None, int]:
    """4:0 -> (4, 0), head 0 of layer 4; 2 -> (None, 2), that of every layer."""
    layer, colon, head = text.rpartition(":")
    return (int(layer) if colon else None), int(head)


def _are_heads(heads: Any) -> bool:
    return all(n is None or count(0).holds(n) for pair in heads for n in pair)


LAYERS = rules.several(count(0), "layers such as 0,1,2", "LAYERS")
HEADS = Rule(
    _are_heads,
    "KV heads such as 0,2 or, as layer:head, 4:0,4:2",
    rules.several(Rule(_are_heads, "", _layer_and_head), "").read,
    "HEADS",
)
NAMES = Rule(
    lambda names: all(names),
    "names such as coded,kivi",
    lambda text: tuple(name.strip() for name in text.split(",")),
    "NAMES",
)
SEVERAL = Rule(NAMES.holds, "models such as smollm2-135m,./my-model", NAMES.read, "MODELS")
TOKENS = count(1, "tokens")

_DECLARED = (
    Flag("analysis_focus", WHAT, ("analyze",), "which pictures are made; all leaves out spectrum",
         one_of(*FOCUSES), "all"),
    Flag("layer", WHAT, ("analyze",), "whose entries the pictures of the cache show; the middle "
         "one where it is not given", count(0), only_with=SHOWN),
    Flag("head", WHAT, ("analyze",), "and which KV head of it; the first where it is not given",
         count(0), only_with=SHOWN),
    Flag("measure", WHAT, ("analyze",), "measure what its recommendations cost", SWITCH, False),
    Flag("model", MODEL, (*LOAD, "list_samples"), "the default model's name, a hub id, a folder, "
         "or a .gguf file", RULES["DEFAULT_MODEL"], "DEFAULT_MODEL"),
    Flag("device", MODEL, LOAD, "where to run; auto takes cuda, then mps, then cpu",
         RULES["DEVICE"], "DEVICE", not_beside=("device_map",)),
    Flag("dtype", MODEL, LOAD, "in which precision; auto is float32 on the cpu, elsewhere the "
         "checkpoint's own", RULES["DTYPE"], "DTYPE"),
    Flag("device_map", MODEL, LOAD, "auto: for a model larger than a card, spread over all cards, "
         "then memory, then disk", RULES["DEVICE_MAP"], "DEVICE_MAP"),
    Flag("prefill_chunk", MODEL, LOAD, "tokens of a text that the model reads at a time; fewer "
         "take less memory", RULES["PREFILL_CHUNK"], "PREFILL_CHUNK"),
    Flag("cache_offload", MODEL, LOAD, "where the cache goes as it is made: none leaves it with "
         "the model, memory is the host's, disk the folder that TMPDIR names",
         RULES["CACHE_OFFLOAD"], "CACHE_OFFLOAD"),
    Flag("trust_remote_code", MODEL, LOAD, "let a model run Python code of its own",
         SWITCH, "TRUST_REMOTE_CODE"),
    Flag("prompt", TEXT, READ, "this text", WORDS,
         more={"store": "with --load_compressed it is read after what is stored"}),
    Flag("text_file", TEXT, READ, "a UTF-8 text file, a folder of .txt and .md files, or a .jsonl "
         "file with a text in the field `text` of each line",
         rules.path("a file or folder", "FILE"), not_beside=("prompt",)),
    Flag("use_wikitext", TEXT, (*READ, "list_samples"),
         "a WikiText article, or else the offline corpus",
         SWITCH, "USE_WIKITEXT", not_beside=("prompt", "text_file", *STORED_TEXT)),
    Flag("wikitext_index", TEXT, READ, "which sample, counted from 0; `--mode list_samples` shows "
         "them", RULES["WIKITEXT_INDEX"], "WIKITEXT_INDEX",
         not_beside=("prompt", "text_file", *STORED_TEXT)),
    Flag("load_cache", TEXT, ALONE, "a saved cache instead of a text: what is known without "
         "its model; where --model names that, compare measures what methods cost on top of it",
         rules.path("a file or folder", "FILE"),
         more=dict.fromkeys((mode for mode in ALONE if mode != "compare"),
                            "here --model only says which it must be of")),
    Flag("cache_layout", TEXT, ALONE, "how another program has laid such a file or folder out",
         Rule(rules.is_text, "a mapping", shown="MAPPING"),
         only_with=dict.fromkeys(ALONE, ("load_cache", ()))),
    Flag("sequence_length", SCORING, READ, "tokens of the text that are read", TOKENS,
         more=FEWER | dict.fromkeys(("analyze_generation", "store"), "all where it is not given"),
         usual=CONTEXTS, not_beside=STORED_TEXT),
    Flag("context_tokens", SCORING, READ, "another name for --sequence_length", TOKENS,
         not_beside=("sequence_length", *STORED_TEXT)),
    Flag("new_tokens", SCORING, ("analyze", "analyze_generation", "store"),
         "tokens to generate after the text", TOKENS, "NEW_TOKENS",
         only_with={"store": ("load_compressed", ()),
                    "analyze": ("analysis_focus", ("all", "tokens"))}),
    Flag("score_tokens", SCORING, ("analyze", *STUDIES),
         "tokens after the context to score", TOKENS, more=FEWER,
         usual=dict.fromkeys(("analyze", *STUDIES), "SCORE_TOKENS"),
         only_with=MEASURED, not_beside=("continuation",)),
    Flag("num_samples", SCORING, DRAW, "texts to read; results are means over them",
         count(1, "texts"), more=FEWER, usual=TEXTS, not_beside=("prompt",)),
    Flag("continuation", SCORING, ("analyze", *STUDIES),
         "score this text after the context instead of its own", WORDS, only_with=MEASURED),
    Flag("token_rank", COMPRESSION, ("tucker",), "rank along tokens", RULES["TOKEN_RANK"],
         "TOKEN_RANK", not_beside=("energy", "target_ratio")),
    Flag("embedding_rank", COMPRESSION, ("tucker",), "rank along embedding dimensions",
         RULES["EMBEDDING_RANK"], "EMBEDDING_RANK", not_beside=("energy", "target_ratio")),
    Flag("energy", COMPRESSION, ("tucker",), "choose ranks that keep this share of squared norms",
         SOME, not_beside=("target_ratio",)),
    Flag("target_ratio", COMPRESSION, ("tucker",),
         "choose ranks for this ratio of what is decomposed",
         rules.number(1, rules.MOST, "a ratio from 1", "RATIO")),
    Flag("sink_tokens", COMPRESSION, PLAIN_ENDS, "first tokens that stay uncompressed",
         RULES["SINK_TOKENS"], "SINK_TOKENS"),
    Flag("recent_tokens", COMPRESSION, PLAIN_ENDS,
         "most recent tokens that stay uncompressed", RULES["RECENT_TOKENS"], "RECENT_TOKENS"),
    Flag("unrotated_keys", COMPRESSION, ("tucker", "compress"),
         "also compress keys as they were before rotary embedding", SWITCH, False),
    Flag("no_sensitivity", COMPRESSION, ("tucker",), "skip the measured cost of each layer",
         SWITCH, False),
    Flag("levels", COMPRESSION, ("compress", "prune", "compare", "tasks"), "shares that are kept: "
         "of dimensions by compress and prune, of tokens by compare and tasks", RULES["LEVELS"],
         usual=dict.fromkeys(("compress", "prune", "compare"), "LEVELS"),
         only_with={"prune": ("prune_method", ("dimension",))}),
    Flag("prune_layers", PRUNING, ("prune",), "layers to prune: 0,1,2", LAYERS),
    Flag("prune_heads", PRUNING, ("prune",), "KV heads to prune: 0,2 in every layer (or in those "
         "of --prune_layers), 4:0 in layer 4", HEADS),
    Flag("prune_method", PRUNING, ("prune",), "what to prune by", one_of(*PRUNE_METHODS)),
    Flag("keep_tokens", PRUNING, ("prune",), "share of the tokens to keep", SOME,
         usual={"prune": "KEEP_TOKENS"}),
    Flag("token_score", PRUNING, ("prune",), "which tokens to keep; each of the usual ones is "
         "tried where none is given", one_of(*EVICTIONS), usual={"prune": "TOKEN_SCORES"}),
    Flag("trial", PRUNING, ("prune",),
         "put the heuristics on trial: measure each layer and KV head", SWITCH, False),
    Flag("methods", BUDGET, ("compare", "tasks", "store"),
         f"families of methods: {', '.join(FAMILIES)}", NAMES,
         more={"compare": "several, with commas; all where it is not given",
               "tasks": "several, with commas; some settings of coded, kvtc, fp8, kivi and snapkv "
               "where it is not given",
               "store": "one that keeps all tokens, or a setting such as kivi-4"},
         not_beside=(*STORED_TEXT, "save_cache")),
    Flag("quick", BUDGET, ("compare", "tasks"), "fewer settings, texts and tokens",
         SWITCH, False),
    Flag("tasks", BUDGET, ("compare",), "set tasks made by rule as well, as `--mode tasks` does",
         SWITCH, False),
    Flag("max_bits", BUDGET, ("compare",), "budget: bits per value",
         above_zero("a number above 0", "BITS")),
    Flag("max_bytes_per_token", BUDGET, ("compare",), "budget: stored bytes per token of context",
         above_zero("a number above 0", "BYTES")),
    Flag("max_kl", BUDGET, ("compare",), "budget: nats per token",
         above_zero("a number above 0", "NATS")),
    Flag("memory_gib", BUDGET, ("compare",), "a card's memory in GiB: how long could a context be?",
         above_zero("a number above 0", "GIB")),
    Flag("show_generation", BUDGET, ("compare",), "tokens to generate from the full and the "
         "compressed cache, side by side", count(0, "tokens"), 0),
    Flag("models", CLUSTER, STUDIES, "several models, with commas, each as --model takes it: one "
         "after the other, then a table and a picture of all", SEVERAL, not_beside=("model",)),
    Flag("ray", CLUSTER, DRAW, "spread the work over a Ray cluster: auto starts one on this "
         "machine, an address connects to one that runs", WORDS),
    Flag("ray_workers", CLUSTER, DRAW, "how many hold the model at a time; as many as there is "
         "room for where it is not given", count(1, "workers"), only_with=ON_CLUSTER),
    Flag("ray_cpus", CLUSTER, DRAW, "CPUs of each worker, or a fraction of one",
         above_zero("a number above 0", "CPUS"), 1.0, only_with=ON_CLUSTER),
    Flag("ray_gpus", CLUSTER, DRAW, "GPUs of each worker, or a fraction of one",
         rules.number(0, 1024, "a number of 0 or more", "GPUS"), 0.0, only_with=ON_CLUSTER),
    Flag("save_compressed", OUTPUT, ("store",), "the file of a compressed prompt; beside "
         "--load_compressed, of that with all that was added, for what is stored as coded_chunks",
         rules.path("a file", "FILE")),
    Flag("save_cache", OUTPUT, ("analyze", "store"), "keep the cache of the text in a file, in 16 "
         "bits", rules.path("a file", "FILE")),
    Flag("load_compressed", OUTPUT, ("store",), "go on from such a file",
         rules.path("a file", "FILE")),
    Flag("output_dir", OUTPUT, (*DRAW, "report"), "folder of the results", RULES["OUTPUT_DIR"],
         "OUTPUT_DIR"),
    Flag("compare_with", OUTPUT, ("report",), "another folder of results, to stand beside the "
         "first", rules.path("a folder", "FOLDER")),
    Flag("format", OUTPUT, DRAW, "of the pictures; pdf and svg stay sharp at any size",
         RULES["FIGURE_FORMAT"], "FIGURE_FORMAT"),
    Flag("json", OUTPUT, ALL, "print the results, or why there are none, as one JSON object, and "
         "all else on stderr", SWITCH, False),
    Flag("quiet", OUTPUT, (*LOAD, "report"), "no progress bars and no findings", SWITCH, False),
    Flag("debug", OUTPUT, ALL, "show the traceback where something fails", SWITCH, False),
)  # fmt: skip
FLAGS = tuple(
    replace(flag, not_beside=(*flag.not_beside, "load_cache"))
    if flag.name in NEED_A_MODEL
    else flag
    for flag in _DECLARED
)
BY_NAME = {flag.name: flag for flag in FLAGS}


def arguments_of(function: Callable[..., Any], given: Given) -> Given:
    """Those flags that have the names of a function's (or dataclass's) arguments."""
    return {name: given[name] for name in inspect.signature(function).parameters if name in given}


def as_flags(text: str) -> str:
    """A message of the library with its arguments shown as the flags that they came from."""
    return re.sub(r"`(\w+)`", lambda name: f"--{name[1]}" if name[1] in BY_NAME else name[0], text)
