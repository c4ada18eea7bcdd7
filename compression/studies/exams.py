"""Exams of a run: contexts with questions, made by rule at the length that is asked for, each read
once and compressed before any question is known; every question is then asked of what was restored.

A question's answer is scored twice: by what the model says greedily, checked by the task's rule,
and by the probability of the right answer, teacher-forced.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from compression.base import Compressor
from compression.coded.learned_text import leaked
from compression.costs import tried
from compression.evaluate import Row, Scored
from compression.studies.tasks import OfMethod
from compression.studies.work import Task, Worker
from config import UsageError
from data.cache import KINDS, KVCache
from data.loaded_model import LoadedModel
from data.scoring import Continuation
from data.tasks.base import Filler, Question, fitted
from data.tasks.catalogue import TASKS
from data.texts import Sample, printable

SPARE = 8  # tokens that may be said beside those of the answers
FILLER_TEXTS = 8  # read to hide facts in

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Asked:
    """A question in token ids. pieces: of each answer its own (tokens,), with `ahead` of it what
    separates it from the one before."""

    question: Question
    ids: torch.Tensor
    ahead: tuple[torch.Tensor, ...]
    pieces: tuple[torch.Tensor, ...]

    @property
    def expected(self) -> torch.Tensor:
        """(tokens,) of all answers, in order."""
        pairs = zip(self.ahead, self.pieces, strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    @property
    def is_of_answer(self) -> torch.Tensor:
        """(tokens,) of `expected`: the number of its answer; -1 of what separates two."""
        parts = []
        for i, (ahead, piece) in enumerate(zip(self.ahead, self.pieces, strict=True)):
            parts += [torch.full((len(ahead),), -1), torch.full((len(piece),), i)]
        return torch.cat(parts)

    @property
    def room(self) -> int:
        """Tokens that the model may say."""
        return self.question.room or len(self.expected) + SPARE


@dataclass(frozen=True, eq=False)
class Paper:
    """An exam in token ids. number: which one of its task."""

    task: str
    number: int
    context: torch.Tensor
    questions: tuple[Asked, ...]

    @property
    def key(self) -> str:
        """Of all that is asked."""
        said = repr([(q.question, q.ids.tolist()) for q in self.questions])
        return hashlib.sha256(said.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Papers(Task[tuple[list[Paper], str]]):
    """The exams of all tasks, each of at most `length` tokens, and the name of what their facts are
    hidden in."""

    candidates: Sequence[Sample]
    length: int
    n_papers: int

    def run(self, worker: Worker) -> tuple[list[Paper], str]:
        filler = filler_of(self.candidates)
        written = [
            _paper(worker.loaded, name, number, filler, self.length)
            for name in TASKS
            for number in range(self.n_papers)
        ]
        left_out = {name for name in TASKS if not any(p and p.task == name for p in written)}
        if left_out:
            log.warning(
                "A context of %d tokens is too short for %s: left out.",
                self.length,
                ", ".join(sorted(left_out)),
            )
        papers = [paper for paper in written if paper is not None]
        if not papers:
            raise UsageError(
                f"A context of {self.length} tokens is too short for every task",
                "give a larger `context_tokens`",
            )
        return papers, filler.name


def filler_of(candidates: Sequence[Sample]) -> Filler:
    """The first of these texts that no method is calibrated on a part of. Raises UsageError where
    there is none."""
    first = [sample for sample, _ in zip(candidates, range(FILLER_TEXTS), strict=False)]
    theirs = set(leaked(first))
    free = [sample for sample in first if sample.name not in theirs]
    if not free:
        raise UsageError(
            "Tasks would hide their facts in texts that methods are calibrated on",
            "give another `text_file`, or a smaller `wikitext_index`",
        )
    numbers = ", ".join(f"#{sample.index}" for sample in free)
    return Filler.of(f"{free[0].source} {numbers}", [sample.text for sample in free])


def _paper(
    loaded: LoadedModel, name: str, number: int, filler: Filler, n_tokens: int
) -> Paper | None:
    exam = fitted(
        TASKS[name], f"{name} {number}", filler, n_tokens, lambda text: len(loaded.ids_of(text))
    )
    if exam is None:
        return None
    context = loaded.ids_of(exam.context)
    questions = tuple(_asked(loaded, question) for question in exam.questions)
    for asked in questions:
        most = len(context) + len(asked.ids) + max(asked.room, len(asked.expected))
        asked_for = f"A context, a question and its answer of {most} tokens"
        loaded.refuse_beyond(most, asked_for, "`context_tokens`")
    return Paper(name, number, context, questions)


def _asked(loaded: LoadedModel, question: Question) -> Asked:
    def ids(text: str) -> torch.Tensor:
        return loaded.ids_of(text, special_tokens=False)

    ahead = tuple(ids("," if i else "") for i in range(len(question.answers)))
    pieces = tuple(ids(f" {answer}") for answer in question.answers)
    return Asked(question, ids(question.asked), ahead, pieces)


@dataclass(frozen=True, eq=False)
class Sit(OfMethod):
    """One method on one exam: what it stores, whether it changed anything, and of each question
    `score.<i>`, `probability.<i>` and `said.<i>`."""

    paper: Paper

    @property
    def context(self) -> int:
        return len(self.paper.context)

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def what(self) -> str:
        return f"exam {self.paper.key}"

    def run(self, worker: Worker) -> Scored:
        judge = worker.judge(self.ids, self.context, self.study.probes)
        with worker.phase("scoring"):
            whole = tried(self.method, judge.cache)
            row: Row = {
                "method": self.method.name,
                "settings": self.method.words(),
                "stored_bytes": whole.compressed.stored_nbytes,
                "original_bytes": judge.cache.nbytes,
                "bits_per_value": 8 * whole.compressed.stored_nbytes / judge.cache.n_entries,
                "engaged": not _alike(judge.cache, whole.restored),
            }
            for i, asked in enumerate(self.paper.questions):
                found = answered(judge.continuation, whole.restored, asked)
                row |= {f"{name}.{i}": value for name, value in found.items()}
        return Scored(row)


def sittings(study: Any, papers: Sequence[Paper], methods: Sequence[Compressor]) -> list[Sit]:
    """Those of one exam come after each other, for they read one text. What is fed after it is the
    beginning of the first question: of that nothing is scored."""
    return [
        Sit(study, torch.cat([paper.context, paper.questions[0].ids[:2]]), method, paper)
        for paper in papers
        for method in methods
    ]


def _alike(one: KVCache, two: KVCache) -> bool:
    """Whether nothing has changed, and nothing was evicted."""
    pairs = list(zip(one.layers, two.layers, strict=True))
    same = all(torch.equal(a.tensor(k), b.tensor(k)) for a, b in pairs for k in KINDS)
    return same and all(b.keep is None or bool(b.keep.all()) for _, b in pairs)


def answered(continuation: Continuation, cache: KVCache, asked: Asked) -> dict[str, Any]:
    """score, probability (mean over the answers, each after the right ones before it; None where
    there are many right ones) and said, of one question on top of a cache."""
    likely, probability = _teacher_forced(continuation, cache, asked)
    question, tokenizer = asked.question, continuation.loaded.tokenizer
    if likely is not None and question.rule == "holds all":
        said = tokenizer.decode(likely)  # the model would say just that
    else:
        after = replace(continuation, token_ids=asked.ids)

        def is_enough(tokens: list[int]) -> bool:
            return question.rule == "holds all" and question.score(tokenizer.decode(tokens)) == 1

        said = tokenizer.decode(after.said(cache, asked.room, is_enough))
    return {"score": question.score(said), "probability": probability, "said": printable(said)}


def _teacher_forced(
    continuation: Continuation, cache: KVCache, asked: Asked
) -> tuple[list[int] | None, float | None]:
    """The tokens of the right answer where each of them is the likeliest, else None; and the
    probability of the right answer."""
    if not asked.question.is_one_thing:
        return None, None
    expected = asked.expected
    fed = replace(continuation, token_ids=torch.cat([asked.ids, expected]))
    predicted = fed.log_probabilities(cache)[-len(expected) :].cpu()
    of_answer = asked.is_of_answer
    own = predicted.gather(1, expected[:, None])[:, 0].double()
    each = [own[of_answer == i].sum().exp().item() for i in range(len(asked.pieces))]
    probability = math.fsum(each) / len(each)
    right = bool((predicted.argmax(-1) == expected).all())
    return (expected.tolist() if right else None), probability
