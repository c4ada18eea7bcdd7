"""`--mode prune`: what was asked for, or else what the heuristics recommend, beside random choices
of the same size; and the heuristics on trial."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

import config
from analysis import heuristics
from analysis.measures import Sweep, sweep
from compression.base import Compressor
from compression.studies import choices, trial
from compression.studies.against_chance import against_chance
from compression.studies.base import Learned, Plan, Report, Study, spread
from compression.studies.choices import Choice, recommended
from config import UsageError
from data.cache import KVCache
from data.vocabulary import PRUNE_METHODS

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model


@dataclass(frozen=True, kw_only=True)
class PruneStudy(Study):
    """prune_layers: layers of the model. prune_heads: (layer, head), layer None for every layer or
    those of prune_layers. prune_method: layer, head, dimension, threshold or token. levels: shares
    of dimensions that stay. keep_tokens: share of the tokens that stays, by token_score, or by each
    of config.TOKEN_SCORES. trial: put the heuristics on trial. Where nothing is named, what the
    heuristics recommend is pruned."""

    title: ClassVar[str] = "Pruning"
    probes: ClassVar[bool] = True
    prune_layers: tuple[int, ...] | None = None
    prune_heads: tuple[tuple[int | None, int], ...] | None = None
    prune_method: str | None = None
    levels: tuple[float, ...] | None = None
    keep_tokens: float | None = None
    token_score: str | None = None
    trial: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        layers, heads = self.prune_layers is not None, self.prune_heads is not None
        method, goes_with = self.prune_method, {"layer", "head", None}
        if method not in (None, *PRUNE_METHODS):
            raise UsageError(
                f"`prune_method` is {method}", f"it takes one of {', '.join(PRUNE_METHODS)}"
            )
        if layers and method not in goes_with:
            raise UsageError(f"`prune_layers` does not go with `prune_method` {method}", "keep one")
        if heads and method not in goes_with - {"layer"}:
            raise UsageError(f"`prune_heads` does not go with `prune_method` {method}", "keep one")
        named = [f"{layer}:{head}" for layer, head in self.prune_heads or () if layer is not None]
        if layers and named:
            raise UsageError(
                f"`prune_layers` says where lone heads of `prune_heads` are pruned, and {named[0]} "
                "names its own layer",
                "give only one of the two",
            )
        if self.levels is not None and method != "dimension":
            raise UsageError("`levels` goes with `prune_method` dimension", "leave one out")
        if layers and method == "head" and not heads:
            raise UsageError("`prune_method` head takes `prune_heads`, and may take `prune_layers`")
        tokens = self.keep_tokens is not None or self.token_score is not None
        if tokens and (layers or heads or method not in {"token", None}):
            raise UsageError(
                "`keep_tokens` and `token_score` go with `prune_method` token", "drop the others"
            )
        self._shares()  # refuses what makes no sense

    def look(self, judge: "Judge", learned: Learned) -> "PrunePlan":
        swept = sweep(judge.cache, config.SPARSITY_THRESHOLD_PERCENTAGE)
        return PrunePlan(self.chosen(swept), _trial(judge, swept) if self.trial else None)

    def chosen(self, swept: Sweep) -> list[Choice]:
        """What its settings name, or else what the heuristics recommend."""
        choices = self.asked(swept.cache) or recommended(swept, self.prune_method)
        if not choices:
            raise UsageError(
                f"The heuristics recommend nothing to prune by {self.prune_method} in "
                f"{swept.cache.model}",
                "name it, or leave out `prune_method`",
            )
        return choices

    def asked(self, cache: KVCache) -> list[Choice]:
        """What its settings name; empty where they name nothing."""
        if self.prune_heads is not None:
            return [choices.heads(cache, self.prune_heads, self.prune_layers)]
        if self.prune_layers is not None:
            return [choices.layers(cache, self.prune_layers, "as asked")]
        return self._shares()

    def _shares(self) -> list[Choice]:
        """Shares of the tokens or dimensions that are to stay, whatever the cache."""
        tokens = self.keep_tokens is not None or self.token_score is not None
        if self.prune_method == "token" or tokens:
            keep = config.KEEP_TOKENS if self.keep_tokens is None else self.keep_tokens
            scores = config.TOKEN_SCORES if self.token_score is None else (self.token_score,)
            return [choices.tokens(keep, score, "as asked") for score in scores]
        if self.prune_method == "dimension":
            return [choices.dims(keep) for keep in self.levels or config.LEVELS]
        return []


def _trial(judge: "Judge", swept: Sweep) -> pd.DataFrame:
    """What each part of the first text is worth, beside what the heuristics say of it."""
    costs = trial.costs(judge.shortened(config.TRIAL_SCORE_TOKENS), config.TRIAL_NOISE)
    return costs.merge(heuristics.of_parts(swept), on=["layer", "part", "head"])


class PrunePlan(Plan):
    """parts: of the trial, None without one."""

    def __init__(self, choices: list[Choice], parts: pd.DataFrame | None) -> None:
        self.choices = choices
        self.parts = parts
        self.methods = [m for choice in choices for m in (choice.method, *choice.controls)]

    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        impact = self.impact(summary)
        tables = {"pruning/pruning_impact": impact, "pruning/texts": rows}
        lines = [
            _sentence(choice, impact[impact["choice"] == choice.what], rows)
            for choice in self.choices
        ]
        if self.parts is None:
            return Report(tables, lines)
        correlations = trial.rank_correlations(self.parts)
        tables["pruning/heuristics_on_trial"] = correlations
        tables["pruning/cost_of_each_part"] = self.parts
        return Report(tables, [*lines, *trial.told(correlations)])

    def impact(self, summary: pd.DataFrame) -> pd.DataFrame:
        """The summary's rows by choice: choice, level, role (chosen or control) and its columns."""
        by_setting = summary.set_index(["method", "settings"])
        rows = []
        for choice in self.choices:
            for method in (choice.method, *choice.controls):
                role = "chosen" if method is choice.method else "control"
                named = {"choice": choice.what, "level": choice.level, "role": role}
                named |= {"method": method.name, "settings": method.words()}
                rows.append(named | dict(by_setting.loc[(method.name, method.words())]))
        return pd.DataFrame(rows)


def _sentence(choice: Choice, rows: pd.DataFrame, texts: pd.DataFrame) -> str:
    """One choice: what it saves and costs, and whether chance would have done as well. rows: those
    of `PrunePlan.impact`; texts: of each text apart."""
    chosen = rows[rows["role"] == "chosen"].iloc[0]
    kl, saved = chosen["kl_mean_nats"], 1 - 1 / chosen["ratio"]
    cheap = "cheap" if kl <= config.ACCEPTABLE_KL else "not cheap"
    what = choice.what[0].upper() + choice.what[1:]
    line = (
        f"{what}: saves {saved:.1%} of the bytes, measured KL {spread(chosen)} nats "
        f"per token, perplexity {chosen['delta_perplexity_percent']:+z.1f} %: {cheap}"
    )
    if saved <= 0:
        return f"{line}, and nothing is saved."
    if not choice.controls:
        return f"{line}."
    draws = np.stack([_of_texts(texts, method) for method in choice.controls])
    return f"{line}; {against_chance(_of_texts(texts, choice.method), draws)}."


def _of_texts(texts: pd.DataFrame, method: Compressor) -> np.ndarray:
    """(texts,) KL of a method, in the order of the texts."""
    own = texts[(texts["method"] == method.name) & (texts["settings"] == method.words())]
    kl: np.ndarray = own["kl_mean_nats"].to_numpy()
    return kl
