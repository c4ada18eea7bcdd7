"""What a run examines beside running text: the tasks, and what the model goes on to say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from compression.base import Compressor
from compression.evaluate import Row
from compression.studies.base import Study
from compression.studies.exams import Paper, Papers, sittings
from compression.studies.going_on import LENGTHS, TEXTS, GoOn, OwnWords
from compression.studies.kept_rows import kept_or_measured
from compression.studies.work import Work
from data.scored_texts import Text
from data.texts import Sample

OF_PAPER = ("method", "settings", "bits_per_value", "stored_bytes", "original_bytes", "engaged")
OF_ANSWER = ("score", "probability", "said")


@dataclass(frozen=True)
class Examined:
    """answers: a row per method, exam and question. continued: one per method, text and length.
    filler: what facts were hidden in."""

    answers: pd.DataFrame
    continued: pd.DataFrame
    filler: str


def examined(
    study: Study,
    work: Work,
    candidates: Sequence[Sample],
    texts: Sequence[Text],
    methods: Sequence[Compressor],
) -> Examined:
    papers, filler = work.one(Papers(candidates, study.context, study.n_papers))
    tasks = sittings(study, papers, methods)
    rows = [each.row for each in kept_or_measured(work, tasks)]
    answers = [
        answer
        for task, row in zip(tasks, rows, strict=True)
        for answer in _answers(task.paper, row)
    ]
    return Examined(
        pd.DataFrame(answers).astype({"probability": float}),
        pd.DataFrame(_continued(study, work, texts, methods)),
        filler,
    )


def _answers(paper: Paper, row: Row) -> Iterator[Row]:
    of_paper = {name: row[name] for name in OF_PAPER}
    for i, asked in enumerate(paper.questions):
        question = asked.question
        yield {
            "task": paper.task,
            "exam": paper.number,
            "question": i,
            **of_paper,
            "asked": question.asked.strip(),
            "rule": question.rule,
            "expected": ", ".join(question.answers),
            **{name: row[f"{name}.{i}"] for name in OF_ANSWER},
        }


def _continued(
    study: Study, work: Work, texts: Sequence[Text], methods: Sequence[Compressor]
) -> list[Row]:
    """None where the model has no positions left."""
    limit = work.model.max_positions
    n_said = max(LENGTHS) if limit is None else min(max(LENGTHS), limit - study.context - 1)
    if n_said < 1:
        return []
    first = [ids for _, ids in texts[:TEXTS]]
    own = work.each([OwnWords(study, ids, n_said) for ids in first], "text")
    tasks = [
        GoOn(study, ids, method, tuple(words))
        for ids, words in zip(first, own, strict=True)
        for method in methods
    ]
    return [each for scored in kept_or_measured(work, tasks) for each in _by_length(scored.row)]


def _by_length(row: Row) -> Iterator[Row]:
    lengths = sorted({int(name.split(".")[0]) for name in row if "." in name})
    for n in lengths:
        of_length = {
            name.removeprefix(f"{n}."): value
            for name, value in row.items()
            if name.startswith(f"{n}.")
        }
        of_all = {name: row[name] for name in ("method", "settings", "bits_per_value")}
        yield {**of_all, "tokens": n, **of_length}
