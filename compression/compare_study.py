"""`--mode compare`: every way to shrink the cache at true bytes, and what fits a budget."""

from dataclasses import replace
from typing import ClassVar

import pandas as pd

import config
from compression import presets
from compression.base import Compressor, ModelSide
from compression.evaluate import Judge, words
from compression.frontier import bits_by_family, closest, fitting, labelled
from compression.pruning import EvictedTokens
from compression.study import BaseStudy, Tables, spread
from config import RunConfig, UsageError
from data.resume import side_by_side

QUICK_TEXTS, QUICK_CONTEXT, QUICK_SCORED = 2, 512, 128
QUANTISERS = ("fp8", "int8", "kivi", "rotated")


class Study(BaseStudy):
    """labels: method -> (family, label)."""

    title: ClassVar[str] = "Comparison"
    keeps_rows: ClassVar[bool] = True
    probes = True

    def __init__(self, run: RunConfig) -> None:
        if run.quick:  # where nothing else was asked for
            texts, scored = run.num_samples or QUICK_TEXTS, run.score_tokens or QUICK_SCORED
            run = replace(run, num_samples=texts, score_tokens=scored)
        super().__init__(run)
        self.context = run.context(QUICK_CONTEXT if run.quick else config.CONTEXT_TOKENS)
        if self.context < presets.smallest_context():
            raise UsageError(
                f"A context of {self.context} tokens is too short to compare: give "
                f"--context_tokens {presets.smallest_context()} or more."
            )
        self.settings = presets.chosen(run.methods, run.quick, run.levels)
        if set(self.settings) == {"none"}:
            raise UsageError(
                "--methods none is what others are compared with: give a method to compare with "
                "it, such as coded."
            )
        self.calibrates = any(
            presets.calibrated(name) for each in self.settings.values() for name, _ in each.values()
        )
        self.seeks = not run.quick
        self.labels: dict[Compressor, tuple[str, str]] = {}
        self.left_out: dict[str, str] = {}  # label -> why
        self.found: list[pd.DataFrame] = []

    def prepare(self, model_side: ModelSide | None) -> None:
        for family, settings in self.settings.items():
            for label, setting in settings.items():
                method = presets.made(setting, model_side)
                self.labels[method] = (family, label)
        self.methods = list(self.labels)

    def look(self, judge: Judge) -> None:
        weights = judge.continuation.loaded.model.parameters()
        self.weight_bytes = 2 * sum(w.numel() for w in weights)
        self.first = judge
        self._leave_out(judge)

    def _leave_out(self, judge: Judge) -> None:
        """Go on without the settings that can do nothing with such a cache."""
        cache = judge.cache
        blind = _cannot_hide(judge) if any(map(presets.evicts, self.labels)) else None
        why = {
            m: blind if blind and presets.evicts(m) else presets.unfit(m, cache)
            for m in self.labels
        }
        self.left_out = {self.labels[m][1]: reason for m, reason in why.items() if reason}
        self.labels = {m: names for m, names in self.labels.items() if not why[m]}
        self.methods = list(self.labels)
        if {family for family, _ in self.labels.values()} == {"none"}:
            raise UsageError(
                f"Of --methods nothing can be compared on {cache.model} at {self.context} tokens, "
                f"{_by_reason(self.left_out)}: give others, or where more tokens would help "
                "a larger --context_tokens."
            )

    def find(self, judge: Judge, depth: float, n_answer: int) -> None:
        """Whether the answer that ends the continuation is still found, through every method."""
        rows = []
        for method, (_, label) in self.labels.items():
            right, probability = judge.recall(method.compress(judge.cache).restore(), n_answer)
            found = {"right": right, "probability": probability}
            rows.append({"label": label, "depth": depth, "settings": words(method)} | found)
        self.found.append(pd.DataFrame(rows))

    def tables(self, rows: pd.DataFrame, summary: pd.DataFrame) -> Tables:
        self.table = self.labelled(summary)
        made = {"compare/pareto": self.table, "compare/perplexity": self.table}
        made |= {"compare/compare": self.table, "compare/texts": rows}
        if self.found:
            made["compare/needle"] = pd.concat(self.found, ignore_index=True)
        return made

    def labelled(self, summary: pd.DataFrame) -> pd.DataFrame:
        """The summary with family, label, bytes_per_token, pays_from_tokens (the context from which
        what is stored for the model pays), frontier and dominated_by."""
        table = labelled(summary, self.labels)
        table["bytes_per_token"] = table["stored_bytes"] / self.context
        saved = (table["original_bytes"] - table["stored_bytes"]) / self.context
        pays = (table["per_model_bytes"] / saved).where(table["per_model_bytes"] > 0)
        return table.assign(pays_from_tokens=pays)

    def verdict(self, rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
        table = self.table
        lines = [_frontier(table), _dominated(table)]
        lines += [f"Left out: {_by_reason(self.left_out)}."] if self.left_out else []
        lines += [*_checked(table), *_ahead(table)]
        sides = {m.model_side.learned_from for m in self.labels if m.model_side is not None}
        lines += [_learned_from(said, rows) for said in sides]
        lines += [self._within_budget(table)] if self._budget() else []
        lines += self._on_a_card(table) if self.run.memory_gib is not None else []
        if self.found:
            lines.append(_lost_needles(pd.concat(self.found)))
        return [*[line for line in lines if line], *_engines(table)]

    def _budget(self) -> dict:
        names = ("max_bits", "max_bytes_per_token", "max_kl")
        given = {name: getattr(self.run, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def best(self) -> pd.Series | None:
        """The setting that fits the budget; without one the smallest that is called cheap."""
        compressed = self.table[self.table["family"] != "none"]
        return fitting(compressed, **(self._budget() or {"max_kl": config.ACCEPTABLE_KL}))

    def method_of(self, row: pd.Series) -> Compressor:
        return next(m for m, (_, label) in self.labels.items() if label == row["label"])

    def refused(self) -> str | None:
        """What to say where no setting fits the budget; None where one does, or none was given."""
        if not self._budget() or self.best() is not None:
            return None
        near = self.table[self.table["family"] != "none"]
        near = closest(near, **self._budget())
        asked = " and ".join(f"--{name} {value:g}" for name, value in self._budget().items())
        return (
            f"No setting measured fits {asked}; the closest is {near['label']} with "
            f"{near['bits_per_value']:.2f} bits per value, {near['bytes_per_token']:.0f} bytes per "
            f"token, at KL {near['kl_mean_nats']:.4f}. All results were written."
        )

    def continued(self) -> list[tuple[str, str]]:
        """What follows the first text greedily, from the untouched cache and from the best one."""
        n, best = self.run.show_generation, self.best()
        if not n or best is None:
            return []
        loaded, cache = self.first.continuation.loaded, self.first.cache
        restored = self.method_of(best).compress(cache).restore()
        both = [self.first.continuation.greedy(each, n) for each in (cache, restored)]
        return side_by_side(loaded, *both, best["label"])

    def _within_budget(self, table: pd.DataFrame) -> str:
        best = self.best()
        if best is None:
            return ""
        return (
            f"Within the budget: {best['label']}, {best['bits_per_value']:.2f} bits per value "
            f"({best['ratio']:.2f} x), {best['bytes_per_token']:.0f} bytes per token, KL "
            f"{spread(best)}, perplexity {best['delta_perplexity_percent']:+.2f} %."
        )

    def _on_a_card(self, table: pd.DataFrame) -> list[str]:
        room = self.run.memory_gib * 2**30 - self.weight_bytes
        if room <= 0:
            return [
                f"A card of {self.run.memory_gib:g} GiB does not hold the weights alone, "
                f"{self.weight_bytes / 2**30:.2f} GiB in 16 bits."
            ]
        best = self.best()
        full = table["original_bytes"].iloc[0] / self.context
        beside = (
            f"On {self.run.memory_gib:g} GiB, beside the weights in 16 bits "
            f"({self.weight_bytes / 2**30:.2f} GiB) and nothing else, {room / full:,.0f} tokens of "
            "uncompressed cache"
        )
        if best is None:
            return [beside + "."]
        label, once = best["label"], best["per_model_bytes"]
        if not self._budget():
            label += f", the smallest that costs at most KL {config.ACCEPTABLE_KL:g},"
        if room <= once:
            return [
                f"{beside}; what {label} stores once for the model, {once / 2**20:.1f} MiB, does "
                "not fit beside the weights."
            ]
        tokens = (room - once) / best["bytes_per_token"]
        return [
            f"{beside}; with {label} {tokens:,.0f} (bytes per token as measured at {self.context} "
            f"tokens{self._several(tokens)})."
        ]

    def _several(self, tokens: float) -> str:
        """What to add where a card holds more tokens than one text can have."""
        limit = self.first.continuation.loaded.max_positions
        if limit is None or tokens <= limit:
            return ""
        return f"; of several texts, since the model has {limit} positions"


def _learned_from(said: str, rows: pd.DataFrame) -> str:
    line = f"Calibrated methods learned from {said}"
    if any(source in said for source in rows["text_source"].unique()):
        return line + ", where the scored texts are from too: on other text they cost more."
    return line + "."


def _frontier(table: pd.DataFrame) -> str:
    rows = table[table["frontier"]]
    named = [f"{r.label} ({r.ratio:.2f} x, KL {r.kl_mean_nats:.4f})" for r in rows.itertuples()]
    return f"Frontier, smallest first: {', '.join(named)}."


def _dominated(table: pd.DataFrame) -> str:
    rows = table[~table["frontier"]]
    if rows.empty:
        return "No setting is dominated."
    named = [f"{row.label} by {row.dominated_by}" for row in rows.itertuples()]
    return f"Dominated, as large and as costly at least: {', '.join(named)}."


def _cannot_hide(judge: Judge) -> str | None:
    """Why what is evicted of this model's cache cannot be measured; None where it can."""
    evicted = EvictedTokens().compress(judge.cache).restore()
    try:
        judge.continuation.log_probabilities(evicted)
    except UsageError as refusal:
        return str(refusal).split(": ")[0]
    return None


def _by_reason(left_out: dict[str, str]) -> str:
    """Labels with the reason that they share, as `a, b (why); c (why)`."""
    labels: dict[str, list[str]] = {}
    for label, why in left_out.items():
        labels.setdefault(why, []).append(label)
    return "; ".join(f"{', '.join(each)} ({why})" for why, each in labels.items())


def _checked(table: pd.DataFrame) -> list[str]:
    """That the path adds nothing of its own, and how much of a KL is chance."""
    again = table.loc[table["family"] == "none", "kl_mean_nats"].iloc[0]
    line = f"Check: the untouched cache through the same path costs KL {again:g}."
    typical = table[table["kl_mean_nats"] > 0].sort_values("kl_mean_nats")
    if typical.empty:
        return [line]
    row = typical.iloc[len(typical) // 2]
    if row["texts"] < 2:
        return [line, "Noise: not known from one text; give --num_samples 2 or more."]
    share = row["kl_mean_nats_se"] / row["kl_mean_nats"]
    return [
        line,
        f"Noise: over {row['texts']} texts the KL of {row['label']}, the median setting, is "
        f"{spread(row)}, a standard error of {share:.0%} of itself.",
    ]


def _ahead(table: pd.DataFrame) -> list[str]:
    """How far ahead of the best quantiser `coded` is at the losses of its own settings."""
    lines = []
    for loss in (0.003, config.ACCEPTABLE_KL):
        bits = bits_by_family(table, loss)
        mine = bits.get("coded")
        theirs = min((bits[family] for family in QUANTISERS if family in bits), default=None)
        if None not in (mine, theirs):
            lines.append(
                f"At KL {loss:g} (between measured settings), coded stores {mine:.2f} bits per "
                f"value, the best quantiser {theirs:.2f}: {theirs / mine:.1f} times as much."
            )
    return lines


def _lost_needles(table: pd.DataFrame) -> str:
    found = table.groupby("label", sort=False)["right"].mean()
    fewer = found[found < found["none"]]
    lost = ", ".join(f"{label} ({share:.0%})" for label, share in fewer.items())
    line = f"Needles: the untouched cache finds {found['none']:.0%} of them"
    return f"{line}; fewer are found with {lost}." if lost else f"{line}; no setting finds fewer."


def _engines(table: pd.DataFrame) -> list[str]:
    lines = []
    for family, setting in presets.ENGINES.items():
        rows = table[table["family"] == family]
        if len(rows):
            best = rows.loc[rows["kl_mean_nats"].idxmin()]
            lines.append(
                f"Nearest in engines: {setting}: as {best['label']} here, "
                f"{best['bits_per_value']:.2f} bits per value, KL {spread(best)}."
            )
    return lines
