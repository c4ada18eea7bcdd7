"""Saved caches, long contexts, many texts, several models, clusters."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.hostile.case import Case, Prepare, early, late
from tests.hostile.texts import LONE, pipe

LAYOUT = '{"format": "vllm", "head_dim": 8, "kv_heads": 2}'
STUDIES = ("analyze_similarity", "tucker", "compress", "prune", "compare")
ALONE = ("analyze", *STUDIES)
LOAD = "--load_cache text.cache"


def _bytes(change: Callable[[bytes], bytes]) -> Prepare:
    def damaged(folder: Path, patch: pytest.MonkeyPatch) -> None:
        file = folder / "text.cache"
        file.write_bytes(change(file.read_bytes()))

    return damaged


def _folder(name: str, **files: bytes) -> Prepare:
    def made(folder: Path, patch: pytest.MonkeyPatch) -> None:
        (folder / name).mkdir()
        for stem, content in files.items():
            (folder / name / f"{stem}.txt").write_bytes(content)

    return made


DAMAGED = {
    "empty": _bytes(lambda whole: b""),
    "cut at the end": _bytes(lambda whole: whole[:-1]),
    "cut in half": _bytes(lambda whole: whole[: len(whole) // 2]),
    "cut in the header": _bytes(lambda whole: whole[:20]),
    "its last byte changed": _bytes(lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])),
    "a byte in the middle changed": _bytes(
        lambda x: x[: len(x) * 2 // 3] + bytes([x[len(x) * 2 // 3] ^ 64]) + x[len(x) * 2 // 3 + 1 :]
    ),
    "bytes behind it": _bytes(lambda whole: whole + b"\0" * 8),
}
LOADS = (
    *(late(mode, "--load_cache nowhere.cache", "nowhere.cache") for mode in ALONE),
    *(late(mode, "--load_cache out", "--load_cache", "folder") for mode in ALONE),
    *(late("analyze", LOAD, "text.cache", what=w, prepare=p) for w, p in DAMAGED.items()),
    *(late("compare", LOAD, "text.cache", what=w, prepare=p) for w, p in DAMAGED.items()),
    late("compare", f"--load_cache out --cache_layout '{LAYOUT}'", "out"),
    late("compare", f"--load_cache text.txt --cache_layout '{LAYOUT}'", "text.txt"),
    late("tucker", "--load_cache text.txt", "text.txt"),
    late("prune", "--load_cache model/model.safetensors", "model.safetensors"),
    late("compress", "--load_cache prompt.kv", "prompt.kv"),
    late("analyze", "--load_cache /dev/zero", "/dev/zero"),
    late("analyze", "--load_cache ~nobody-here/x", "~nobody-here"),
    late(
        "analyze",
        "--load_cache pipe",
        "pipe",
        what="a pipe without a writer",
        prepare=partial(pipe, name="pipe"),
    ),
    *(Case("analyze", ("--load_cache", odd), ("--load_cache",)) for odd in ("", "a\0", LONE)),
    late("analyze", f"{LOAD} --model ./model", "random", "--model"),
    late("compare", f"{LOAD} --methods coded", "calibration", "coded|--methods"),
)
LAYOUTS = (
    '{"format": ',
    "[]",
    "5",
    "null",
    '"vllm"',
    "{}",
    '{"format": "zip"}',
    '{"format": "vllm"}',
    '{"format": "vllm", "head_dim": 0, "kv_heads": 2}',
    '{"format": "vllm", "head_dim": -8, "kv_heads": 2}',
    '{"format": "vllm", "head_dim": 8.5, "kv_heads": 2}',
    '{"format": "vllm", "head_dim": "8", "kv_heads": 2}',
    '{"format": "vllm", "head_dim": NaN, "kv_heads": 2}',
    '{"format": "vllm", "head_dim": 8, "kv_heads": 2, "zip": 3}',
    '{"format": "vllm", "head_dim": 8, "kv_heads": 2, "\\u001b[31m": 3}',
    "[" * 10_000,
    "nowhere.json",
    "text.txt",
    "out",
    "/dev/zero",
    "",
)
OF_LAYOUTS = (
    *(Case("compare", ("--load_cache", "out", "--cache_layout", x), ("_layout",)) for x in LAYOUTS),
    early("compare", f"--cache_layout '{LAYOUT}'", "--cache_layout", "--load_cache"),
)
UNWRITABLE = ("out", "model", ".", "/dev/null", "nowhere/x", "text.txt/x", "~nobody-here/x")
FOREIGN = ("notes.md", "prompt.kv", "model/config.json", "model/model.safetensors", "home/x.cache")
SAVES = (
    *(
        early(mode, f"--save_cache {target}", "--save_cache", target)
        for mode in ("analyze", "store")
        for target in (*UNWRITABLE, *FOREIGN)
    ),
    *(
        early(mode, "--text_file text.txt --save_cache text.txt", "--save_cache", "text.txt")
        for mode in ("analyze", "store")
    ),
    *(Case("store", ("--save_cache", x), ("--save_cache",), early=True) for x in ("", "a\0", LONE)),
    early("store", "--save_cache pipe", "pipe", what="a pipe", prepare=partial(pipe, name="pipe")),
)
PLACES = (
    *(early("analyze", f"--prefill_chunk {x}", "--prefill_chunk") for x in ("0", "-1", "1.5", "x")),
    early("compare", "--prefill_chunk 0", "--prefill_chunk is 0"),
    early("analyze", "--cache_offload cloud", "--cache_offload", "cloud", "disk"),
    early("tucker", "--cache_offload ''", "--cache_offload"),
    early("analyze", "--device_map nonsense", "--device_map", "nonsense", "auto"),
    early("prune", "--device_map auto --device cpu", "--device_map", "--device"),
)
CLUSTERS = (
    *(
        early("compare", f"--ray {address}", "--ray", address)
        for address in ("nonsense", "host:", ":6379", "host:port", "host:99999", "ray://")
    ),
    early("compare", "--ray ''", "--ray"),
    *(early(mode, "--ray auto --ray_workers 0", "--ray_workers is 0") for mode in STUDIES),
    *(early(mode, "--ray_workers 2", "--ray_workers", "only with --ray") for mode in STUDIES),
    early("compare", "--ray auto --ray_workers many", "--ray_workers", "many"),
    early("compare", "--ray auto --ray_cpus 0", "--ray_cpus is 0"),
    early("compare", "--ray auto --ray_gpus -1", "--ray_gpus is -1"),
    early("compare", "--ray_cpus 0.5", "--ray_cpus", "only with --ray"),
    early("store", "--ray auto", "--ray", "compare"),
)
SEVERAL = (
    *(early(mode, "--models ./model,./model", "--models", "twice") for mode in STUDIES),
    *(early(mode, "--models ./model --model ./model", "--models", "--model ") for mode in STUDIES),
    early("compare", "--models ./model,nowhere/at/all", "nowhere/at/all"),
    early("compare", "--models ./model,model", "twice"),
    *(early("compare", f"--models {x}", "--models") for x in ("''", ",", "./model,")),
    early("analyze", "--models ./model", "--models", "compare"),
)
TEXTS = (
    *(
        early(mode, "--prompt Hello --num_samples 2", "--prompt", "--num_samples")
        for mode in ("analyze", "analyze_generation")
    ),
    late("analyze", "--text_file bare", "bare", what="an empty folder", prepare=_folder("bare")),
    late("compare", "--text_file bare", "bare", what="an empty folder", prepare=_folder("bare")),
    late(
        "analyze",
        "--text_file many --num_samples 2",
        "binary|UTF-8",
        what="a folder of binary files",
        prepare=_folder("many", a=b"MZ\0\0" * 99, b=bytes(range(256))),
    ),
    late(
        "compare",
        "--text_file many --num_samples 2",
        "binary|UTF-8",
        what="a folder with a binary file",
        prepare=_folder("many", a=b"A text. " * 99, b=b"MZ\0\0" * 99),
    ),
)
CASES = (*LOADS, *OF_LAYOUTS, *SAVES, *PLACES, *CLUSTERS, *SEVERAL, *TEXTS)
