"""What Ray costs and gives: the start, each task, and a study of several texts beside one process.

`python -m benchmarks.spread`, on the default model. The one process uses all threads that torch
takes; each worker of the cluster has one CPU. No finished rows are taken.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compression.studies.cluster import Cluster
from compression.studies.run import carry_out
from compression.studies.tucker import TuckerStudy
from compression.studies.work import Here, Task, Work, Worker, untimed
from data import models
from data.corpora import reference_samples

TASKS = 200


@dataclass(frozen=True)
class Nothing(Task[int]):
    """A task that takes no time of its own."""

    number: int

    def run(self, worker: Worker) -> int:
        return self.number


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--ray_workers", type=int, default=2)
    p.add_argument("--context_tokens", type=int, default=1024)
    p.add_argument("--num_samples", type=int, default=4)
    asked = p.parse_args()
    study = TuckerStudy(
        context_tokens=asked.context_tokens,
        num_samples=asked.num_samples,
        no_sensitivity=True,
    )
    print("| | seconds |\n|---|---|")
    here = Here(models.load())
    alone = _row("study in one process", lambda: _carried_out(study, here))
    _row(f"{TASKS} tasks of nothing in one process", lambda: here.each(_nothing(), "task"))
    began = time.perf_counter()
    with Cluster("auto", asked.ray_workers) as cluster, cluster.work({}, untimed) as work:
        print(f"| start of a cluster | {time.perf_counter() - began:.2f} |")
        _row("first task of each worker, which loads the model", lambda: _all_at_work(work))
        each = _row(f"{TASKS} tasks of nothing on it", lambda: work.each(_nothing(), "task"))
        spread = _row(f"study on {cluster.n_workers} workers", lambda: _carried_out(study, work))
    print(f"\nPer task: {1000 * each / TASKS:.1f} ms. Speed-up: {alone / spread:.2f}.")


def _row(what: str, do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    seconds = time.perf_counter() - began
    print(f"| {what} | {seconds:.2f} |", flush=True)
    return seconds


def _nothing() -> list[Nothing]:
    return [Nothing(i) for i in range(TASKS)]


def _all_at_work(work: Work) -> None:
    work.each([Nothing(i) for i in range(8)], "task")


def _carried_out(study: TuckerStudy, work: Work) -> None:
    with _nothing_kept():
        carry_out(study, work, reference_samples())


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """A cache folder without finished rows; the models are loaded by then."""
    before = os.environ.get("KV_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KV_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("KV_CACHE_HOME")
            if before is not None:
                os.environ["KV_CACHE_HOME"] = before


if __name__ == "__main__":
    main()
