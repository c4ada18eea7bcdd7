"""`--mode compare`: every way to shrink the cache at true bytes, and what fits a budget."""

from dataclasses import replace
from typing import ClassVar

import pandas as pd

import config
from compression import presets
from compression.base import Compressor, ModelSide
from compression.evaluate import Judge, words
from compression.frontier import bits_at, fitting, with_frontier
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
            usual = RunConfig()
            quick = {"num_samples": QUICK_TEXTS, "score_tokens": QUICK_SCORED}
            changed = {k: v for k, v in quick.items() if getattr(run, k) == getattr(usual, k)}
            run = replace(run, **changed)
        super().__init__(run)
        self.context = run.context(QUICK_CONTEXT if run.quick else config.CONTEXT_TOKENS)
        if self.context < presets.smallest_context():
            raise UsageError(
                f"A context of {self.context} tokens is too short to compare: give "
                f"--context_tokens {presets.smallest_context()} or more."
            )
        self.settings = presets.chosen(run.methods, run.quick, run.levels)
        self.calibrates = any(
            presets.calibrated(name) for each in self.settings.values() for name, _ in each.values()
        )
        self.seeks = not run.quick
        self.labels: dict[Compressor, tuple[str, str]] = {}
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
        said = {(m.name, words(m)): label for m, label in self.labels.items()}
        names = [said[key] for key in zip(summary["method"], summary["settings"], strict=True)]
        table = summary.assign(family=[f for f, _ in names], label=[label for _, label in names])
        table["bytes_per_token"] = table["stored_bytes"] / self.context
        saved = (table["original_bytes"] - table["stored_bytes"]) / self.context
        pays = (table["per_model_bytes"] / saved).where(table["per_model_bytes"] > 0)
        return with_frontier(table.assign(pays_from_tokens=pays))

    def verdict(self, rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
        table = self.table
        lines = [_frontier(table), _dominated(table), _noise(table), *_ahead(table)]
        sides = {m.model_side.learned_from for m in self.labels if m.model_side is not None}
        lines += [f"Calibrated methods learned from {said}." for said in sides]
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
        missed = "kl_mean_nats" if "max_kl" in self._budget() else "stored_bytes"
        near = near.loc[near[missed].idxmin()]
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
        line = (
            f"On {self.run.memory_gib:g} GiB, beside the weights in 16 bits "
            f"({self.weight_bytes / 2**30:.2f} GiB) and nothing else, {room / full:,.0f} tokens of "
            "uncompressed cache"
        )
        if best is None:
            return [line + "."]
        left = room - best["per_model_bytes"]
        return [
            f"{line}; with {best['label']}, {left / best['bytes_per_token']:,.0f} (bytes per token "
            f"as measured at {self.context} tokens)."
        ]


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


def _noise(table: pd.DataFrame) -> str:
    again = table.loc[table["family"] == "none", "kl_mean_nats"].iloc[0]
    share = (table["kl_mean_nats_se"] / table["kl_mean_nats"]).where(table["kl_mean_nats"] > 0)
    if share.isna().all():
        return f"Noise floor: the untouched cache again costs KL {again:g}; one text has no spread."
    return (
        f"Noise floor: the untouched cache again costs KL {again:g}; over these texts a KL has a "
        f"standard error of {share.median():.0%} of itself (median over settings)."
    )


def _ahead(table: pd.DataFrame) -> list[str]:
    """How far ahead of the best quantiser `coded` is at the losses of its own settings."""
    coded, others = (table[table["family"].isin(f)] for f in (("coded",), QUANTISERS))
    lines = []
    for loss in (0.003, config.ACCEPTABLE_KL):
        mine = bits_at(coded, loss)
        theirs = [bits_at(rows, loss) for _, rows in others.groupby("family")]
        theirs = min((bits for bits in theirs if bits == bits), default=float("nan"))
        if mine == mine and theirs == theirs:
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
