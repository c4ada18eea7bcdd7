"""Which tables a run may end with, and what of them: a line for each in `CHOICES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import config

ROWS = 20  # that are shown; the file has them all


@dataclass(frozen=True)
class Column:
    """name: of the table. header: over it, with its unit. form: how its numbers are written; of
    text none. factor: what numbers are multiplied with. Beside a mean stands its standard error
    where the table has it."""

    name: str
    header: str
    form: str = ""
    factor: float = 1.0

    @property
    def error(self) -> str:
        return f"{self.name}_se"

    def cell(self, row: Mapping[str, Any]) -> str:
        value = row[self.name]
        if pd.isna(value):
            return ""
        if not self.form:
            return str(value)
        error = row.get(self.error)
        more = (
            ""
            if error is None or pd.isna(error)
            else f" ± {format(self.factor * error, self.form.lstrip('+'))}"
        )
        return self._number(value) + more

    def _number(self, value: float) -> str:
        shown = format(self.factor * value, self.form)
        return shown if shown.strip("+-0.") else shown.lstrip("+-")  # no -0.00


Prepare = Callable[[pd.DataFrame], pd.DataFrame]


def _all(table: pd.DataFrame) -> pd.DataFrame:
    return table


@dataclass(frozen=True)
class Choice:
    """stem: of the table it is made from. rows: what is made of that. order: by these columns the
    rows come that are shown where there are too many; evenly spaced ones without."""

    stem: str
    title: str
    columns: tuple[Column, ...]
    rows: Prepare = _all
    order: tuple[str, ...] = ()


def _by_kind(index: list[str], **values: str) -> Prepare:
    """Keys and values side by side: name -> column, as name_key and name_value."""

    def rows(table: pd.DataFrame) -> pd.DataFrame:
        wide = table.pivot_table(list(values.values()), index, "kind", sort=False)
        names = {column: name for name, column in values.items()}
        wide.columns = pd.Index([f"{names[column]}_{kind}" for column, kind in wide.columns])
        return wide.reset_index()

    return rows


def _layers(table: pd.DataFrame) -> pd.DataFrame:
    wide = _by_kind(["layer"], sparsity="sparsity", mean_abs="mean_abs")(table)
    return wide.merge(table.groupby("layer")["kv_correlation"].first().reset_index(), on="layer")


def _tokens(table: pd.DataFrame) -> pd.DataFrame:
    """The most important ones of those that are seen by many."""
    seen = table[table["well_seen"]] if "well_seen" in table else table
    return seen.nlargest(ROWS, "importance")


def _dims(table: pd.DataFrame) -> pd.DataFrame:
    wide = _by_kind(["dim"], sparsity="sparsity")(table)
    return wide.assign(mean=wide.filter(like="sparsity_").mean(axis=1)).nlargest(ROWS, "mean")


def _keys_of(table: pd.DataFrame) -> pd.DataFrame:
    """Whether keys are compressed as they are stored or as they were before rotary embedding."""
    unrotated = table["settings"].str.contains("unrotated_keys")
    keys = np.where(unrotated, "unrotated", "as stored")
    return table.assign(keys=np.where(table["method"] == "none", "", keys))


def _ways(table: pd.DataFrame) -> pd.DataFrame:
    """By the share that is kept, what costs least first; nth: its place there."""
    rows = _keys_of(table).sort_values(["keep", "kl_mean_nats"], ascending=[False, True])
    return rows.assign(nth=rows.groupby("keep").cumcount())


def _pruned(table: pd.DataFrame) -> pd.DataFrame:
    """What was chosen, beside the mean of as much at random."""
    by_role = dict(iter(table.groupby("role")))
    chosen = by_role["chosen"]
    chosen = chosen.assign(saved=1 - 1 / chosen["ratio"])
    if "control" not in by_role:
        return chosen
    at_random = by_role["control"].groupby("choice")["kl_mean_nats"].mean()
    return chosen.assign(at_random=chosen["choice"].map(at_random))


def _smallest_cheap(table: pd.DataFrame) -> pd.DataFrame:
    """Of each model the smallest setting that is cheap, or else the one that costs least."""
    rows = []
    for _, of_model in table[table["ratio"] > 1].groupby("model", sort=False):
        cheap = of_model[of_model["kl_mean_nats"] <= config.ACCEPTABLE_KL]
        best = cheap["ratio"].idxmax() if len(cheap) else of_model["kl_mean_nats"].idxmin()
        rows.append(of_model.loc[best])
    return pd.DataFrame(rows, columns=table.columns)


BITS = Column("bits_per_value", "bits per value", ".2f")
RATIO = Column("ratio", "ratio to 16 bits", ".2f")
PER_TOKEN = Column("bytes_per_token", "bytes per token", ",.0f")
LOADS = Column("beats_prefill_from", "beats prefill from (MB/s)", ",.2f", 1e-6)
KL = Column("kl_mean_nats", "KL (nats per token)", ".4f")
PERPLEXITY = Column("delta_perplexity_percent", "perplexity (%)", "+.2f")
TOP1 = Column("top1_agreement", "same top token (%)", ".1f", 100)
LOST = (KL, PERPLEXITY)
ERRORS = (Column("key_error", "error of keys", ".3f"), Column("value_error", "of values", ".3f"))
METHOD, LABEL = Column("method", "method"), Column("label", "setting")
SPARSITY = (
    Column("sparsity_key", "sparsity of keys (%)", ".1f", 100),
    Column("sparsity_value", "of values (%)", ".1f", 100),
)
ERRORS_ALONE = (LABEL, BITS, RATIO, PER_TOKEN, *ERRORS)

CHOICES = (
    Choice(
        "models/models",
        "The smallest cheap setting of each model, or the one that costs least",
        (Column("model", "model"), METHOD, Column("settings", "settings"), BITS, RATIO, *LOST),
        _smallest_cheap,
    ),
    Choice(
        "compare/compare",
        "What was compared, smallest first",
        (LABEL, BITS, RATIO, PER_TOKEN, *LOST, LOADS),
        order=("frontier", "kl_mean_nats"),
    ),
    Choice(
        "tucker/summary",
        "The setting, beside the untouched cache",
        (METHOD, Column("keys", "keys"), BITS, RATIO, *ERRORS, *LOST, TOP1),
        _keys_of,
    ),
    Choice(
        "embeddings/dimension_compression",
        "What keeping fewer dimensions costs",
        (
            METHOD,
            Column("keys", "keys"),
            Column("keep", "dimensions kept (%)", ".0f", 100),
            BITS,
            RATIO,
            *LOST,
        ),
        _ways,
        order=("nth",),
    ),
    Choice(
        "similarity/potential_savings",
        "What merging saves and costs",
        (
            Column("level", "merged"),
            Column("saved_bytes", "saved (MiB)", ".2f", 2**-20),
            Column("saved_share", "saved (%)", ".1f", 100),
            *LOST,
        ),
    ),
    *(
        Choice(
            f"{folder}/bits_and_errors",
            "What each setting stores and is off by",
            ERRORS_ALONE,
            order=("frontier", "key_error"),
        )
        for folder in ("embeddings", "similarity", "pruning", "compare", "tucker")
    ),
    Choice(
        "layers/layer_statistics",
        "Layers",
        (
            Column("layer", "layer"),
            *SPARSITY,
            Column("mean_abs_key", "mean |key|", ".3f"),
            Column("mean_abs_value", "mean |value|", ".3f"),
            Column("kv_correlation", "correlation of keys and values", ".2f"),
        ),
        _layers,
    ),
    Choice(
        "heads/head_pruning_potential",
        "KV heads, over all layers",
        (Column("head", "KV head"), *SPARSITY),
        _by_kind(["head"], sparsity="sparsity_mean"),
    ),
    Choice(
        "tokens/token_position_importance",
        "The most important tokens",
        (
            Column("position", "position"),
            Column("token", "token"),
            Column("importance", "importance", ".3f"),
            Column("attention_received", "attention received (%)", ".1f", 100),
            Column("key_norm", "norm of its key", ".1f"),
            Column("value_norm", "of its value", ".2f"),
        ),
        _tokens,
    ),
    Choice(
        "embeddings/embedding_consistency",
        "The sparsest embedding dimensions",
        (Column("dim", "dimension"), *SPARSITY),
        _dims,
    ),
    Choice(
        "spectrum/ranks",
        "Layers, mean over their KV heads",
        (
            Column("layer", "layer"),
            Column("effective_rank_key", "effective rank of keys", ".1f"),
            Column("effective_rank_value", "of values", ".1f"),
            Column("rank_95_key", "dimensions for 95 % of the energy of keys", ".1f"),
            Column("rank_95_value", "of values", ".1f"),
        ),
        _by_kind(["layer"], effective_rank="effective_rank", rank_95="rank_95"),
    ),
    Choice(
        "tokens/generation_stages_comparison",
        "Stages of generation",
        (Column("stage", "stage"), Column("n_tokens", "tokens"), *SPARSITY),
        _by_kind(["stage", "n_tokens"], sparsity="sparsity"),
    ),
    Choice(
        "pruning/pruning_impact",
        "What pruning saves and costs",
        (
            Column("choice", "pruned"),
            Column("saved", "bytes saved (%)", ".1f", 100),
            *LOST,
            Column("at_random", "KL of as much at random", ".4f"),
        ),
        _pruned,
        order=("kl_mean_nats",),
    ),
)
