"""One measurement of benchmarks/scaling.py, in a process of its own: seconds and memory.

    python -m benchmarks.measured '{"measure": "analysis", "case": "statistics", ...}'

Prints a line of JSON. Memory is what the process holds that no file backs (Linux tells; elsewhere
the resident peak less the mapped cache), so that the system's copies of a mapped file do not count.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import config
from analysis import heuristics, similarity
from analysis.generation import generation_stages
from analysis.measures import peaks, sweep, thresholds
from analysis.tables import Subject, tables
from benchmarks import mapped
from compression.methods.dim_groups import dimension_groups
from data.cache import KVCache
from visualization.terminal.record import peak_resident_nbytes

PERCENTAGE = config.SPARSITY_THRESHOLD_PERCENTAGE
WARM_TOKENS = 256  # that a case is first run on, for what is imported and set up only once
EVERY_S = 0.005
STATUS = Path("/proc/self/status")


class Memory:
    """The most that this process holds beyond files, looked at every few milliseconds."""

    def __init__(self, mapped_nbytes: int) -> None:
        self.mapped_nbytes = mapped_nbytes
        self.before = self.peak = self.now()
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def now(self) -> int:
        if not STATUS.exists():
            return max(0, peak_resident_nbytes() - self.mapped_nbytes)
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.peak = max(self.peak, self.now())

    def stop(self) -> int:
        self._over.set()
        self._watching.join()
        return max(self.peak, self.now())


def statistics(cache: KVCache) -> None:
    """Layers, heads and magnitudes."""
    subject = Subject(sweep(cache, PERCENTAGE), [])
    tables(subject, "layers")
    tables(subject, "heads")


def by_token(cache: KVCache) -> None:
    words = ["word"] * cache.n_tokens
    tables(Subject(sweep(cache, PERCENTAGE), words), "tokens")


def by_dimension(cache: KVCache) -> None:
    tables(Subject(sweep(cache, PERCENTAGE), []), "embeddings")


def stages(cache: KVCache) -> None:
    text = cache.before(cache.n_tokens // 2)
    generation_stages(text, cache, thresholds(text, PERCENTAGE))


def alike(cache: KVCache) -> None:
    positions = similarity.shared_positions(cache, config.SIMILARITY_POSITIONS)
    kinds = similarity.comparable_kinds(cache)
    similarity.layer_similarity(cache, kinds, positions, config.SUBSPACE_RANK)
    similarity.head_similarity(cache, kinds, positions)
    similarity.token_similarity(cache, kinds, positions)
    similarity.token_embedding_patterns(cache, positions)


ANALYSES: dict[str, Callable[[KVCache], object]] = {
    "global maxima": peaks,
    "statistics": statistics,
    "tokens and sinks": by_token,
    "dimensions": by_dimension,
    "stages of generation": stages,
    "heuristics": lambda cache: heuristics.of_parts(sweep(cache, PERCENTAGE)),
    "similarity": alike,
    "correlations of dimensions": lambda cache: similarity.dimension_correlations(
        cache, similarity.comparable_kinds(cache)
    ),
    "groups of dimensions": lambda cache: dimension_groups(
        cache, config.DIM_SIMILARITY, config.LARGEST_DIM_GROUP
    ),
}


def measured(action: Callable[[], Any], mapped_nbytes: int = 0) -> tuple[dict[str, float], Any]:
    """seconds; peak: all that the process held; beyond: the peak less what it held before."""
    memory = Memory(mapped_nbytes)
    began = time.perf_counter()
    made = action()
    seconds = time.perf_counter() - began
    peak = memory.stop()
    return {"seconds": seconds, "peak": peak, "beyond": peak - memory.before}, made


def analysis(case: str, folder: str, tokens: int, layers: int | None = None) -> dict[str, float]:
    run = ANALYSES[case]
    cache = mapped.mapped(Path(folder), tokens, layers)
    run(cache.before(min(tokens, WARM_TOKENS)))
    return measured(lambda: run(cache), cache.nbytes)[0]


def from_disk(case: str, folder: str) -> dict[str, float]:
    """Statistics, or a plain reading, of files that the system has forgotten; `told`: with the
    maxima known, as whoever wrote the file knows them."""
    files = Path(folder)
    statistics(mapped.mapped(files, WARM_TOKENS))
    believed = peaks(mapped.mapped(files)) if case == "told" else None
    mapped.forget(files)  # takes what nobody has mapped any more
    cache = mapped.mapped(files)
    actions: dict[str, Callable[[], object]] = {
        "read": lambda: mapped.read(files),
        "untold": lambda: sweep(cache, PERCENTAGE),
        "told": lambda: sweep(cache, PERCENTAGE, believed),
    }
    return measured(actions[case], cache.nbytes)[0]


def coded(folder: str, tokens: int) -> dict[str, dict[str, float]]:
    """There and back; memory beyond what is stored, and beyond what is restored."""
    from compression.coded.kept_calibrations import calibration_of
    from compression.coded.method import Coded
    from data import models

    method = Coded(calibration=calibration_of(models.load()))
    cache = mapped.mapped(Path(folder), tokens)
    method.compress(cache.before(WARM_TOKENS)).restore()
    there, compressed = measured(lambda: method.compress(cache), cache.nbytes)
    back, restored = measured(compressed.restore, cache.nbytes)
    there["beyond"] -= compressed.nbytes
    back["beyond"] -= restored.nbytes
    there["stored"] = compressed.nbytes
    return {"compress": there, "restore": back}


def repeated(folder: str, context: int, tokens: int) -> dict[str, float]:
    """Write what `coded` is measured on: a real context of the default model, repeated."""
    from data import corpora, extraction, models

    loaded = models.load()
    ids = extraction.tokenise(loaded, corpora.reference_samples()[0], context)
    cache = extraction.prefill(loaded, ids, probe=True).cache.in_16_bits()
    mapped.write_repeated(Path(folder), cache, tokens)
    return {}


def real(tokens: int) -> dict[str, dict[str, float]]:
    """The tables by token of a real context of the default model, topics one after another."""
    from data import corpora, extraction, models, texts

    loaded = models.load()
    text = "\n\n".join(sample.text for sample in corpora.reference_samples())
    ids = extraction.tokenise(loaded, texts.Sample(0, "", "offline corpus", text), tokens)
    made, start = measured(lambda: extraction.prefill(loaded, ids, probe=True))
    looked = measured(lambda: by_token(start.cache))[0]
    return {"prefill": made, "analysis": looked}


CASES: dict[str, Callable[..., Any]] = {
    "analysis": analysis,
    "from_disk": from_disk,
    "coded": coded,
    "repeated": repeated,
    "real": real,
}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(CASES[given.pop("measure")](**given)))
