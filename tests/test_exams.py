"""Exams on models whose answers are known, through the path that all models take; and the numbers
that are made of them, by hand."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from compression.base import Compressor, Uncompressed
from compression.coded.learned_text import FIRST_SAMPLE, leaked, paragraphs
from compression.registry import make
from compression.studies import exam_tables, exam_words
from compression.studies.compare import CompareStudy
from compression.studies.exams import Papers, answered, filler_of, sittings
from compression.studies.going_on import GoOn
from compression.studies.run import run
from compression.studies.task_study import TaskStudy
from compression.studies.work import Here, Worker, judge_of
from config import UsageError
from data.corpora import reference_samples
from data.tasks.catalogue import TASKS
from data.texts import Sample
from tests import fake_models, families

CONTEXT = 2600  # bytes, each a token
TEXTS = reference_samples()[:2]


def papers_of(names, monkeypatch, n=1, context=CONTEXT):
    for name in set(TASKS) - set(names):
        monkeypatch.delitem(TASKS, name)
    blank = fake_models.loaded(fake_models.guessing)
    return Papers(TEXTS, context, n).run(Worker(blank))[0]


def knowing(papers):
    """Says the right answer wherever the fact that tells it can be read."""
    answers = {}
    for paper in papers:
        for asked in paper.questions:
            first = asked.question.answers[0]
            said = " " + ", ".join(asked.question.answers)
            if asked.question.rule == "is in capitals":
                said = " ALL IN CAPITALS"
            read = first if asked.question.rule != "is in capitals" else "CAPITAL LETTERS"
            answers[asked.question.asked] = (read, said)
    return fake_models.loaded(fake_models.knowing(answers))


@dataclass(frozen=True)
class Forgetful(Compressor):
    """Stores nothing and restores zeros."""

    name: ClassVar[str] = "forgetful"

    def encode(self, cache):
        return {"nothing": torch.zeros(1, dtype=torch.uint8)}

    def decode(self, stored, shape):
        stored.pop("nothing")
        return shape.filled(
            tuple(
                x.filled(torch.zeros(x.sizes("key")), torch.zeros(x.sizes("value")))
                for x in shape.layers
            )
        )


def rows_of(model, papers, *methods):
    study = TaskStudy(context_tokens=CONTEXT, methods=("none", "fp8"))
    tasks = sittings(study, papers, methods)
    return [
        (task, scored.row)
        for task, scored in zip(tasks, Here(model).each(tasks, "score"), strict=True)
    ]


def scores(row):
    return [value for name, value in row.items() if name.startswith("score.")]


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_copies_is_right_and_one_that_has_forgotten_is_not(name, monkeypatch):
    papers = papers_of([name], monkeypatch)
    (_, full), (_, lost) = rows_of(knowing(papers), papers, Uncompressed(), Forgetful())
    n = len(papers[0].questions)
    assert scores(full) == [1.0] * n and scores(lost) == [0.0] * n
    sure = [v for k, v in full.items() if k.startswith("probability.") and v is not None]
    assert sure and all(p == pytest.approx(1, abs=1e-6) for p in sure)
    assert not full["engaged"] and lost["engaged"]
    assert full["bits_per_value"] == 16 and 1 < lost["stored_bytes"] < full["stored_bytes"]


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multivalue", "frequent_words"])
def test_a_model_that_guesses_has_the_probability_of_a_guess(name, monkeypatch):
    papers = papers_of([name], monkeypatch)
    ((_, row),) = rows_of(fake_models.loaded(fake_models.guessing), papers, Uncompressed())
    (asked,) = papers[0].questions
    lengths = [len(answer) + 1 for answer in asked.question.answers]  # with the blank before it
    by_hand = np.mean([fake_models.VOCABULARY ** -float(n) for n in lengths])
    assert row["probability.0"] == pytest.approx(by_hand, rel=1e-3) and row["score.0"] == 0


def test_the_same_model_finds_what_a_mild_method_keeps(monkeypatch):
    """Bits of token ids survive 8-bit floats, and half of the text does not hold every fact."""
    papers = papers_of(["niah_multikey_1"], monkeypatch, n=2)
    model = knowing(papers)
    found = rows_of(model, papers, Uncompressed(), make("fp8"), make("kivi", {"bits": 2}))
    assert all(scores(row) == [1.0] * 4 for _, row in found)
    assert [row["engaged"] for task, row in found if task.method.name == "fp8"] == [False] * 2


def test_questions_do_not_see_each_other_and_their_order_is_nothing(monkeypatch):
    """Each is asked right after the context, on a cache that no other question has gone into."""
    papers = papers_of(["niah_multikey_1"], monkeypatch)
    loaded = families.sharp("llama_gqa")
    monkeypatch.setattr(type(loaded.settings), "max_position_embeddings", 10**4, raising=False)
    context = papers[0].context[:100]
    asked = papers[0].questions
    judge = judge_of(loaded, torch.cat([context, asked[0].ids[:2]]), len(context))
    one_way = [answered(judge.continuation, judge.cache, q) for q in asked]
    other_way = [answered(judge.continuation, judge.cache, q) for q in reversed(asked)]
    assert one_way == other_way[::-1]


def test_the_probability_is_that_of_one_pass_over_everything(monkeypatch):
    papers = papers_of(["niah_single_1"], monkeypatch)
    loaded = families.sharp("llama_gqa")
    context, (asked,) = papers[0].context[:60], papers[0].questions
    judge = judge_of(loaded, torch.cat([context, asked.ids[:2]]), 60)
    found = answered(judge.continuation, judge.cache, asked)
    whole = torch.cat([context, asked.ids, asked.expected])
    with torch.no_grad():
        logits = loaded.model(whole[None]).logits[0].float().log_softmax(-1)
    n = len(asked.expected)
    by_hand = logits[-n - 1 : -1].gather(1, asked.expected[:, None]).sum().exp().item()
    assert found["probability"] == pytest.approx(by_hand, rel=0.05)  # the cache is in 16 bits


def test_facts_are_never_hidden_in_what_methods_are_calibrated_on():
    samples = reference_samples()
    leaky = [sample for sample in samples if leaked([sample])]
    assert leaky and all(sample.index >= FIRST_SAMPLE for sample in leaky)
    with pytest.raises(UsageError, match="calibrated on: give another `text_file`"):
        filler_of(leaky)
    filler = filler_of(samples)
    later = {p for s in samples[FIRST_SAMPLE:] for p in paragraphs(s.text) if len(p) > 200}
    learned = later - {p for s in samples[:FIRST_SAMPLE] for p in paragraphs(s.text)}
    whole = " ".join(filler.sentences)
    assert not [p for p in learned if " ".join(p.split()) in whole]
    mine = Sample(3, "mine", "file", "My own text. It is short.")
    assert filler_of([mine, *leaky]).name == "file #3"


def test_what_is_gone_on_with_is_compared_token_by_token():
    loaded = families.sharp("llama_gqa")
    ids = families.token_ids(60)
    judge = judge_of(loaded, ids, 40)
    own = tuple(judge.continuation.greedy(judge.cache, 8))

    class Asks:
        context, probes = 40, True

    rows = {}
    for method in (Uncompressed(), make("kivi", {"bits": 1, "recent_tokens": 0})):
        rows[method.name] = GoOn(Asks(), ids, method, own).run(Worker(loaded)).row
        restored = method.compress(judge.cache).restore()
        said = judge.continuation.greedy(restored, 8)
        same = [a == b for a, b in zip(said, own, strict=True)]
        row = rows[method.name]
        assert row["8.equal_share"] == pytest.approx(np.mean(same))
        assert row["8.first_difference"] == (same.index(False) if False in same else 8)
    assert rows["none"]["8.kl_max_nats"] == 0
    assert rows["kivi"]["8.kl_p50_nats"] <= rows["kivi"]["8.kl_p99_nats"] > 0


def answers(scores, tasks=("a", "b")):
    """A table of answers: scores[task][label] is a list of exams, each a list of questions."""
    return pd.DataFrame(
        {
            "label": label, "task": task, "exam": e, "question": q, "score": s, "probability": s,
            "bits_per_value": 16.0 if label == "none" else 2.0, "engaged": label == "x",
            "stored_bytes": 100 if label == "none" else 20, "original_bytes": 100,
        }
        for task in tasks
        for label, exams in scores[task].items()
        for e, questions in enumerate(exams)
        for q, s in enumerate(questions)
    )  # fmt: skip


SCORES = {
    "a": {"none": [[1, 1], [1, 0], [1, 1]], "x": [[1, 0], [1, 0], [0, 0]]},
    "b": {"none": [[0], [0], [0.3]], "x": [[0], [1], [0]]},
}


def test_differences_are_paired_by_exam():
    table = exam_tables.by_task(answers(SCORES)).set_index(["task", "label"])
    row = table.loc[("a", "x")]
    assert row["accuracy_full"] == pytest.approx(5 / 6) and row["accuracy"] == pytest.approx(1 / 3)
    off = np.array([-0.5, 0, -1])
    assert row["difference"] == pytest.approx(off.mean())
    assert row["difference_se"] == pytest.approx(off.std(ddof=1) / math.sqrt(3))
    assert (row["better"], row["worse"], row["exams"], row["questions"]) == (0, 2, 3, 6)
    assert row["p_value"] == 0.5 and row["bits_per_value"] == pytest.approx(3.2)
    assert table.loc[("a", "none"), "difference"] == 0
    assert table.loc[("b", "x"), "better"] == 1


def test_what_the_model_cannot_do_is_not_averaged():
    of_tasks = exam_tables.by_task(answers(SCORES))
    counted = dict(zip(of_tasks["task"], of_tasks["counted"], strict=True))
    assert counted == {"a": True, "b": False}
    overall = exam_tables.over_tasks(answers(SCORES), of_tasks).set_index("label")
    assert overall.loc["x", "accuracy"] == pytest.approx(1 / 3) and overall.loc["x", "tasks"] == 1
    said = "\n".join(exam_words.said(of_tasks, overall.reset_index(), pd.DataFrame(), "a text"))
    assert "No setting is within one point of the untouched cache in each of these tasks." in said
    assert "less than 20% of them: b (10%)" in said
    assert (
        "x, 5.0 x: 33.3%, -50.0 ± 28.9 points over 1 task; of 3 contexts 0 better and 2 worse"
        in said
    )


def test_a_method_that_changed_nothing_did_not_engage():
    idle = answers({"a": {"none": [[1]], "y": [[1]]}}, ("a",))
    of_tasks = exam_tables.by_task(idle)
    overall = exam_tables.over_tasks(idle, of_tasks)
    said = "\n".join(exam_words.said(of_tasks, overall, pd.DataFrame(), "a text"))
    assert "y did not engage in a: what it restored is the untouched cache bit for bit" in said
    assert "x did not engage" not in said


def test_the_smallest_that_loses_nothing_is_named():
    scores = {"none": [[1], [0.5]], "x": [[1], [0.5]], "y": [[1], [0.5]], "z": [[1], [0]]}
    table = answers({"a": scores}, ("a",)).assign(engaged=True)
    table.loc[table["label"] == "x", "stored_bytes"] = 10
    of_tasks = exam_tables.by_task(table)
    overall = exam_tables.over_tasks(table, of_tasks)
    said = "\n".join(exam_words.said(of_tasks, overall, pd.DataFrame(), "a text"))
    assert "in each of these tasks: x, y; the smallest is x, 10.0 x or more." in said


@pytest.mark.parametrize("n", range(7))
def test_the_sign_test_counts_all_splits(n):
    """Against all 2^n equally likely outcomes."""
    for better in range(n + 1):
        off = abs(better - n / 2)
        as_uneven = [abs(bin(k).count("1") - n / 2) >= off for k in range(2**n)]
        assert exam_tables.sign_test(better, n - better) == pytest.approx(np.mean(as_uneven))


def test_a_whole_run(monkeypatch, empty_cache):
    """On a model that knows nothing: every task is set, scored and told of."""
    monkeypatch.setattr("compression.studies.exams.SPARE", 0)
    loaded = families.fresh("llama_gqa")
    loaded.model.config.max_position_embeddings = 4000
    kept = ("niah_single_1", "niah_multikey_1", "instructions")
    for name in set(TASKS) - set(kept):
        monkeypatch.delitem(TASKS, name)
    asked = {"context_tokens": 1600, "score_tokens": 4, "num_samples": 1}
    asked |= {"methods": ("fp8", "recent"), "levels": (0.5,)}
    study = TaskStudy(**asked)
    outcome = run(study, loaded, reference_samples())
    tables = outcome.report.tables
    of_tasks = tables["tasks/accuracy"]
    assert set(of_tasks["task"]) == set(kept) and not of_tasks["counted"].any()
    assert set(of_tasks["label"]) == {"none", "fp8", "recent 0.5"}
    assert len(tables["tasks/answers"]) == 3 * (1 + 4 + 4)
    assert set(tables["tasks/going_on"]["tokens"]) == {64, 256}
    untouched = tables["tasks/going_on"].set_index("label").loc["none"]
    assert (untouched["equal_share"] == 1).all() and (untouched["kl_max_nats"] == 0).all()
    assert any("Python language reference (offline) #0" in line for line in outcome.report.lines)
    beside = CompareStudy(**asked, needles=False, tasks=True)
    again = run(beside, loaded, reference_samples()).report.tables  # of rows that were kept
    pd.testing.assert_frame_equal(again["tasks/answers"], tables["tasks/answers"])
    timed = ["prefill_s", "beats_prefill_from", "beats_plain_below"]  # against prefilling anew
    compared = again["compare/compare"].drop(columns=timed)
    pd.testing.assert_frame_equal(compared, tables["tasks/running_text"])
