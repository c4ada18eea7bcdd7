"""What the analysis costs beside the model's own work.

    python -m benchmarks.analyze [--sequence_length 2048] [--repeat 5] [--model NAME]

Prints a table. Times are medians over the repeats, taken in turn in one process after an uncounted
round; shares are of the plain forward pass, a prefill without the probe. Below it the whole command
`main.py --mode analyze`, as a process of its own, beside one that only loads the model, prefills
and generates as many tokens.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

os.environ["TQDM_DISABLE"] = "1"

import psutil
import torch

import config
from analysis.generation import generation_stages
from analysis.measures import sweep, thresholds
from analysis.tables import Subject, Tables, tables
from data import corpora, extraction, models, texts
from data.cache import KVCache
from data.extraction import Prefill
from data.loaded_model import LoadedModel
from visualization.catalogue import PICTURES
from visualization.drawing import Drawing
from visualization.output import OutputFolder
from visualization.terminal.record import peak_resident_nbytes

ROOT = Path(__file__).parent.parent
PERCENTAGE = config.SPARSITY_THRESHOLD_PERCENTAGE
MIB = 2**20
T = TypeVar("T")


def timed(action: Callable[..., T], *arguments: Any, **named: Any) -> tuple[float, T]:
    began = time.perf_counter()
    result = action(*arguments, **named)
    return time.perf_counter() - began, result


def analysed(loaded: LoadedModel, start: Prefill) -> Tables:
    """Every table of `--mode analyze` but that of the stages."""
    words = [texts.visible(loaded.tokenizer.decode([i])) for i in start.cache.token_ids.tolist()]
    return tables(Subject(sweep(start.cache, PERCENTAGE), words), "all")


def drawn(made: Tables, folder: str) -> None:
    with OutputFolder(folder) as output, Drawing() as drawing:
        for stem, table in made.items():
            if stem in PICTURES:
                output.draw(drawing, stem, table, "benchmark")
            output.table(stem, table)
        output.commit("analyze.json", {})


def whole_run(
    loaded: LoadedModel, ids: torch.Tensor, new_tokens: int, folder: str
) -> tuple[KVCache, Tables]:
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


def one_round(
    loaded: LoadedModel, ids: torch.Tensor, stages: Tables, folder: str
) -> dict[str, float]:
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


MODEL_ALONE = """
from data import corpora, extraction, models
loaded = models.load({model!r})
text = corpora.reference_samples()[0]
ids = extraction.tokenise(loaded, text, {length}, {new_tokens})
extraction.generate(loaded, extraction.prefill(loaded, ids), {new_tokens})
"""


def whole_commands(model: str, length: int, folder: str) -> dict[str, list[str]]:
    """The documented command, and a process that lets the model do the same work alone."""
    settings = {"model": model, "length": length, "new_tokens": config.NEW_TOKENS}
    command = [sys.executable, "main.py", "--model", model, "--sequence_length", str(length)]
    return {
        "model alone, from its start": [sys.executable, "-c", MODEL_ALONE.format(**settings)],
        "main.py --mode analyze": [*command, "--no-use_wikitext", "--output_dir", folder],
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--sequence_length", type=int, default=2048)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--model", default=config.DEFAULT_MODEL)
    flags = p.parse_args()

    loaded = models.load(flags.model)
    for weights in loaded.model.parameters():
        weights.sum()  # the file is mapped: touch every weight
    resident = psutil.Process().memory_info().rss
    text = corpora.reference_samples()[0]
    ids = extraction.tokenise(loaded, text, flags.sequence_length, config.NEW_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        # First of all, since a peak cannot be taken back; it warms up the rest.
        cache, stages = whole_run(loaded, ids, config.NEW_TOKENS, folder)
        in_memory = sum(x.keys.element_size() * x.n_entries for x in cache.layers)
        beyond = peak_resident_nbytes() - resident - in_memory
        del cache
        rounds = [one_round(loaded, ids, stages, folder) for _ in range(flags.repeat)]
        print(f"{loaded.name}, {len(ids)} tokens, {loaded.dtype} on {loaded.device}")
        print_rounds(rounds, "plain forward pass")
        peak = f"peak memory beyond model and cache {beyond / MIB:.0f} MiB"
        print(f"{peak}, cache {in_memory / MIB:.0f} MiB")
        for name, action in {
            "load again": lambda: models.load(flags.model),
            "main.py --help": main_help,
        }.items():
            median = statistics.median(timed(action)[0] for _ in range(flags.repeat))
            print(f"{name:28} {median:8.3f}")
        commands = whole_commands(flags.model, flags.sequence_length, folder)
        del loaded, ids, stages
        whole = [
            {name: seconds_of(command) for name, command in commands.items()}
            for _ in range(flags.repeat)
        ]
        print_rounds(whole, next(iter(commands)))


def seconds_of(command: list[str]) -> float:
    return timed(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)[0]


def print_rounds(rounds: list[dict[str, float]], unit: str) -> None:
    """Medians over the rounds, and as shares of that called `unit`."""
    print(f"{'':28} {'seconds':>8} {'share':>6}  min to max")
    one = statistics.median(r[unit] for r in rounds)
    for name in rounds[0]:
        values = [r[name] for r in rounds]
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:28} {median:8.3f} {median / one:6.2f}  {spread}")


if __name__ == "__main__":
    main()
