"""The run that all studies share, for the command line, a benchmark or a notebook alike: choose the
texts, look at them, score the study's methods on each, and report. Nothing here prints or
draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from analysis import over_texts
from analysis.inventory import beside, inventory_table
from compression.base import Compressor
from compression.coded.learned_text import leak
from compression.evaluate import Scored, as_records, summary
from compression.studies.base import INVENTORY, Plan, Report, Study, Tables
from compression.studies.details import details
from compression.studies.examined import examined
from compression.studies.kept_rows import kept_or_measured
from compression.studies.kept_tables import kept_or_done
from compression.studies.tasks import (
    Choice,
    Hidden,
    Look,
    Prefilled,
    Recall,
    Score,
    See,
    SideBySide,
)
from compression.studies.work import Here, Model, Phase, Work, untimed
from data.inventory import Inventory
from data.loaded_model import LoadedModel
from data.scored_texts import Text
from data.texts import Sample, TextRead, in_all


@dataclass(frozen=True)
class Outcome:
    """What a run gives: the report, and what it rests on, on one model or on several.

    rows: one per method and text. summary: their means. samples: the texts that were scored;
    context: how many of their tokens were read; learned_on: names of those that were only learned
    from. inventory: what the model keeps of the first text; None of several models.
    """

    report: Report
    rows: pd.DataFrame
    summary: pd.DataFrame
    samples: tuple[Sample, ...]
    context: int
    learned_on: tuple[str, ...]
    model: Model
    inventory: Inventory | None

    @property
    def read(self) -> tuple[TextRead, ...]:
        return tuple(sample.read(self.context) for sample in self.samples)

    @property
    def rests_on(self) -> str:
        return in_all(self.read)

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "calibration_texts": list(self.learned_on),
            **({} if self.inventory is None else {"cache": self.inventory.facts}),
            "verdict": self.report.lines,
            "summary": as_records(self.summary),
        }


def run(
    study: Study,
    loaded: LoadedModel,
    candidates: Sequence[Sample],
    continuation: str | None = None,
    phase: Phase = untimed,
) -> Outcome:
    """Carry a study out in this process; see `carry_out`."""
    return carry_out(study, Here(loaded, phase), candidates, continuation)


def carry_out(
    study: Study, work: Work, candidates: Sequence[Sample], continuation: str | None = None
) -> Outcome:
    """Carry a study out on the first of the candidates that are long enough.

    continuation: what is scored after each context instead of its own text.
    """
    texts, others = work.one(Choice(study, candidates, continuation))
    return carry_out_on(texts, study, work, others, candidates)


def carry_out_on(
    texts: list[Text],
    study: Study,
    work: Work,
    others: Sequence[Text] = (),
    candidates: Sequence[Sample] = (),
) -> Outcome:
    """Carry a study out on these texts. others: to learn from. candidates: what tasks are made
    of, where the study sets any."""
    samples = tuple(sample for sample, _ in texts)
    too_good = leak(samples) if study.calibrates else []
    plan, inventory = work.one(Look(study, texts[0][1], list(others)))
    if study.times_prefill:
        (_, plan.prefill_s), *_ = kept_or_done(work, [Prefilled(study, texts[0][1])], "text")
    methods = list(dict.fromkeys(plan.methods))
    scored = _scored(study, work, texts, methods)
    rows = _rows(samples, methods, scored)
    sought = _sought(study, work, texts[0], methods)
    means = summary(rows)
    apart = _seen(study, work, texts, plan)
    if study.examines:
        plan.examined = examined(study, work, candidates, texts, methods)
    report = plan.report(rows, means, sought, work.model)
    if plan.named:
        apart |= details(plan.named, [sample.index for sample in samples], scored)
    shown = plan.shown(means)
    if shown is not None:
        continued = work.one(SideBySide(study, texts[0][1], *shown))
        report = replace(report, continued=continued)
    return Outcome(
        replace(
            report,
            tables=report.tables | apart | {INVENTORY: inventory_table(inventory)},
            lines=[*too_good, *report.lines, *_of_all_kept(means, inventory)],
        ),
        rows,
        means,
        samples,
        study.context,
        tuple(sample.name for sample, _ in others),
        work.model,
        inventory,
    )


def _seen(study: Study, work: Work, texts: list[Text], plan: Plan) -> Tables:
    """Has the plan report what was seen over all texts; the rows of each text apart."""
    if not plan.looked:
        return {}
    others = dict(kept_or_done(work, [See(study, ids) for _, ids in texts[1:]], "text"))
    looked = [dict(plan.looked), *(others[i] for i in range(len(others)))]
    plan.looked = over_texts.combined(looked)
    return over_texts.of_each(looked, [sample.index for sample, _ in texts])


def _of_all_kept(summary: pd.DataFrame, inventory: Inventory) -> list[str]:
    """What the largest ratio is of all that the model keeps, where that is more than keys and
    values."""
    if not inventory.state_nbytes:
        return []
    row = summary.loc[summary["ratio"].idxmax()]
    return [
        f"A ratio is of keys and values; {beside(inventory)}. That stays as it is: the largest "
        f"ratio, {row['ratio']:.2f} x of {row['method']}, is {row['ratio_of_all_kept']:.2f} x of "
        "all that is kept."
    ]


def _scored(study: Study, work: Work, texts: list[Text], methods: list[Compressor]) -> list[Scored]:
    """What each method costs on each text, in this order: those of a text after each other."""
    tasks = [Score(study, ids, method) for _, ids in texts for method in methods]
    return kept_or_measured(work, tasks)


def _rows(
    samples: Sequence[Sample], methods: list[Compressor], scored: Sequence[Scored]
) -> pd.DataFrame:
    """One row per text and method, in this order."""
    sources = [
        {"text_source": sample.source, "index": sample.index, "title": sample.title}
        for sample in samples
        for _ in methods
    ]
    return pd.DataFrame([source | each.row for source, each in zip(sources, scored, strict=True)])


def _sought(study: Study, work: Work, text: Text, methods: list[Compressor]) -> pd.DataFrame:
    """method, settings, depth, right, probability: whether each fact is still found through each
    method."""
    columns = ["method", "settings", "depth", "right", "probability"]
    hidden = work.one(Hidden(study, text[1])) if study.seeks else []
    tasks = [
        Recall(study, torch.cat([each.context, each.follows]), method, each.depth, each.n_answer)
        for each in hidden
        for method in methods
    ]
    rows = [each.row for each in kept_or_measured(work, tasks)]
    return pd.DataFrame(rows, columns=columns)
