"""What an idle conversation holds and what its turns take at their peak: a chat of several turns
with `CompressedCache`, beside transformers' own cache.

    python -m benchmarks.conversation [--model smollm2-135m] [--turns 6] [--turn_tokens 300]
        [--new_tokens 40] [--step 7e-5]

Each of both runs in a process of its own. Bytes are those that the cache object holds, in the dtype
of the run; `at rest` is after `rest`, between two turns. The peak is of the whole process beyond
what it took with its model before the first turn.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
from transformers import DynamicCache

import config
from compression.coded.kept_calibrations import chunk_codec
from compression.coded.method import MIDDLE
from compression.serving.compressed_cache import CompressedCache
from data import models
from data.corpora import reference_samples

KINDS = ("plain", "compressed")


def peak_nbytes() -> int:
    """Of this process so far; Linux counts in units of 1024 bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def chat(kind: str, given: argparse.Namespace) -> None:
    """Prints a line for each turn, and the peak at the end."""
    loaded = models.load(given.model)
    codec = chunk_codec(loaded, given.step)
    model: Any = loaded.model
    settings = model.config
    cache = DynamicCache(config=settings) if kind == "plain" else CompressedCache(settings, codec)
    ids = loaded.ids_of(reference_samples()[0].text, given.turns * given.turn_tokens)
    before, said = peak_nbytes(), ids[:0]
    for turn in range(given.turns):
        asked = ids[turn * given.turn_tokens : (turn + 1) * given.turn_tokens]
        said = torch.cat([said, asked])
        began = time.perf_counter()
        with torch.no_grad():
            said = model.generate(
                said[None].to(loaded.device),
                past_key_values=cache,
                max_new_tokens=given.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0].cpu()
        answered = time.perf_counter()
        line = f"{kind:10} turn {turn + 1}: {len(said):5} tokens, {answered - began:6.2f} s"
        if isinstance(cache, CompressedCache):
            awake = cache.nbytes
            cache.rest()
            line += f", {awake:12,} bytes in the turn, {cache.nbytes:11,} at rest, "
            line += f"{time.perf_counter() - answered:5.2f} s to rest"
        else:
            held = sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
            line += f", {held:12,} bytes in the turn and between turns"
        print(line, flush=True)
    print(f"{kind:10} peak {peak_nbytes() - before:,} bytes beyond the model")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    p.add_argument("--turns", type=int, default=6)
    p.add_argument("--turn_tokens", type=int, default=300)
    p.add_argument("--new_tokens", type=int, default=40)
    p.add_argument("--step", type=float, default=MIDDLE)
    p.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.kind:
        chat(given.kind, given)
        return 0
    command = [sys.executable, "-m", "benchmarks.conversation", *sys.argv[1:]]
    return max(subprocess.run([*command, "--kind", kind]).returncode for kind in KINDS)


if __name__ == "__main__":
    sys.exit(main())
