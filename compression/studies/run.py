"""The run that all studies share, for the command line, a benchmark or a notebook alike: prefill
each text once, score the study's methods on it, and report. Nothing here prints or draws."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from analysis.inventory import beside, inventory_table
from compression.base import Compressor
from compression.coded.kept_calibrations import calibration_of, leak
from compression.evaluate import Judge, as_records, summary
from compression.studies.base import INVENTORY, Learned, Plan, Report, Study
from compression.studies.needle import Needle, needles
from compression.studies.rows import Rows
from config import UsageError
from data import extraction, memory, scored_texts
from data.inventory import Inventory
from data.models import LoadedModel
from data.scored_texts import Text
from data.scoring import Continuation
from data.texts import Sample

Phase = Callable[[str], AbstractContextManager[None]]  # entered for as long as a phase lasts


def untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Outcome:
    """What a run gives: the report, and what it rests on.

    rows: one per method and text. summary: their means. samples: the texts that were scored;
    learned_on: names of those that were only learned from. inventory: what the model keeps of the
    first text.
    """

    report: Report
    rows: pd.DataFrame
    summary: pd.DataFrame
    samples: tuple[Sample, ...]
    learned_on: tuple[str, ...]
    inventory: Inventory

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "texts": [sample.name for sample in self.samples],
            "calibration_texts": list(self.learned_on),
            "cache": self.inventory.facts,
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
    """Carry a study out on the first of the candidates that are long enough.

    continuation: what is scored after each context instead of its own text.
    """
    with phase("text"):
        texts = scored_texts.long_enough(
            loaded,
            candidates,
            study.context,
            study.n_scored,
            study.n_texts,
            continuation,
            study.n_shown,
        )
        samples = tuple(sample for sample, _ in texts)
        others = scored_texts.others(loaded, samples, study.context, study.n_learned)
        too_good = leak(samples) if study.calibrates else []
    with memory.told(loaded, study.context + study.n_scored):
        with phase("calibration"):
            learned = _learned(study, loaded, others)
        plan, scored, inventory = _scored(study, loaded, texts, learned, phase)
        sought = _sought(study, loaded, texts[0], plan, phase)
        rows = pd.DataFrame(scored)
        means = summary(rows)
        report = plan.report(rows, means, sought)
    return Outcome(
        replace(
            report,
            tables=report.tables | {INVENTORY: inventory_table(inventory)},
            lines=[*too_good, *report.lines, *_of_all_kept(means, inventory)],
        ),
        rows,
        means,
        samples,
        tuple(sample.name for sample, _ in others),
        inventory,
    )


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


def _learned(study: Study, loaded: LoadedModel, others: list[Text]) -> Learned:
    caches = (
        (sample.name, extraction.prefill(loaded, ids).cache.in_16_bits()) for sample, ids in others
    )
    try:
        calibration = calibration_of(loaded) if study.calibrates else None
    except UsageError as refusal:  # of methods that need it alone, which the study leaves out
        return Learned(None, tuple(caches), refusal)
    return Learned(calibration, tuple(caches))


def _scored(
    study: Study, loaded: LoadedModel, texts: list[Text], learned: Learned, phase: Phase
) -> tuple[Plan, list[dict[str, Any]], Inventory]:
    """The plan that the study makes on the first text, the rows of all texts, and what the model
    keeps of the first."""
    plan: Plan | None = None
    inventory: Inventory | None = None
    methods: list[Compressor] = []
    rows: list[dict[str, Any]] = []
    n = study.context
    for sample, ids in texts:
        named = {"text_source": sample.source, "index": sample.index, "title": sample.title}
        kept = Rows(loaded, ids, n) if study.keeps_rows else None
        before = kept.all(methods) if plan is not None and kept is not None else None
        if before is not None:
            rows += [named | row for row in before]
            continue
        judge = judge_of(loaded, ids, n, study.probes, phase)
        with phase("scoring"):
            if plan is None:
                plan, inventory = study.look(judge, learned), judge.inventory
                methods = list(dict.fromkeys(plan.methods))
            rows += [named | row for row in scores(judge, methods, kept)]
    if plan is None or inventory is None:
        raise ValueError("a run takes at least one text")
    return plan, rows, inventory


def judge_of(
    loaded: LoadedModel,
    ids: torch.Tensor,
    context_tokens: int,
    probe: bool = True,
    phase: Phase = untimed,
) -> Judge:
    """Prefills the first `context_tokens` of (tokens,) token ids; those after the next one are
    scored, at least one. probe: whether the attention that tokens receive is measured."""
    with phase("prefill"):
        start = extraction.prefill(loaded, ids[:context_tokens], probe=probe)
    with phase("scoring"):
        return Judge(start.cache, Continuation(loaded, start.past, ids[context_tokens:]))


def scores(
    judge: Judge, methods: Iterable[Compressor], kept: Rows | None = None
) -> list[dict[str, Any]]:
    """The rows of several methods on one text, each once; those `kept` from an earlier run are
    taken, and new ones are kept."""
    bar = tqdm(dict.fromkeys(methods), desc="Score", unit="method", leave=False)
    return [_once(kept, method, judge.score) for method in bar]


def _once(
    kept: Rows | None, method: Compressor, measure: Callable[[Compressor], dict[str, Any]]
) -> dict[str, Any]:
    """A row that was kept, or else is measured now and kept."""
    row = None if kept is None else kept.get(method)
    if row is None:
        row = measure(method)
        if kept is not None:
            kept.put(method, row)
    return row


def _sought(
    study: Study, loaded: LoadedModel, text: Text, plan: Plan, phase: Phase
) -> pd.DataFrame:
    """method, settings, depth, right, probability: whether each fact is still found through each
    method."""
    hidden = needles(loaded, text[1], study.context) if study.seeks else []
    rows = [row for each in hidden for row in _recalled(study, loaded, each, plan, phase)]
    return pd.DataFrame(rows, columns=["method", "settings", "depth", "right", "probability"])


def _recalled(
    study: Study, loaded: LoadedModel, needle: Needle, plan: Plan, phase: Phase
) -> list[dict[str, Any]]:
    ids, n = torch.cat([needle.context, needle.follows]), len(needle.context)
    kept = Rows(loaded, ids, n, "needle") if study.keeps_rows else None
    before = None if kept is None else kept.all(plan.methods)
    if before is not None:
        return before
    judge = judge_of(loaded, ids, n, study.probes, phase)

    def recall(method: Compressor) -> dict[str, Any]:
        restored = method.compress(judge.cache).restore()
        right, probability = judge.recall(restored, needle.n_answer)
        named = {"method": method.name, "settings": method.words(), "depth": needle.depth}
        return named | {"right": right, "probability": probability}

    with phase("scoring"):
        return [_once(kept, method, recall) for method in plan.methods]
