"""The flags of the command line: one declaration of each, its default, and what it takes.

The library knows nothing of them: a mode hands each function the flags that have the names of its
arguments (`arguments_of`), and where a message of the library names an argument as `name`,
`as_flags` shows the flag.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import config
from config import UsageError
from visualization.terminal import rules
from visualization.terminal.rules import Rule

Given = dict[str, Any]  # flag -> its value, as typed or its default

WHAT, MODEL, TEXT, SCORING = "what to do", "model", "text", "scoring, by modes that compress"
RANKS, PRUNE, COMPARE, OUTPUT = "tucker and compress", "prune", "compare and store", "output"
STORE_TRUE = {"action": "store_true"}
EITHER = {"action": argparse.BooleanOptionalAction}

FROM_1 = rules.count(1)[0], "1 or more"
FROM_0 = rules.count(0)[0], "0 or more tokens"
ABOVE_0 = rules.above_zero("a number above 0")
SHARES = rules.several(rules.SOME, "shares above 0, at most 1")


@dataclass(frozen=True)
class Flag:
    """default: a value, or the name of a constant of config.py, read when a run starts. options go
    to argparse. rule: what it takes, where it is given."""

    name: str
    group: str
    text: str
    default: Any = None
    rule: Rule | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def default_now(self) -> Any:
        is_constant = isinstance(self.default, str) and self.default.isupper()
        return getattr(config, self.default) if is_constant else self.default


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


def _listed(text: str, read: Callable[[str], Any], allowed: str) -> tuple[Any, ...]:
    try:
        return tuple(read(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} was given: it takes {allowed}") from None


INT, FLOAT = {"type": int}, {"type": float}
FLAGS = (
    Flag("analysis_focus", WHAT, "which pictures `analyze` makes", "all",
         options={"choices": config.FOCUSES}),
    Flag("measure", WHAT, "let `analyze` measure its recommendations", False, options=STORE_TRUE),
    Flag("model", MODEL, "this name, a hub id, a folder, or a .gguf file", "DEFAULT_MODEL"),
    Flag("device", MODEL, "where to run", "DEVICE", options={"choices": config.DEVICES}),
    Flag("dtype", MODEL, "in which precision", "DTYPE", options={"choices": config.DTYPES}),
    Flag("trust_remote_code", MODEL, "let a model run Python code of its own",
         "TRUST_REMOTE_CODE", options=EITHER),
    Flag("prompt", TEXT, "this text"),
    Flag("text_file", TEXT, "a UTF-8 .txt file, or a .jsonl file with a field `text`"),
    Flag("use_wikitext", TEXT, "a WikiText article, or else the offline corpus", "USE_WIKITEXT",
         options=EITHER),
    Flag("wikitext_index", TEXT, "which sample; `--mode list_samples` shows them",
         "WIKITEXT_INDEX", (FROM_0[0], "0 or more: samples are counted from 0")),
    Flag("sequence_length", TEXT, "tokens to read; where it is not given "
         f"{config.SEQUENCE_LENGTH}, tucker: {config.TUCKER_SEQUENCE_LENGTH}, "
         "analyze_generation: all", rule=FROM_1, options=INT),
    Flag("new_tokens", TEXT, "tokens to generate after the text", "NEW_TOKENS", FROM_1),
    Flag("context_tokens", SCORING,
         "tokens whose cache is compressed; another name for --sequence_length",
         rule=FROM_1, options=INT),
    Flag("score_tokens", SCORING, "tokens after the context to score; where it is not given "
         f"{config.SCORE_TOKENS}, fewer with --quick", rule=FROM_1, options=INT),
    Flag("num_samples", SCORING, f"texts to score; where it is not given {config.NUM_SAMPLES}, "
         "fewer with --quick", rule=FROM_1, options=INT),
    Flag("continuation", SCORING, "score this text after the context instead"),
    Flag("token_rank", RANKS, "rank along tokens", "TOKEN_RANK"),
    Flag("embedding_rank", RANKS, "rank along embedding dimensions", "EMBEDDING_RANK"),
    Flag("energy", RANKS, "choose ranks that keep this share of squared norms", options=FLOAT),
    Flag("target_ratio", RANKS, "choose ranks for this ratio of what is decomposed",
         options=FLOAT),
    Flag("sink_tokens", RANKS, "first tokens that stay uncompressed", "SINK_TOKENS"),
    Flag("recent_tokens", RANKS, "most recent tokens that stay uncompressed", "RECENT_TOKENS"),
    Flag("unrotated_keys", RANKS, "also compress keys as they were before rotary embedding",
         False, options=STORE_TRUE),
    Flag("no_sensitivity", RANKS, "skip the measured cost of each layer", False,
         options=STORE_TRUE),
    Flag("levels", RANKS, "shares that are kept: of dimensions by compress, of tokens by compare",
         "LEVELS", SHARES, {"type": _shares}),
    Flag("prune_layers", PRUNE, "layers to prune: 0,1,2", options={"type": _layers}),
    Flag("prune_heads", PRUNE, "KV heads to prune: 0,2 in every layer (or in those of "
         "--prune_layers), 4:0 in layer 4", options={"type": _heads}),
    Flag("prune_method", PRUNE, "what to prune by", options={"choices": config.PRUNE_METHODS}),
    Flag("keep_tokens", PRUNE, "share of the tokens to keep", rule=rules.SOME, options=FLOAT),
    Flag("token_score", PRUNE, "which tokens to keep; without it "
         f"{', '.join(config.TOKEN_SCORES)} are tried",
         options={"choices": config.EVICTIONS}),
    Flag("trial", PRUNE, "put the heuristics on trial: measure each layer and KV head", False,
         options=STORE_TRUE),
    Flag("methods", COMPARE, "only these families of methods: coded,kivi",
         options={"type": _names}),
    Flag("quick", COMPARE, "fewer settings, texts and scored tokens", False, options=STORE_TRUE),
    Flag("max_bits", COMPARE, "budget: bits per value", rule=ABOVE_0, options=FLOAT),
    Flag("max_bytes_per_token", COMPARE, "budget: stored bytes per token of context",
         rule=ABOVE_0, options=FLOAT),
    Flag("max_kl", COMPARE, "budget: nats per token", rule=ABOVE_0, options=FLOAT),
    Flag("memory_gib", COMPARE, "a card's memory: how long could a context be?", rule=ABOVE_0,
         options=FLOAT),
    Flag("show_generation", COMPARE,
         "tokens to generate from the full and the compressed cache, side by side", 0, FROM_0),
    Flag("save_compressed", COMPARE, "store: the file of a compressed prompt"),
    Flag("load_compressed", COMPARE, "store: go on from such a file"),
    Flag("output_dir", OUTPUT, "folder of the results", "OUTPUT_DIR"),
    Flag("quiet", OUTPUT, "no progress bars and no findings", False, options=STORE_TRUE),
)  # fmt: skip
EXCLUSIVE = (("sequence_length", "context_tokens"), ("prompt", "text_file"))
BY_NAME = {flag.name: flag for flag in FLAGS}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message}. `python main.py --help` shows all flags")


def parser(modes: Iterable[str]) -> argparse.ArgumentParser:
    """All flags, with their groups, texts and defaults."""
    p = _Parser(
        prog="main.py",
        description="Extract the KV cache of a language model on real text, analyse and draw it, "
        "compress it, and measure what that costs.",
        epilog="Defaults are edited in config.py.",
        allow_abbrev=False,
    )
    groups = {name: p.add_argument_group(name) for name in dict.fromkeys(f.group for f in FLAGS)}
    choices = {"choices": list(modes)}
    for flag in (Flag("mode", WHAT, "what to do", "analyze", options=choices), *FLAGS):
        options, default, text = dict(flag.options), flag.default_now(), flag.text
        if isinstance(default, int | float) and not isinstance(default, bool):
            options.setdefault("type", type(default))
        if default not in (None, False):
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            text += f" (default: {shown})".replace("%", "%%")
        groups[flag.group].add_argument(f"--{flag.name}", default=default, help=text, **options)
    return p


def parse(modes: Iterable[str], arguments: Sequence[str] | None = None) -> Given:
    """What was typed, over the defaults. Raises UsageError for what no mode can take."""
    given = vars(parser(modes).parse_args(arguments))
    for one, other in EXCLUSIVE:
        if None not in (given[one], given[other]):
            raise UsageError(f"`{one}` and `{other}` were both given", "keep one")
    if given["measure"] and given["mode"] == "analyze_generation":
        raise UsageError(
            "`measure` was given, and the stages of generation recommend nothing to prune",
            "leave it out, or take `--mode analyze`",
        )
    for flag in FLAGS:
        value = given[flag.name]
        if flag.rule is not None and value is not None and not flag.rule[0](value):
            shown = ",".join(map(_shown, value)) if isinstance(value, tuple) else _shown(value)
            raise UsageError(f"`{flag.name}` is {shown}", f"it takes {flag.rule[1]}")
    given["context_tokens"] = given["context_tokens"] or given["sequence_length"]
    if not given["output_dir"].strip():
        raise UsageError("`output_dir` is empty", "give a folder")
    return given


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def arguments_of(function: Callable[..., Any], given: Given) -> Given:
    """Those flags that have the names of a function's (or dataclass's) arguments."""
    return {name: given[name] for name in inspect.signature(function).parameters if name in given}


def as_flags(text: str) -> str:
    """A message of the library with its arguments shown as the flags that they came from."""
    return re.sub(r"`(\w+)`", lambda name: f"--{name[1]}" if name[1] in BY_NAME else name[0], text)
