"""`--mode analyze` and `analyze_generation`: how the cache of one text looks, and, if asked for,
what the recommendations that follow from that really cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

import config
from analysis.findings import key_findings, recommendations
from analysis.generation import generation_stages
from analysis.inventory import inventory_table, kept
from analysis.measures import sweep, thresholds
from analysis.spectrum import Spectrum
from analysis.tables import Subject, tables
from compression.evaluate import Judge, summary
from compression.studies.base import INVENTORY, Learned, Tables, refuse_counts
from compression.studies.prune import PruneStudy
from compression.studies.run import Phase, scores, untimed
from config import UsageError
from data import extraction, memory, scored_texts, texts
from data.cache import KVCache
from data.extraction import Prefill
from data.inventory import Inventory
from data.models import LoadedModel
from data.scored_texts import Text
from data.scoring import Continuation
from data.texts import Sample
from data.vocabulary import FOCUSES

STAGES = "tokens/generation_stages_comparison"
PRUNES_NOTHING = {"generation": "the stages of generation", "spectrum": "energy spectra"}
Made = Callable[[Tables, list[Sample], int], None]  # tables, their text and its tokens read


@dataclass(frozen=True)
class Findings:
    """What `analyze` gives; lines in sentences, those of `measured` only where that was asked for.

    thresholds: kind -> the magnitude below which an entry counts as sparse. inventory: what the
    model keeps of the text.
    """

    tables: Tables
    sample: Sample
    n_tokens: int
    thresholds: dict[str, float]
    findings: list[str]
    recommendations: list[str]
    measured: list[str]
    inventory: Inventory

    def said(self, model: str) -> dict[str, list[str]]:
        """For people, by headings."""
        every = {
            f"Key findings on {model}, {self.sample.source}": self.findings,
            "Recommendations (heuristics, not yet measured)": self.recommendations,
            "The same, measured": self.measured,
        }
        return {title: lines for title, lines in every.items() if lines}

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "cache": self.inventory.facts,
            "thresholds": self.thresholds,
            "findings": self.findings,
            "recommendations_not_measured": self.recommendations,
            "recommendations_measured": self.measured,
        }


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """analysis_focus: layers, heads, tokens, embeddings, spectrum, generation, or all but spectrum.
    context_tokens: of the text that are read; where not given as config.py says, for generation
    all. new_tokens: generated after it. measure: measure what is recommended, on `score_tokens`
    after the text."""

    analysis_focus: str = "all"
    context_tokens: int | None = None
    new_tokens: int | None = None
    measure: bool = False
    score_tokens: int | None = None

    def __post_init__(self) -> None:
        refuse_counts(
            context_tokens=self.context_tokens,
            new_tokens=self.new_tokens,
            score_tokens=self.score_tokens,
        )
        focuses = (*FOCUSES, "generation")
        if self.analysis_focus not in focuses:
            raise UsageError(
                f"`analysis_focus` is {self.analysis_focus}",
                f"it takes one of {', '.join(focuses)}",
            )
        if self.measure and self.analysis_focus in PRUNES_NOTHING:
            raise UsageError(
                f"`measure` was given, and {PRUNES_NOTHING[self.analysis_focus]} recommend nothing "
                "to prune",
                "leave it out, or take `--mode analyze`",
            )

    @property
    def n_read(self) -> int | None:
        """Tokens of the text that are read; None for all."""
        usual = None if self.analysis_focus == "generation" else config.SEQUENCE_LENGTH
        return self.context_tokens or usual

    @property
    def generates(self) -> bool:
        return self.analysis_focus in ("all", "tokens", "generation")

    @property
    def n_new(self) -> int:
        return self.new_tokens or config.NEW_TOKENS

    def run(
        self,
        loaded: LoadedModel,
        candidates: Sequence[Sample],
        continuation: str | None = None,
        phase: Phase = untimed,
        made: Made = lambda tables, samples, n_tokens: None,
    ) -> Findings:
        """Prefill, measure, generate. made: is given tables as soon as there are some; those of
        what was generated come last."""
        with phase("text"):
            text = self._text(loaded, candidates, continuation)
        with memory.told(loaded.model, len(text[1])):
            return self._findings(loaded, text, phase, made)

    def _findings(self, loaded: LoadedModel, text: Text, phase: Phase, made: Made) -> Findings:
        sample, ids = text
        read = ids[: self.n_read]
        with phase("prefill"):
            probes = self.measure or self.analysis_focus in ("all", "tokens")
            start = extraction.prefill(loaded, read, probe=probes)
            inventory = Inventory.of(start.past)  # now: generation goes on in the same object
        with phase("analysis"):
            limits = thresholds(start.cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
            all_tables = self._tables(loaded, start) | {INVENTORY: inventory_table(inventory)}
            made(all_tables, [sample], len(read))
        measured: list[str] = []
        if self.measure:
            with phase("scoring"):
                costs, measured = _measured(loaded, start, ids[len(read) :])
            made(costs, [sample], len(read))
            all_tables |= costs
        if self.generates:
            stages = self._stages(loaded, start, limits, phase)
            made(stages, [sample], len(read))
            all_tables |= stages
        sparse, dense = config.SPARSE_DIM_SHARE, config.DENSE_DIM_SHARE
        return Findings(
            all_tables,
            sample,
            len(read),
            limits,
            [kept(inventory), *key_findings(all_tables, sparse, dense, config.TOP_TOKENS)],
            recommendations(all_tables, sparse),
            measured,
            inventory,
        )

    def _text(
        self, loaded: LoadedModel, candidates: Sequence[Sample], continuation: str | None
    ) -> Text:
        """The text and its tokens, with those that are scored after it where they are."""
        if self.measure:
            context = self.context_tokens or config.SEQUENCE_LENGTH
            n_scored = self.score_tokens or config.SCORE_TOKENS
            return scored_texts.long_enough(loaded, candidates, context, n_scored, 1, continuation)[
                0
            ]
        n_new = self.n_new if self.generates else 0
        return candidates[0], extraction.tokenise(loaded, candidates[0], self.n_read, n_new)

    def _tables(self, loaded: LoadedModel, start: Prefill) -> Tables:
        if self.analysis_focus == "generation":
            return {}
        return look(loaded, start.cache, self.analysis_focus)

    def _stages(
        self, loaded: LoadedModel, start: Prefill, limits: dict[str, float], phase: Phase
    ) -> Tables:
        with phase("generation"):
            cache = extraction.generate(loaded, start, self.n_new)
        with phase("analysis"):
            return {STAGES: generation_stages(start.cache, cache, limits)}


def look(loaded: LoadedModel, cache: KVCache, focus: str = "all") -> Tables:
    """The tables of a focus, by the names of the pictures that they feed."""
    if focus == "spectrum":
        return Spectrum.of(cache).tables(config.SUBSPACE_RANK)
    swept = sweep(cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
    words = [texts.visible(loaded.tokenizer.decode([i])) for i in cache.token_ids.tolist()]
    return tables(Subject(swept, words), focus)


def _measured(
    loaded: LoadedModel, start: Prefill, follows: torch.Tensor
) -> tuple[Tables, list[str]]:
    """What the recommendations of `analyze` really cost, and the trial of the heuristics."""
    judge = Judge(start.cache, Continuation(loaded, start.past, follows))
    plan = PruneStudy(trial=True).look(judge, Learned())
    rows = pd.DataFrame(scores(judge, plan.methods))
    report = plan.report(rows, summary(rows), pd.DataFrame())
    return report.tables, report.lines
