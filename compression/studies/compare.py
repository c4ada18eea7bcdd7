"""`--mode compare`: every way to shrink the cache at true bytes, and what fits a budget."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

import config
from compression.base import Compressor
from compression.methods.evictions import Recent
from compression.registry import learns, make, needs_calibration
from compression.studies import comparison_words as words
from compression.studies import exam_tables, exam_words, presets
from compression.studies.base import Learned, Plan, Report, Study, Tables
from compression.studies.frontier import closest, fitting, labelled
from config import UsageError

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model

QUICK_TEXTS, QUICK_CONTEXT, QUICK_SCORED = 2, 512, 128


@dataclass(frozen=True, kw_only=True)
class CompareStudy(Study):
    """methods: families of presets.py, all of them where not given. quick: fewer settings, texts
    and tokens. levels: shares of the tokens that evictions keep. max_bits (per value),
    max_bytes_per_token, max_kl (nats per token): the budget. memory_gib: of a card, on which a
    context has to fit. show_generation: tokens to generate from the full and the best cache.
    needles: whether hidden facts are sought, which is not done with quick. tasks: whether tasks
    made by rule are set as well."""

    title: ClassVar[str] = "Comparison"
    probes: ClassVar[bool] = True
    times_prefill: ClassVar[bool] = True
    methods: tuple[str, ...] | None = None
    quick: bool = False
    levels: tuple[float, ...] | None = None
    max_bits: float | None = None
    max_bytes_per_token: float | None = None
    max_kl: float | None = None
    memory_gib: float | None = None
    show_generation: int = 0
    needles: bool = True
    tasks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < presets.smallest_context():
            raise UsageError(
                f"A context of {self.context} tokens is too short to compare",
                f"give `context_tokens` {presets.smallest_context()} or more",
            )
        if self.levels is not None and not set(self.settings) & set(presets.COMPARED_EVICTIONS):
            raise UsageError(
                "`levels` are shares of the tokens that evictions keep, and there is none among "
                "`methods`",
                f"add one of {', '.join(presets.COMPARED_EVICTIONS)}, or leave `levels` out",
            )
        if set(self.settings) == {"none"}:
            raise UsageError(
                "`methods` none is what others are compared with",
                "give a method to compare with it, such as coded",
            )
        for setting in (one for each in self.settings.values() for one in each.values()):
            if not needs_calibration(*setting):
                make(*setting)  # refuses what makes no sense

    @property
    def context(self) -> int:
        return self.context_tokens or (QUICK_CONTEXT if self.quick else config.CONTEXT_TOKENS)

    @property
    def n_scored(self) -> int:
        return self.score_tokens or (QUICK_SCORED if self.quick else config.SCORE_TOKENS)

    @property
    def n_texts(self) -> int:
        return self.num_samples or (QUICK_TEXTS if self.quick else config.NUM_SAMPLES)

    @property
    def n_shown(self) -> int:
        return self.show_generation

    @property
    def learns(self) -> frozenset[str]:
        settings = [one for each in self.settings.values() for one in each.values()]
        return frozenset(learns(*setting) for setting in settings) - {""}

    @property
    def seeks(self) -> bool:
        return self.needles and not self.quick

    @property
    def examines(self) -> bool:
        return self.tasks

    @property
    def settings(self) -> presets.Families:
        return presets.chosen(self.methods, self.quick, self.levels)

    @property
    def budget(self) -> dict[str, float]:
        limits = {
            "max_bits": self.max_bits,
            "max_bytes_per_token": self.max_bytes_per_token,
            "max_kl": self.max_kl,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    def look(self, judge: "Judge", learned: Learned) -> "ComparePlan":
        """Goes on without the settings that can do nothing with such a cache."""
        left_out = self._uncalibrated(learned)
        labels = {
            make(*setting, learned.calibrations.get(learns(*setting))): (family, label)
            for family, settings in self.settings.items()
            for label, setting in settings.items()
            if label not in left_out
        }
        why = _unfit(judge, labels)
        left_out |= {labels[m][1]: reason for m, reason in why.items()}
        fit = {m: names for m, names in labels.items() if m not in why}
        if {family for family, _ in fit.values()} == {"none"}:
            raise UsageError(
                f"Of `methods` nothing can be compared on {judge.cache.model} at {self.context} "
                f"tokens, {words.by_reason(left_out)}",
                "give others, or where more tokens would help a larger `context_tokens`",
            )
        return ComparePlan(self, fit, left_out)

    def _uncalibrated(self, learned: Learned) -> dict[str, str]:
        """label -> why, of the settings that cannot do without a calibration that there is not;
        where they are all that was asked for, that is the end."""
        named = {label: one for each in self.settings.values() for label, one in each.items()}
        refused = learned.uncalibrated
        lacking = {
            label: refused[learns(*setting)]
            for label, setting in named.items()
            if learns(*setting) in refused
        }
        if lacking and named.keys() == {"none", *lacking}:
            raise next(iter(lacking.values()))
        return {label: refusal.reason for label, refusal in lacking.items()}


def _unfit(judge: "Judge", methods: Iterable[Compressor]) -> dict[Compressor, str]:
    """Those that can do nothing with such a cache, and why."""
    methods = list(methods)
    blind = _cannot_hide(judge) if any(presets.evicts(m.name) for m in methods) else None
    why = {
        m: blind if blind and presets.evicts(m.name) else presets.unfit(m, judge.cache)
        for m in methods
    }
    return {m: reason for m, reason in why.items() if reason}


class ComparePlan(Plan):
    """labels: method -> (family, label). left_out: label -> why."""

    def __init__(
        self,
        study: CompareStudy,
        labels: dict[Compressor, tuple[str, str]],
        left_out: dict[str, str],
    ) -> None:
        self.study = study
        self.labels = labels
        self.left_out = left_out
        self.methods = list(labels)
        self.named = {method: label for method, (_, label) in labels.items()}

    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        table = self.labelled(summary)
        tables = {"compare/pareto": table, "compare/perplexity": table}
        tables |= {"compare/compare": table, "compare/texts": rows}
        if len(needles):
            needles = self._named(needles)
            tables["compare/needle"] = needles
        best = self._best(table)
        lines = words.taken(table, best, self.study.budget)
        if self.prefill_s is not None:
            lines.append(words.loading(table, best, self.prefill_s))
        lines += [words.frontier(table), words.dominated(table)]
        lines += self.told_left_out()
        lines += [*words.checked(table), *words.ahead(table)]
        learned = {m.calibration.learned_from for m in self.labels if m.calibration is not None}
        lines += [words.learned_from(said, rows) for said in learned]
        if self.study.memory_gib is not None:
            card = (self.study.memory_gib, self.study.context, model.max_positions)
            has_budget = bool(self.study.budget)
            lines.append(words.on_a_card(table, best, model.weight_nbytes, *card, has_budget))
        lines += [words.lost_needles(needles)] if len(needles) else []
        of_tasks, said = self.of_tasks()
        tables, lines = tables | of_tasks, lines + said
        lines += [words.QUICK] if self.study.quick else []
        lines += words.engines(table)
        if self.study.show_generation and best is None:
            lines.append(words.nothing_to_show(bool(self.study.budget)))
        return Report(tables, lines, refused=self._refused(table, best))

    def told_left_out(self) -> list[str]:
        return [f"Left out: {words.by_reason(self.left_out)}."] if self.left_out else []

    def of_tasks(self) -> tuple[Tables, list[str]]:
        """Tables and sentences of the tasks; none where none were set."""
        if self.examined is None:
            return {}, []
        answers = self._with_labels(self.examined.answers)
        by_task = exam_tables.by_task(answers)
        overall = exam_tables.over_tasks(answers, by_task)
        tables = {"tasks/accuracy": by_task, "tasks/answers": answers}
        tables |= {"tasks/over_tasks": overall} if len(overall) else {}
        continued = self.examined.continued
        if len(continued):
            continued = exam_tables.going_on(self._with_labels(continued))
            tables["tasks/going_on"] = continued
        return tables, exam_words.said(by_task, overall, continued, self.examined.filler)

    def labelled(self, summary: pd.DataFrame) -> pd.DataFrame:
        """The summary with family, label, bytes_per_token, pays_from_tokens (the context from which
        what is stored for the model pays), engine (the setting of one that stores alike, or
        empty), frontier and dominated_by; and where a prefill was timed what `bandwidths` adds."""
        table = labelled(summary, self.labels)
        table["bytes_per_token"] = table["stored_bytes"] / self.study.context
        saved = (table["original_bytes"] - table["stored_bytes"]) / self.study.context
        pays = (table["per_model_bytes"] / saved).where(table["per_model_bytes"] > 0)
        engine = table["label"].map(presets.ENGINES).fillna("")
        table = table.assign(pays_from_tokens=pays, engine=engine)
        return table if self.prefill_s is None else bandwidths(table, self.prefill_s)

    def _named(self, needles: pd.DataFrame) -> pd.DataFrame:
        """label, depth, settings, right, probability."""
        named = self._with_labels(needles)
        return named[["label", "depth", "settings", "right", "probability"]]

    def _with_labels(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of methods with their label and family."""
        names = {(m.name, m.words()): names for m, names in self.labels.items()}
        keys = list(zip(rows["method"], rows["settings"], strict=True))
        families, labels = ([names[key][i] for key in keys] for i in range(2))
        return rows.assign(label=labels, family=families)

    def _best(self, table: pd.DataFrame) -> pd.Series | None:
        """The setting that fits the budget; without one the smallest that is called cheap."""
        budget = self.study.budget or {"max_kl": config.ACCEPTABLE_KL}
        return fitting(_compressed(table), **budget)

    def _refused(self, table: pd.DataFrame, best: pd.Series | None) -> UsageError | None:
        """That no setting fits the budget; None where one does, or none was given."""
        budget = self.study.budget
        if not budget or best is not None:
            return None
        near = closest(table[table["family"] != "none"], **budget)
        asked = " and ".join(f"`{name}` {value:g}" for name, value in budget.items())
        return UsageError(
            f"No setting measured fits {asked}; the closest is {near['label']} with "
            f"{near['bits_per_value']:.2f} bits per value, {near['bytes_per_token']:.0f} bytes per "
            f"token, at KL {max(0, near['kl_mean_nats']):z.4f}. All results were written"
        )

    def shown(self, summary: pd.DataFrame) -> tuple[str, Compressor] | None:
        """The best method, where something is to be generated through it."""
        best = self._best(self.labelled(summary)) if self.study.show_generation else None
        if best is None:
            return None
        method = next(m for m, (_, label) in self.labels.items() if label == best["label"])
        return best["label"], method


def bandwidths(table: pd.DataFrame, prefill_s: float) -> pd.DataFrame:
    """With prefill_s, and in bytes a second of disk or network: beats_prefill_from, above which a
    stored context is there sooner than a prefilled one, nan where never; and beats_plain_below,
    under which it is there sooner than in 16 bits, which are taken as they are; nan where never or
    always. What is stored once for the model is at hand."""
    plain = table["family"] == "none"
    restore_s = table["restore_s"].mask(plain, 0.0)
    spared = prefill_s - restore_s
    saved = table["original_bytes"] - table["stored_bytes"]
    return table.assign(
        prefill_s=prefill_s,
        beats_prefill_from=(table["stored_bytes"] / spared).where(spared > 0),
        beats_plain_below=(saved / restore_s).where((saved > 0) & (restore_s > 0)),
    )


def _compressed(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["family"] != "none") & (table["ratio"] > 1)]


def _cannot_hide(judge: "Judge") -> str | None:
    """Why what is evicted of this model's cache cannot be measured; None where it can."""
    evicted = Recent().compress(judge.cache).restore()
    try:
        judge.continuation.log_probabilities(evicted)
    except UsageError as refusal:
        return refusal.reason
    return None
