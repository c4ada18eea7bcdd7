"""Values that no mode can do anything with, flag by flag, and constants of config.py."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import config
from tests.hostile.case import Case, early, late

FAR = "1000000000"
STUDIES = ("tucker", "compress", "prune", "compare", "analyze_similarity")
SAVE = "--save_compressed new.kv"
SYNTAX = (
    early("compress_all", "", "--mode", "compress_all", "tucker"),
    early("", "--mode", "--mode"),
    early("analyze", "--seq 5", "--seq"),
    early("analyze", "essay.txt", "essay.txt"),
    early("analyze", "--quiet=yes", "--quiet"),
    early("tucker", "--energy", "--energy"),
    early("list_samples", "--model", "--model"),
    early("calibrate", "--debug=1", "--debug"),
    Case("analyze", ("--\x1b[31mred", "5"), ("red",), early=True),
    Case("analyze", ("--d\udcffbug",), ("bug",), early=True),
)
VALUES = (
    early("analyze", "--analysis_focus neurons", "--analysis_focus", "neurons", "heads"),
    early("calibrate", "--device tpu", "--device", "tpu", "cpu"),
    early("calibrate", "--dtype int3", "--dtype", "int3", "bfloat16"),
    early("analyze", "--context_tokens 0", "--context_tokens is 0"),
    early("analyze", "--sequence_length -3", "--sequence_length is -3"),
    early("analyze_generation", "--sequence_length 1e3", "--sequence_length", "1e3"),
    early("analyze", "--new_tokens 0", "--new_tokens is 0"),
    early("analyze_generation", "--new_tokens many", "--new_tokens", "many"),
    early("analyze", "--measure --score_tokens 0", "--score_tokens is 0"),
    early("store", f"{SAVE} --context_tokens 1.5", "--context_tokens", "1.5"),
    early("store", "--load_compressed prompt.kv --new_tokens -1", "--new_tokens is -1"),
    *(early(mode, "--score_tokens 0", "--score_tokens is 0") for mode in STUDIES),
    *(early(mode, "--num_samples -1", "--num_samples is -1") for mode in STUDIES),
    *(early(mode, "--wikitext_index -1", "--wikitext_index is -1") for mode in STUDIES),
    early("tucker", "--token_rank 0", "--token_rank is 0"),
    early("tucker", "--embedding_rank -1", "--embedding_rank is -1"),
    early("tucker", "--token_rank 2.5", "--token_rank", "2.5"),
    *(early("tucker", f"--energy {x}", "--energy") for x in ("0", "2", "nan", "-inf", "most")),
    *(early("tucker", f"--target_ratio {x}", "--target_ratio") for x in ("0", "-4", "nan", "inf")),
    *(early(m, "--sink_tokens -1", "--sink_tokens is -1") for m in ("tucker", "compress")),
    *(early(m, "--recent_tokens -1", "--recent_tokens is -1") for m in ("tucker", "compress")),
    *(early("compress", f"--levels {x}", "--levels") for x in ("''", ",", "0", "1.5", "nan", "a")),
    early("compare", "--levels 0.5,,0.25", "--levels"),
    early("prune", "--prune_method dimension --levels 2", "--levels is 2"),
    *(early("prune", f"--prune_layers {x}", "--prune_layers") for x in ("''", "a", "1.5", "-1")),
    *(early("prune", f"--prune_heads {x}", "--prune_heads") for x in ("''", ":", "0:", "a:b")),
    early("prune", "--prune_method luck", "--prune_method", "luck", "token"),
    *(early("prune", f"--keep_tokens {x}", "--keep_tokens is") for x in ("0", "1.5", "nan")),
    early("prune", "--token_score loud", "--token_score", "loud", "recent"),
    *(early("compare", f"--methods {x}", "--methods") for x in ("''", ",", "zip", "int8,zip")),
    early("compare", "--methods none", "--methods", "none"),
    early("compare", "--context_tokens 20", "20", "--context_tokens"),
    *(early("compare", f"--max_bits {x}", "--max_bits") for x in ("0", "-1", "nan", "inf")),
    early("compare", "--max_bytes_per_token 0", "--max_bytes_per_token is 0"),
    early("compare", "--max_kl nan", "--max_kl is nan"),
    early("compare", "--memory_gib inf", "--memory_gib is inf"),
    early("compare", "--show_generation -1", "--show_generation is -1"),
    early("compare", "--show_generation 1.5", "--show_generation", "1.5"),
    early("store", f"{SAVE} --methods zip", "--methods", "zip"),
    early("store", f"{SAVE} --methods ''", "--methods"),
    early("store", f"{SAVE} --methods snapkv", "--methods", "snapkv", "evicts"),
    early("store", f"{SAVE} --methods composed", "--methods", "composed", "evicts"),
    early("store", f"{SAVE} --methods int8,kivi", "--methods", "int8", "kivi"),
)
BEYOND = (  # what the model, the text or its cache does not have
    late("analyze", f"--context_tokens {FAR}", "256", "positions", notes=True),
    late("analyze", f"--analysis_focus tokens --new_tokens {FAR}", "--new_tokens", "256"),
    late("analyze_generation", f"--new_tokens {FAR}", "--new_tokens", "256"),
    late("analyze", "--measure --score_tokens 250", "--score_tokens", "256"),
    *(late(mode, f"--score_tokens {FAR}", "--score_tokens", "256") for mode in STUDIES),
    *(late(mode, f"--wikitext_index {FAR}", "--wikitext_index", FAR) for mode in STUDIES),
    late("tucker", "--target_ratio 1000000", "--target_ratio"),
    late("tucker", "--token_rank 8 --embedding_rank 8 --sink_tokens 60", "--sink_tokens"),
    late("prune", "--prune_layers 99", "--prune_layers", "99"),
    late("prune", "--prune_layers 0,1", "--prune_layers"),
    late("prune", "--prune_heads 9", "--prune_heads", "9"),
    late("prune", "--prune_heads 99:0", "--prune_heads", "99"),
    late("prune", "--prune_heads 0,1", "--prune_heads"),
    late("compare", f"--show_generation {FAR}", "--show_generation", "256"),
    late("store", f"{SAVE} --context_tokens {FAR}", "256", "positions", notes=True),
    late("store", f"--load_compressed prompt.kv --new_tokens {FAR}", "--new_tokens", "256"),
)

VOCABULARIES = {"DEVICES", "DTYPES", "FOCUSES", "PRUNE_METHODS", "TOKEN_SCORES", "EVICTIONS"}
CONSTANTS = [name for name in vars(config) if name.isupper() and name not in VOCABULARIES]


def _edited(folder: Path, patch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    patch.setattr(config, name, value, raising=False)


def _missing(folder: Path, patch: pytest.MonkeyPatch, name: str) -> None:
    patch.delattr(config, name)


def _config(name: str, value: Any) -> Case:
    what = f"config.py: {name} = {value!r}"
    edited = partial(_edited, name=name, value=value)
    return early("list_samples", "", "config.py", name, what=what, prepare=edited)


EDITED = (
    *(_config(name, {"x": 1}) for name in CONSTANTS),
    *(_config(name, 9) for name in ("SPARSITY_TRESHOLD_PERCENTAGE", "LEVEL", "Z")),
    *(_config(name, [0.5]) for name in ("TOKEN_RANKS", "SINK_TOKENS", "OUTPUT_DIR", "DEVICE")),
    *(_config("OUTPUT_DIR", x) for x in ("", "x\0y", "x\udcff")),
    *(_config("CACHE_FOLDER", x) for x in ("x\0y", 3)),
    *(_config("DEFAULT_MODEL", x) for x in ("", "x\0y", None)),
    _config("LEVELS", "0.5"),
    _config("LEVELS", (0.5, "0.25")),
    _config("FIGURE_DPI", "\x1b[31mhigh"),
    _config("NEW_TOKENS", True),
    _config("SEQUENCE_LENGTH", 10.5),
    _config("DENSE_DIM_SHARE", 0.95),
    *(
        early(
            "list_samples",
            "",
            "config.py",
            name,
            what=f"config.py without {name}",
            prepare=partial(_missing, name=name),
        )
        for name in CONSTANTS
    ),
)
LISTS = tuple(  # where config.py has tuples, lists will do
    late(
        mode,
        f"--quiet {flags}",
        what=f"config.py: {name} = {value!r}",
        code=0,
        prepare=partial(_edited, name=name, value=value),
        changes=("out/*", "home/*"),
    )
    for mode, flags, name, value in (
        ("prune", "--prune_method dimension", "LEVELS", [0.5]),
        ("tucker", "", "TOKEN_RANKS", [4, 8]),
    )
)
CASES = (*SYNTAX, *VALUES, *BEYOND, *EDITED, *LISTS)
