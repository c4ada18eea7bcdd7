"""`--mode analyze` and `analyze_generation`: how the cache of a text looks, or of several on the
mean, and, if asked for, what the recommendations that follow from that really cost."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from safetensors.torch import save as serialised

import config
from analysis import over_texts
from analysis.advice import recommendations
from analysis.cached_entries import USUAL, Shown
from analysis.findings import key_findings
from analysis.inventory import kept, what_it_is
from compression.studies.base import Tables, refuse_counts
from compression.studies.kept_tables import kept_or_done
from compression.studies.one_text import PLACES, SPECTRUM, OneText, ReadText, look
from compression.studies.work import Here, Phase, Task, Work, Worker, untimed
from config import UsageError
from data import own_files, scored_texts
from data.inventory import Inventory
from data.loaded_model import LoadedModel
from data.own_cache import OwnCache
from data.scored_texts import Text
from data.texts import Sample, TextRead, in_all
from data.vocabulary import FOCUSES
from data.watchers import TokenAttention

__all__ = ["Analysis", "Findings", "look"]

ATTENTION_FILE = "tokens/attention.safetensors"
PRUNES_NOTHING = {
    "generation": "the stages of generation",
    "spectrum": "energy spectra",
    "cache": "entries of one KV head",
}
Made = Callable[[Tables, Sequence[TextRead]], None]  # tables, and the texts that they are of


@dataclass(frozen=True)
class Findings:
    """What `analyze` gives; lines in sentences, those of `measured` only where that was asked for.

    thresholds: kind -> the magnitude below which an entry counts as sparse, for each text.
    inventory: what the model keeps of the first text. saved: that the cache was kept in a file, if
    that was asked for. generated: what the model went on with after the first text. attention: what
    the tokens of the first text receive of whom, of a focus that looks at tokens.
    """

    tables: Tables
    texts: tuple[TextRead, ...]
    thresholds: tuple[dict[str, float], ...]
    findings: list[str]
    recommendations: list[str]
    measured: list[str]
    inventory: Inventory
    saved: list[str]
    generated: str
    attention: TokenAttention | None = field(default=None, compare=False, repr=False)

    def said(self, model: str) -> dict[str, list[str]]:
        """For people, by headings."""
        source = self.texts[0].source
        every = {
            f"Key findings on {model}, {source}, {in_all(self.texts)}": self.findings,
            "Recommendations (heuristics, not yet measured)": self.recommendations,
            "The same, measured": self.measured,
            "Saved": self.saved,
        }
        return {title: lines for title, lines in every.items() if lines}

    @property
    def continued(self) -> dict[str, str]:
        """What the model went on with, by what it went on from."""
        first = "the first" if len(self.texts) > 1 else "the"
        return {f"Generated after {first} text": self.generated} if self.generated else {}

    @property
    def contents(self) -> dict[str, bytes]:
        """What files hold that are no tables, by their names."""
        if self.attention is None:
            return {}
        layers = {"layers": json.dumps(self.attention.layers)}
        return {ATTENTION_FILE: serialised(self.attention.tensors, layers)}

    @property
    def facts(self) -> dict[str, Any]:
        """For a manifest; thresholds of several texts are their means."""
        means = {
            kind: float(np.mean([each[kind] for each in self.thresholds]))
            for kind in self.thresholds[0]
        }
        return {
            "cache": self.inventory.facts,
            "thresholds": means,
            "findings": self.findings,
            "recommendations_not_measured": self.recommendations,
            "recommendations_measured": self.measured,
            "generated": self.generated,
        }


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """analysis_focus: layers, heads, tokens, embeddings, cache, spectrum, generation, or all but
    spectrum.
    context_tokens: of a text that are read; where not given as config.py says, for generation all.
    new_tokens: generated after it. num_samples: texts; of several, means. measure: measure what is
    recommended, on `score_tokens` after the text. save_cache: the file to keep the cache of a
    single text in. layer, head: whose entries are shown, see `Shown`; of the first text."""

    analysis_focus: str = "all"
    context_tokens: int | None = None
    new_tokens: int | None = None
    num_samples: int | None = None
    measure: bool = False
    score_tokens: int | None = None
    save_cache: str | None = None
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        refuse_counts(
            context_tokens=self.context_tokens,
            new_tokens=self.new_tokens,
            num_samples=self.num_samples,
            score_tokens=self.score_tokens,
        )
        own_files.refuse(self.save_cache)
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
        if self.measure and self.n_texts > 1:
            raise UsageError(
                f"`measure` was given for {self.n_texts} texts, and it measures on one",
                "`--mode prune --trial` takes several; leave `measure` out, or `num_samples`",
            )
        if self.analysis_focus == "cache" and self.n_texts > 1:
            raise UsageError(
                f"The focus cache was given for {self.n_texts} texts, and it shows the entries of "
                "one",
                "leave out `num_samples`, or take another `analysis_focus`",
            )
        if self.save_cache is not None and self.n_texts > 1:
            raise UsageError(
                f"`save_cache` was given for {self.n_texts} texts, and a file holds one's cache",
                "leave it out, or `num_samples`",
            )

    @property
    def shown(self) -> Shown:
        """Whose entries are."""
        return Shown(self.layer, self.head)

    @property
    def n_texts(self) -> int:
        return self.num_samples or config.ANALYZED_TEXTS

    @property
    def n_read(self) -> int | None:
        """Tokens of a text that are read; None for all."""
        usual = None if self.analysis_focus == "generation" else config.SEQUENCE_LENGTH
        return self.context_tokens or usual

    @property
    def n_new(self) -> int:
        """Tokens that are generated."""
        generates = self.analysis_focus in ("all", "tokens", "generation")
        return (self.new_tokens or config.NEW_TOKENS) if generates else 0

    def run(
        self,
        loaded: LoadedModel,
        candidates: Sequence[Sample],
        continuation: str | None = None,
        phase: Phase = untimed,
        made: Made = lambda tables, texts: None,
    ) -> Findings:
        """Look at texts in this process; see `carry_out`."""
        return self.carry_out(Here(loaded, phase), candidates, continuation, made)

    def carry_out(
        self,
        work: Work,
        candidates: Sequence[Sample],
        continuation: str | None = None,
        made: Made = lambda tables, texts: None,
    ) -> Findings:
        """Prefill, measure and generate, text by text. made: is given tables as soon as there are
        some; of one text those of what was generated come last."""
        chosen = work.one(Choice(self, candidates, continuation))
        several = len(chosen) > 1
        texts = tuple(sample.read(len(ids[: self.n_read])) for sample, ids in chosen)
        at_once = isinstance(work, Here) and not several
        tasks = [self._task(text, several) for text in chosen]
        by_token = self.analysis_focus in ("all", "tokens")
        tasks[0] = replace(tasks[0], told_by_token=by_token, shown=self.shown)
        if at_once:
            tasks = [replace(tasks[0], made=lambda tables: made(tables, texts))]
        each, sums = _gathered(work, tasks)
        tables = over_texts.combined([one.tables for one in each], sums.get(PLACES))
        apart = over_texts.of_each([one.tables for one in each], [text.index for text in texts])
        pooled = sums[SPECTRUM].tables(config.SUBSPACE_RANK) if SPECTRUM in sums else {}
        made(pooled if at_once else tables | apart | pooled, texts)
        tables |= pooled
        sparse, dense = config.SPARSE_DIM_SHARE, config.DENSE_DIM_SHARE
        first = ("Of the first text: " if several else "") + kept(each[0].inventory)
        cache = [what_it_is(each[0].inventory), first]
        return Findings(
            tables | apart,
            texts,
            tuple(one.thresholds for one in each),
            [*cache, *key_findings(tables, sparse, dense, config.TOP_TOKENS)],
            recommendations(tables, sparse),
            each[0].measured,
            each[0].inventory,
            each[0].saved,
            each[0].generated,
            each[0].attention,
        )

    def _task(self, text: Text, several: bool) -> ReadText:
        sample, ids = text
        kept = None if self.save_cache is None else (sample, self.save_cache)
        focus, n_read, n_new = self.analysis_focus, self.n_read, self.n_new
        return ReadText(focus, ids, n_read, n_new, self.measure, several, kept, text=sample.sha256)


def _gathered(work: Work, tasks: list[ReadText]) -> tuple[list[OneText], dict[str, Any]]:
    """What was found in each text, and what adds up over all of them. A single text is looked at
    anew each time: it is cheap, and its pictures are drawn while it is read."""
    each: dict[int, OneText] = {}
    sums: dict[str, Any] = {}
    done = kept_or_done(work, tasks, "text") if len(tasks) > 1 else work.as_done(tasks, "text")
    for i, one in done:
        for name, of_text in one.sums.items():
            sums[name] = sums[name] + of_text if name in sums else of_text
        each[i] = replace(one, sums={})  # so that no more than their sum is held
    return [each[i] for i in range(len(tasks))], sums


@dataclass(frozen=True, eq=False)
class Choice(Task[list[Text]]):
    """The texts that are looked at and their tokens, with those that are scored after them."""

    analysis: Analysis
    candidates: Sequence[Sample]
    continuation: str | None

    def run(self, worker: Worker) -> list[Text]:
        with worker.phase("text"):
            if self.analysis.shown != USUAL:  # refused before a text is read
                self.analysis.shown.of(OwnCache.of(worker.loaded, n_tokens=1, token=0).cache)
            return self._chosen(worker.loaded)

    def _chosen(self, loaded: LoadedModel) -> list[Text]:
        asked = self.analysis
        if not asked.measure:
            return scored_texts.looked_at(
                loaded, self.candidates, asked.n_read, asked.n_new, asked.n_texts
            )
        context = asked.context_tokens or config.SEQUENCE_LENGTH
        n_scored = asked.score_tokens or config.SCORE_TOKENS
        return scored_texts.long_enough(
            loaded, self.candidates, context, n_scored, 1, self.continuation
        )
