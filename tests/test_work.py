"""Tasks of a run: each gives the same wherever and in whatever company it is done."""

import pickle
from dataclasses import dataclass

import pandas as pd
import pytest

from compression.studies.compare import CompareStudy
from compression.studies.compress import CompressStudy
from compression.studies.prune import PruneStudy
from compression.studies.run import carry_out
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from compression.studies.work import Here, Task, Work, Worker
from data import extraction
from data.corpora import reference_samples
from tests import families
from tests.commands import without_seconds

LENGTHS = {"context_tokens": 100, "score_tokens": 4, "num_samples": 2}
STUDIES = {
    "compare": CompareStudy(**LENGTHS, methods=("none", "int8", "svd"), show_generation=3),
    "compress": CompressStudy(**LENGTHS, levels=(0.5,)),
    "prune": PruneStudy(**LENGTHS, prune_layers=(0,)),
    "similarity": SimilarityStudy(**LENGTHS),
    "tucker": TuckerStudy(**LENGTHS, token_rank=8, embedding_rank=8),
}
TIMES = ["compress_s", "restore_s", "prefill_s", "beats_prefill_from", "beats_plain_below"]


class Pickled(Work):
    """Each task by a worker of its own, which it reaches, as its result returns, as bytes."""

    def __init__(self, name: str) -> None:
        self.phase = Here(families.loaded(name)).phase
        self._name = name

    def as_done(self, tasks, what):
        for i, task in reversed(list(enumerate(tasks))):
            worker = Worker(families.loaded(self._name))
            yield i, pickle.loads(pickle.dumps(worker.done(pickle.loads(pickle.dumps(task)))))


@pytest.mark.parametrize("name", STUDIES)
def test_tasks_sent_to_workers_of_their_own_give_the_tables_of_one_process(
    name, monkeypatch, tmp_path
):
    outcomes = []
    for i, work in enumerate([Here(families.loaded("llama_gqa")), Pickled("llama_gqa")]):
        monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / str(i)))  # no finished rows
        outcomes.append(carry_out(STUDIES[name], work, reference_samples()))
    here, apart = outcomes
    assert here.report.tables.keys() == apart.report.tables.keys()
    for stem, table in here.report.tables.items():
        drop = [column for column in TIMES if column in table]
        pd.testing.assert_frame_equal(
            table.drop(columns=drop), apart.report.tables[stem].drop(columns=drop)
        )
    assert without_seconds(here.report.lines) == without_seconds(apart.report.lines)
    assert here.report.continued == apart.report.continued
    assert [s.name for s in here.samples] == [s.name for s in apart.samples]


def test_the_text_that_was_read_last_is_not_read_again(monkeypatch):
    reads, genuine = [], extraction.prefill
    monkeypatch.setattr(extraction, "prefill", lambda *a, **k: reads.append(a) or genuine(*a, **k))
    worker = Worker(families.loaded("llama_gqa"))
    ids, others = families.token_ids(30), families.token_ids(31)
    first = worker.judge(ids, 20, True)
    assert worker.judge(ids.clone(), 20, True) is first and len(reads) == 1
    for text in ((ids, 20, False), (ids, 19, False), (others, 19, False), (ids, 20, True)):
        assert worker.judge(*text) is not first
    assert len(reads) == 5


@dataclass(frozen=True)
class _Number(Task[int]):
    number: int

    def run(self, worker):
        return self.number


def test_results_come_in_the_order_of_the_tasks():
    work = Here(families.loaded("llama_gqa"))
    assert work.each([_Number(i) for i in (3, 1, 2)], "number") == [3, 1, 2]
    assert work.identity == families.loaded("llama_gqa").identity and work.reading(5)[:2] == [
        "cpu",
        None,
    ]
