"""`--mode prune`: what was asked for, or else what the heuristics recommend, beside random choices
of the same size; and the heuristics on trial."""

from typing import ClassVar

import pandas as pd

import config
from analysis import heuristics
from analysis.measures import Sweep, sweep
from compression import trial
from compression.choices import asked, recommended
from compression.evaluate import Judge, words
from compression.study import BaseStudy, Tables, spread
from config import RunConfig, UsageError

CLEARLY = 1.1  # times as much


class Study(BaseStudy):
    title: ClassVar[str] = "Pruning"
    probes = True

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        method, goes_with = run.prune_method, {"layer", "head", None}
        if run.prune_layers is not None and method not in goes_with:
            raise UsageError(f"--prune_layers does not go with --prune_method {method}: keep one.")
        if run.prune_heads is not None and method not in goes_with - {"layer"}:
            raise UsageError(f"--prune_heads does not go with --prune_method {method}: keep one.")
        if run.prune_layers is not None and method == "head" and run.prune_heads is None:
            raise UsageError(
                "--prune_method head takes --prune_heads, and may take --prune_layers."
            )
        tokens = run.keep_tokens is not None or run.token_score is not None
        parts = run.prune_layers is not None or run.prune_heads is not None
        if tokens and (parts or method not in {"token", None}):
            raise UsageError(
                "--keep_tokens and --token_score go with --prune_method token: drop the others."
            )

    def look(self, judge: Judge) -> None:
        swept = sweep(judge.cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
        self.choices = asked(self.run, judge.cache)
        self.choices = self.choices or recommended(swept, self.run.prune_method)
        if not self.choices:
            raise UsageError(
                f"The heuristics recommend nothing to prune by {self.run.prune_method} in "
                f"{judge.cache.model}: name it, or leave out --prune_method."
            )
        self.methods = [m for choice in self.choices for m in (choice.method, *choice.controls)]
        self.parts = self.correlations = None
        if self.run.trial:
            self._try_heuristics(judge, swept)

    def _try_heuristics(self, judge: Judge, swept: Sweep) -> None:
        costs = trial.costs(judge.shortened(config.TRIAL_SCORE_TOKENS), config.TRIAL_NOISE)
        self.parts = costs.merge(heuristics.of_parts(swept), on=["layer", "part", "head"])
        self.correlations = trial.rank_correlations(self.parts)

    def tables(self, rows: pd.DataFrame, summary: pd.DataFrame) -> Tables:
        made = {"pruning/pruning_impact": self.impact(summary), "pruning/texts": rows}
        if self.parts is not None:
            made["pruning/heuristics_on_trial"] = self.correlations
            made["pruning/cost_of_each_part"] = self.parts
        return made

    def impact(self, summary: pd.DataFrame) -> pd.DataFrame:
        """The summary's rows by choice: choice, level, role (chosen or control) and its columns."""
        by_setting = summary.set_index(["method", "settings"])
        rows = []
        for choice in self.choices:
            for method in (choice.method, *choice.controls):
                role = "chosen" if method is choice.method else "control"
                named = {"choice": choice.what, "level": choice.level, "role": role}
                key = (method.name, words(method))
                rows.append(
                    named | {"method": key[0], "settings": key[1]} | dict(by_setting.loc[key])
                )
        return pd.DataFrame(rows)

    def verdict(self, rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
        impact = self.impact(summary)
        lines = [_sentence(group) for _, group in impact.groupby("choice", sort=False)]
        return lines if self.correlations is None else [*lines, *trial.told(self.correlations)]


def _sentence(rows: pd.DataFrame) -> str:
    """One choice: what it saves and costs, and whether chance would have done as well."""
    chosen = rows[rows["role"] == "chosen"].iloc[0]
    controls = rows[rows["role"] == "control"]
    kl, saved = chosen["kl_mean_nats"], 1 - 1 / chosen["ratio"]
    cheap = "cheap" if kl <= config.ACCEPTABLE_KL else "not cheap"
    what = chosen["choice"][0].upper() + chosen["choice"][1:]
    line = (
        f"{what}: saves {saved:.1%} of the bytes, measured KL {spread(chosen)} nats "
        f"per token, perplexity {chosen['delta_perplexity_percent']:+.1f} %: {cheap}"
    )
    if saved <= 0:
        return f"{line}, and nothing is saved."
    if controls.empty:
        return f"{line}."
    chance = controls["kl_mean_nats"]
    word = "like"
    if not chance.min() / CLEARLY <= kl <= chance.max() * CLEARLY:
        word = "better than" if kl < chance.min() else "worse than"
    return (
        f"{line}; {word} chance: as much at random costs {chance.min():.4f} to {chance.max():.4f}."
    )
