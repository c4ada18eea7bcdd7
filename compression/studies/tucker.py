"""`--mode tucker`: what a Tucker setting does to texts, in tables and sentences."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

import config
from analysis.margins import error, not_apart, spread, tied
from compression.base import Uncompressed
from compression.methods.tucker import Tucker
from compression.studies.base import Learned, Plan, Report, Study, Tables, plain_ends
from compression.studies.tucker_tables import components, layer_sensitivity, rank_sensitivity

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model

LAYERS, RANKS = "tucker/layer_sensitivity", "tucker/rank_sensitivity"
MORE_BYTES = 1.1  # what counts as about the same bytes


@dataclass(frozen=True, kw_only=True)
class TuckerStudy(Study):
    """`--mode tucker`: one setting, its keys as stored and, if asked for, before rotary embedding;
    a close look at each text. Settings are those of `Tucker`.

    no_sensitivity: skip the measured cost of each layer, the longest part.
    """

    title: ClassVar[str] = "Tucker"
    token_rank: int | None = None
    embedding_rank: int | None = None
    energy: float | None = None
    target_ratio: float | None = None
    sink_tokens: int | None = None
    recent_tokens: int | None = None
    unrotated_keys: bool = False
    no_sensitivity: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method  # noqa: B018 (refuses what cannot work)

    @property
    def context(self) -> int:
        return self.context_tokens or config.TUCKER_SEQUENCE_LENGTH

    @property
    def method(self) -> Tucker:
        token_rank, embedding_rank = (
            usual if rank is None else rank
            for rank, usual in (
                (self.token_rank, config.TOKEN_RANK),
                (self.embedding_rank, config.EMBEDDING_RANK),
            )
        )
        chooses = self.energy is not None or self.target_ratio is not None
        return Tucker(
            token_rank=None if chooses else token_rank,
            embedding_rank=None if chooses else embedding_rank,
            energy=self.energy,
            target_ratio=self.target_ratio,
            unrotated_keys=self.unrotated_keys,
            **plain_ends(self.sink_tokens, self.recent_tokens),
        )

    def look(self, judge: "Judge", learned: Learned) -> "TuckerPlan":
        """Each layer, other ranks, and the components of the layer that costs most on this text, or
        where that is not measured, errs most."""
        self.method.refuse_idle(judge.cache)
        looked = self.see(judge)
        cost = "relative_error" if self.no_sensitivity else "kl_mean_nats"
        layers = looked[LAYERS]
        dearest = layers["layer"][layers[cost].idxmax()]
        place = [layer.index for layer in judge.cache.layers].index(dearest)
        parts = components(self.method, judge.cache, place).assign(layer=dearest)
        return TuckerPlan(self.method, looked, parts)

    def see(self, judge: "Judge") -> Tables:
        """Each layer, and other ranks."""
        ranks = rank_sensitivity(judge, self.method, config.TOKEN_RANKS, config.EMBEDDING_RANKS)
        layers = layer_sensitivity(judge, self.method, not self.no_sensitivity)
        return {LAYERS: layers, RANKS: ranks}


class TuckerPlan(Plan):
    """looked: see `TuckerStudy.see`. components: of the first text, see above."""

    def __init__(self, method: Tucker, looked: Tables, components: pd.DataFrame) -> None:
        self.method = method
        self.methods = [Uncompressed(), replace(method, unrotated_keys=False), method]
        self.looked = looked
        self.components = components

    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        tables = {
            "tucker/tucker_components": self.components,
            **self.looked,
            "tucker/texts": rows,
            "tucker/summary": summary,
        }
        own = summary[summary["settings"] == self.method.words()].iloc[0]
        tables[RANKS] = with_own(self.looked[RANKS], own, self.method)
        lines = _stored_and_lost(summary[summary["method"] == Tucker.name])
        layers = self.looked[LAYERS]
        if layers["kl_mean_nats"].notna().any():
            dear = layers.nlargest(3, "kl_mean_nats")
            named = [
                f"layer {row['layer']} {row['kind']}s ({spread(row, 'kl_mean_nats', '.4f')})"
                for _, row in dear.iterrows()
            ]
            rest = not_apart(layers.drop(dear.index), "kl_mean_nats", dear.iloc[-1])
            lines.append(f"Dearest alone, in nats of measured KL: {', '.join(named)}{tied(rest)}.")
        return Report(tables, [*lines, _better_ranks(self.looked[RANKS], own)])


def with_own(ranks: pd.DataFrame, own: pd.Series, method: Tucker) -> pd.DataFrame:
    """The ranks tried, and in the column `own` which are the run's: a row more where they are none
    of those, without ranks where they are chosen layer by layer. own: the scores of the run's."""
    given = {
        "token_rank": method.token_rank or float("nan"),
        "embedding_rank": method.embedding_rank or float("nan"),
    }
    same = (ranks[list(given)] == pd.Series(given)).all(axis=1)
    ranks = ranks.assign(own=same)
    if same.any():
        return ranks
    row = pd.DataFrame([{**own.reindex(ranks.columns), **given, "own": True}])
    return pd.concat([ranks, row], ignore_index=True).astype({"own": bool})


def _stored_and_lost(rows: pd.DataFrame) -> list[str]:
    """The last row is the setting asked for; one before it is that with rotated keys."""
    row = rows.iloc[-1]
    cost = spread(row, "kl_mean_nats", ".4f")
    lines = [
        f"Stored: {row['stored_bytes'] / 2**20:.2f} MiB, {row['bits_per_value']:.2f} bits per "
        f"value, {row['ratio']:.2f} x smaller than 16 bits, factors and plain tokens included.",
        f"Restored: relative error {row['key_error']:.3f} of keys, {row['value_error']:.3f} of "
        "values.",
        f"Measured over {row['texts']:.0f} text(s): KL {cost} nats per "
        f"token, perplexity {row['perplexity_full']:.2f} -> {row['perplexity']:.2f} "
        f"({row['delta_perplexity_percent']:+z.1f} %), same top token {row['top1_agreement']:.1%}.",
    ]
    if len(rows) > 1:
        other = rows.iloc[0]
        lines.append(
            f"Keys were decomposed before rotary embedding; as they are stored, after it, the same "
            f"setting errs by {other['key_error']:.3f} on keys and costs KL "
            f"{other['kl_mean_nats']:z.4f}."
        )
    return lines


def _better_ranks(ranks: pd.DataFrame, own: pd.Series) -> str:
    """Of the ranks tried, those that cost less than the run's `own` setting did, at about its
    bytes: over several texts, where the intervals of both part."""
    if own["texts"] < 2:
        return (
            "From one text it is not known whether other ranks cost less: give `num_samples` 2 or "
            "more."
        )
    fits = ranks[ranks["bits_per_value"] <= MORE_BYTES * own["bits_per_value"]]
    own_error = 0 if pd.isna(own["kl_mean_nats_se"]) else own["kl_mean_nats_se"]
    highest = fits["kl_mean_nats"] + error(fits, "kl_mean_nats")
    better = fits[highest < own["kl_mean_nats"] - own_error]
    if better.empty:
        return "No other ranks tried cost less at about these bytes."
    best = better.loc[better["kl_mean_nats"].idxmin()]
    rest = not_apart(better.drop(best.name), "kl_mean_nats", best, least=True)
    return (
        f"Better at about these bytes: token rank {best['token_rank']:.0f} with embedding rank "
        f"{best['embedding_rank']:.0f}, KL {spread(best, 'kl_mean_nats', '.4f')} instead of "
        f"{spread(own, 'kl_mean_nats', '.4f')}, {best['bits_per_value']:.2f} bits per value "
        f"instead of {own['bits_per_value']:.2f}{tied(rest)}."
    )
