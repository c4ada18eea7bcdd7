"""What the analysis costs beside the forward pass that it analyses.

    python -m benchmarks.analyze [--sequence_length 2048] [--repeat 5] [--model NAME]

Prints a table. Times are medians over the repeats, taken in turn in one process after an uncounted
round; shares are of the plain forward pass, a prefill without the probe.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import psutil

import config
from analysis.generation import generation_stages
from analysis.measures import sweep, thresholds
from analysis.tables import Subject, tables
from config import RunConfig
from data import extraction, models, texts
from data.record import peak_memory_bytes
from visualization.catalogue import PICTURES
from visualization.output import OutputFolder

ROOT = Path(__file__).parent.parent
PERCENTAGE = config.SPARSITY_THRESHOLD_PERCENTAGE
MIB = 2**20


def timed(action, *arguments, **named):
    began = time.perf_counter()
    result = action(*arguments, **named)
    return time.perf_counter() - began, result


def analysed(loaded, start) -> dict:
    """Every table of `--mode analyze` but that of the stages."""
    words = [texts.visible(loaded.tokenizer.decode([i])) for i in start.cache.token_ids.tolist()]
    return tables(Subject(sweep(start.cache, PERCENTAGE), words), "all")


def drawn(made: dict, folder: str) -> None:
    with OutputFolder(folder) as output:
        for stem, table in made.items():
            if stem in PICTURES:
                output.picture(stem, PICTURES[stem](table, "benchmark"), table)
            else:
                output.table(stem, table)
        output.commit("analyze.json", {})


def whole_run(loaded, ids, new_tokens: int, folder: str):
    """Prefill, tables, generation, stages and pictures; the final cache and the stages."""
    start = extraction.prefill(loaded, ids, probe=True)
    made = analysed(loaded, start)
    cache = extraction.generate(loaded, start, new_tokens)
    stages = {
        "tokens/generation_stages_comparison": generation_stages(
            start.cache, cache, thresholds(start.cache, PERCENTAGE)
        )
    }
    drawn(made | stages, folder)
    return cache, stages


def one_round(loaded, ids, stages: dict, folder: str) -> dict[str, float]:
    plain, _ = timed(extraction.prefill, loaded, ids)
    probed, start = timed(extraction.prefill, loaded, ids, probe=True)
    swept, _ = timed(sweep, start.cache, PERCENTAGE)
    analysis, made = timed(analysed, loaded, start)
    drawing, _ = timed(drawn, made | stages, folder)
    return {
        "plain forward pass": plain,
        "attention probe, added": probed - plain,
        "keys and values alone": swept,
        "all tables": analysis,
        "drawing and saving": drawing,
        "tables, drawing and saving": analysis + drawing,
    }


def main_help() -> None:
    command = [sys.executable, "main.py", "--help"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--sequence_length", type=int, default=2048)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    flags = p.parse_args()
    run = RunConfig(model=flags.model, sequence_length=flags.sequence_length, use_wikitext=False)

    loaded = models.load(run)
    sum(w.sum() for w in loaded.model.parameters())  # the file is mapped: touch every weight
    resident = psutil.Process().memory_info().rss
    ids = extraction.tokenise(loaded, texts.choose(run), run.sequence_length, run.new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        # First of all, since a peak cannot be taken back; it warms up the rest.
        cache, stages = whole_run(loaded, ids, run.new_tokens, folder)
        in_memory = sum(x.keys.element_size() * x.n_entries for x in cache.layers)
        beyond = peak_memory_bytes() - resident - in_memory
        del cache
        rounds = [one_round(loaded, ids, stages, folder) for _ in range(flags.repeat)]

    print(f"{loaded.name}, {len(ids)} tokens, {loaded.dtype} on {loaded.device}")
    print(f"{'':28} {'seconds':>8} {'share':>6}  min to max")
    forward = statistics.median(r["plain forward pass"] for r in rounds)
    for name in rounds[0]:
        values = [r[name] for r in rounds]
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:28} {median:8.3f} {median / forward:6.2f}  {spread}")
    for name, action in {
        "load again": lambda: models.load(run),
        "main.py --help": main_help,
    }.items():
        median = statistics.median(timed(action)[0] for _ in range(flags.repeat))
        print(f"{name:28} {median:8.3f}")
    size = f"cache {in_memory / MIB:.0f} MiB"
    print(f"peak memory beyond model and cache {beyond / MIB:.0f} MiB, {size}")


if __name__ == "__main__":
    main()
