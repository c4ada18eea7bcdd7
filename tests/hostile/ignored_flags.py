"""Flags given to modes, or beside other flags, that would ignore them."""

from collections.abc import Iterator

from tests.hostile.case import USUAL, Case, early

LOADS = "model device dtype trust_remote_code"
READS = "prompt text_file use_wikitext wikitext_index context_tokens sequence_length"
STUDIES = f"{LOADS} {READS} score_tokens num_samples continuation output_dir quiet"
ENDS = "sink_tokens recent_tokens"
# Mode -> the flags that it takes, written down a second time on purpose.
TAKES = {
    "analyze": f"{LOADS} {READS} analysis_focus measure score_tokens continuation new_tokens "
    "num_samples output_dir quiet save_cache",
    "analyze_generation": f"{LOADS} {READS} new_tokens num_samples output_dir quiet",
    "analyze_similarity": f"{STUDIES} {ENDS}",
    "tucker": f"{STUDIES} {ENDS} token_rank embedding_rank energy target_ratio unrotated_keys "
    "no_sensitivity",
    "compress": f"{STUDIES} {ENDS} levels unrotated_keys",
    "prune": f"{STUDIES} prune_layers prune_heads prune_method levels keep_tokens token_score "
    "trial",
    "compare": f"{STUDIES} methods quick levels max_bits max_bytes_per_token max_kl memory_gib "
    "show_generation tasks",
    "tasks": f"{STUDIES} methods quick levels",
    "calibrate": f"{LOADS} quiet",
    "store": f"{LOADS} {READS} save_compressed save_cache load_compressed methods new_tokens quiet",
    "list_samples": "model use_wikitext",
}
# Flag -> a value that makes sense and one that does not; None for a switch.
VALUES: dict[str, tuple[str | None, str | None]] = {
    "analysis_focus": ("heads", "neurons"),
    "measure": (None, None),
    "device": ("cpu", "tpu"),
    "dtype": ("float32", "int3"),
    "prompt": ("Hello", ""),
    "text_file": ("text.txt", "nowhere.txt"),
    "wikitext_index": ("1", "-1"),
    "context_tokens": ("60", "0"),
    "new_tokens": ("3", "0"),
    "score_tokens": ("10", "0"),
    "num_samples": ("1", "-7"),
    "continuation": ("and so on", ""),
    "token_rank": ("8", "0"),
    "embedding_rank": ("8", "-8"),
    "energy": ("0.9", "7"),
    "target_ratio": ("4", "nan"),
    "sink_tokens": ("4", "-4"),
    "recent_tokens": ("8", "-8"),
    "unrotated_keys": (None, None),
    "no_sensitivity": (None, None),
    "levels": ("0.5", "5"),
    "prune_layers": ("0", "x"),
    "prune_heads": ("1:0", "x:y"),
    "prune_method": ("token", "luck"),
    "keep_tokens": ("0.5", "2"),
    "token_score": ("recent", "loud"),
    "trial": (None, None),
    "methods": ("int8", "zip"),
    "quick": (None, None),
    "tasks": (None, None),
    "max_bits": ("4", "-4"),
    "max_bytes_per_token": ("100", "0"),
    "max_kl": ("0.1", "nan"),
    "memory_gib": ("8", "inf"),
    "show_generation": ("5", "-5"),
    "save_compressed": ("new.kv", ""),
    "save_cache": ("new.cache", ""),
    "load_compressed": ("prompt.kv", "nowhere.kv"),
    "output_dir": ("out", ""),
    "quiet": (None, None),
}


def _ignored() -> Iterator[Case]:
    """Each flag in each mode that does not take it, with a value of either kind."""
    for mode, names in TAKES.items():
        for flag, (good, bad) in VALUES.items():
            if flag not in names.split():
                takers = [m for m, names in TAKES.items() if flag in names.split()]
                works = _store(mode)
                yield early(mode, f"{works} {_typed(flag, good)}", f"--{flag}", mode, *takers)
                if bad is not None:
                    yield early(mode, f"{works} {_typed(flag, bad)}", f"--{flag}")


def _typed(flag: str, value: str | None) -> str:
    return f"--{flag}" if value is None else f"--{flag} '{value}'"


def _store(mode: str) -> str:
    return "--save_compressed new.kv" if mode == "store" else ""


def _reads(mode: str) -> bool:
    return "prompt" in TAKES[mode].split()


def _beside() -> Iterator[Case]:
    """Flags that a mode takes, beside others that leave them without effect."""
    for mode in filter(_reads, USUAL):
        works = _store(mode)
        for text, value in (("--prompt", "Hello"), ("--text_file", "text.txt")):
            given = f"{works} {text} {value}"
            yield early(mode, f"{given} --wikitext_index 1", "--wikitext_index", text)
            yield early(mode, f"{given} --use_wikitext", "--use_wikitext", text)
        both = f"{works} --prompt Hello --text_file text.txt"
        yield early(mode, both, "--prompt", "--text_file", "both")
        twice = f"{works} --context_tokens 60 --sequence_length 60"
        yield early(mode, twice, "--sequence_length", "--context_tokens", "both")
        if TAKES[mode].startswith(STUDIES):
            scored = "--continuation 'and so on' --score_tokens 5"
            yield early(mode, scored, "--score_tokens", "--continuation")
            yield early(mode, "--prompt Hello --num_samples 2", "--num_samples", "--prompt")
            from_file = "--text_file text.txt --num_samples 2"
            yield early(mode, from_file, "--num_samples", "text.txt")


LOAD = "--load_compressed prompt.kv"
BESIDE = (
    early("analyze", "--score_tokens 5", "--score_tokens", "--measure"),
    early("analyze", "--continuation 'and so on'", "--continuation", "--measure"),
    early("tucker", "--token_rank 8 --energy 0.9", "--token_rank", "--energy"),
    early("tucker", "--embedding_rank 8 --energy 0.9", "--embedding_rank", "--energy"),
    early("tucker", "--token_rank 8 --target_ratio 4", "--token_rank", "--target_ratio"),
    early("tucker", "--embedding_rank 8 --target_ratio 4", "--embedding_rank", "--target_ratio"),
    early("tucker", "--energy 0.9 --target_ratio 4", "--energy", "--target_ratio"),
    early("prune", "--prune_layers 0 --prune_heads 1:0", "--prune_layers", "--prune_heads"),
    early("prune", "--prune_method token --prune_layers 0", "--prune_layers", "--prune_method"),
    early("prune", "--prune_method layer --prune_heads 0", "--prune_heads", "--prune_method"),
    early("prune", "--prune_method head --prune_layers 0", "--prune_heads", "--prune_method"),
    early("prune", "--prune_method layer --keep_tokens .5", "--keep_tokens", "--prune_method"),
    early("prune", "--prune_layers 0 --token_score recent", "--token_score"),
    early("prune", "--levels 0.5", "--levels", "--prune_method", "dimension"),
    early("prune", "--prune_method head --levels 0.5", "--levels", "dimension"),
    early("store", "", "--save_compressed", "--load_compressed"),
    early("store", f"{LOAD} --save_cache new.cache", "--save_cache", "--load_compressed"),
    early("store", "--save_cache a --save_compressed b", "--save_cache", "--save_compressed"),
    early("store", "--save_cache a --methods int8", "--save_cache", "--methods"),
    early("store", f"{LOAD} --prompt Hello --text_file text.txt", "--prompt", "--text_file"),
    early("store", f"{LOAD} --wikitext_index 1", "--wikitext_index", "--load_compressed"),
    early("store", f"{LOAD} --use_wikitext", "--use_wikitext", "--load_compressed"),
    early("store", f"{LOAD} --context_tokens 60", "--context_tokens", "--load_compressed"),
    early("store", f"{LOAD} --sequence_length 60", "--sequence_length", "--load_compressed"),
    early("store", f"{LOAD} --methods int8", "--methods", "--load_compressed"),
    early("store", "--save_compressed new.kv --new_tokens 5", "--new_tokens", "--load_compressed"),
)
CASES = (*_ignored(), *_beside(), *BESIDE)
