"""Tables of several texts as one: the mean over texts of what was measured, and its standard error.

Each text is measured as if it were alone, with a sparsity threshold from its own maximum: so a mean
is of exactly the numbers that single runs give. What has no mean is dealt with by name in `RULES`,
where every table has to have its rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

import config
from analysis.clusters import leaf_order
from analysis.embeddings import ByPosition, chosen_patterns

Tables = dict[str, pd.DataFrame]
PATTERNS = "embeddings/sparse_dense_embedding_patterns"
VARIANCE = "embeddings/sparse_dense_embedding_patterns_variance"
HEADS = "similarity/head_similarity_matrix"


@dataclass(frozen=True)
class Rule:
    """keys: columns that say what a row is of. same: columns that are given and not measured, empty
    where texts differ in them, such as the words at a position. sums: counts, which add up. All
    other columns are measured: a mean, and `_se`, its standard error."""

    keys: tuple[str, ...]
    same: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()


OF_FIRST = Rule(())  # cannot be averaged: the table of the first text stands for all
OF_PLACES = Rule(())  # made of sums over texts, see `_patterns`
SEEN = ("seen_by", "well_seen")
RULES = {
    "cache_inventory": OF_FIRST,
    "cache/norms_in_time": OF_FIRST,  # of long texts it says what it says of one
    "layers/layer_statistics": Rule(("kind", "layer")),
    "layers/layer_pruning_potential": Rule(("kind", "layer")),
    "weight_magnitude_distribution": Rule(("kind", "bin"), sums=("count",)),
    "heads/head_sparsity": Rule(("kind", "layer", "head")),
    "heads/head_pruning_potential": Rule(("head", "kind")),
    "heads/pruning_heatmap_by_layer_head": Rule(("layer", "head")),
    "tokens/token_position_importance": Rule(
        ("position",), ("token_id", "token", "even_share", *SEEN)
    ),
    "tokens/attention_sinks": Rule(("layer", "position"), ("token", "even_share", *SEEN)),
    "tokens/attended_text": OF_FIRST,  # each has words of its own
    "cache/keys": OF_FIRST,
    "cache/values": OF_FIRST,
    "tokens/generation_stages_comparison": Rule(("kind", "stage")),
    "embeddings/embedding_consistency": Rule(("kind", "dim")),
    VARIANCE: Rule(("kind", "dim")),
    PATTERNS: OF_PLACES,
    "similarity/layer_similarity_matrix": Rule(
        ("kind", "layer_a", "layer_b"), ("n_positions", "rank")
    ),
    HEADS: Rule(
        ("kind", "layer_a", "head_a", "layer_b", "head_b"), ("order_a", "order_b", "n_positions")
    ),
    "similarity/token_similarity_matrix": Rule(
        ("kind", "position_a", "position_b"), ("n_positions",)
    ),
    "similarity/token_kv_similarity_matrices": Rule(
        ("kind", "layer", "position_a", "position_b"), ("n_positions",)
    ),
    "similarity/token_embedding_patterns": Rule(("kind", "position", "dim"), ("n_positions",)),
    "similarity/embedding_dimension_correlations": Rule(
        ("kind", "dim_a", "dim_b"), ("n_positions",)
    ),
    # which dimensions share a group differs by text: group is a number that only tells them apart
    "similarity/embedding_dimension_groups": Rule(
        ("layer", "kind", "dim", "head"), ("group", "similarity")
    ),
    "tucker/tucker_components": OF_FIRST,  # factors are unique up to signs and rotations only
    "tucker/layer_sensitivity": Rule(("layer", "kind")),
    "tucker/rank_sensitivity": Rule(("token_rank", "embedding_rank")),
}


def combined(texts: Sequence[Tables], by_position: ByPosition | None = None) -> Tables:
    """The tables of several texts, by name, as one of each: those of one text are left as they are,
    of more each has a column `texts`, how many have that row. by_position: of all texts together,
    where position patterns are among the tables."""
    if len(texts) == 1:
        return dict(texts[0])
    tables = {
        stem: _combined(stem, [each[stem] for each in texts if stem in each]) for stem in texts[0]
    }
    if PATTERNS in tables and by_position is not None:
        tables[PATTERNS] = _patterns(tables[VARIANCE], by_position, len(texts))
    if HEADS in tables:
        tables[HEADS] = _in_order(tables[HEADS])
    return tables


def of_each(texts: Sequence[Tables], indexes: Sequence[int]) -> Tables:
    """The rows of each text under the table's name and `_texts`, in the order of the texts, each
    with the `index` of its text: none for one text, whose tables they would repeat."""
    if len(texts) == 1:
        return {}
    return {
        f"{stem}_texts": pd.concat(
            [
                each[stem][[]].assign(index=index).join(each[stem])
                for each, index in zip(texts, indexes, strict=True)
            ],
            ignore_index=True,
        )
        for stem in texts[0]
        if RULES[stem] is not OF_FIRST and len(texts[0][stem])
    }


def _combined(stem: str, tables: list[pd.DataFrame]) -> pd.DataFrame:
    if stem not in RULES:
        raise ValueError(f"there is no rule of how {stem} of several texts are one table")
    rule = RULES[stem]
    if not rule.keys or not any(len(table) for table in tables):
        return tables[0]
    if "bin" in rule.keys:
        tables = [table.assign(bin=table.groupby("kind").cumcount()) for table in tables]
    keys, names = list(rule.keys), list(tables[0].columns)
    tables, counts = _aligned(tables, keys)
    columns: dict[str, pd.Series | np.ndarray] = {}
    for name in names:
        if name in keys:
            columns[name] = tables[0][name]
        elif name in rule.same:
            columns[name] = _where_alike([table[name] for table in tables])
        elif name in rule.sums:
            columns[name] = sum(table[name].fillna(0) for table in tables)
        else:
            columns[name], columns[f"{name}_se"] = _mean_and_error(tables, name)
    return pd.DataFrame(columns).assign(texts=counts).drop(columns="bin", errors="ignore")


def _aligned(
    tables: list[pd.DataFrame], keys: list[str]
) -> tuple[list[pd.DataFrame], int | np.ndarray]:
    """The tables with the same rows in the same order, empty where a text has none; and how many
    texts have each row."""
    if all(table[keys].equals(tables[0][keys]) for table in tables):
        return tables, len(tables)
    indexes = [pd.MultiIndex.from_frame(table[keys]) for table in tables]
    rows = indexes[0]
    for index in indexes[1:]:
        rows = rows.union(index)
    counts = sum(rows.isin(index).astype(int) for index in indexes)
    named = rows.to_frame(index=False)
    return [named.merge(table, "left", on=keys) for table in tables], counts


def _where_alike(columns: list[pd.Series]) -> pd.Series:
    """The value of the texts that have one, empty where they differ."""
    value = columns[0]
    differs = pd.Series(False, index=value.index)
    for column in columns[1:]:
        value = value.where(value.notna(), column)
        differs |= column.notna() & (column != value)
    return value.mask(differs) if differs.any() else value


def _mean_and_error(tables: list[pd.DataFrame], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) each, over the texts that have a number there: the same whichever comes first, and
    exact where all have the same."""
    values = np.stack([table[name].to_numpy(np.float64) for table in tables])  # (texts, rows)
    values.sort(axis=0)  # NaN last
    n = (~np.isnan(values)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # of none there is no mean
        mean = values[0] + np.nansum(values - values[0], axis=0) / n
        error = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (n - 1) / n)
    error[n < 2] = np.nan
    kept = tables[0][name].dtype
    dtype = kept if kept == np.float32 else np.float64  # see `similarity._pairs`
    return mean.astype(dtype), error.astype(dtype)


def _patterns(variance: pd.DataFrame, by_position: ByPosition, n_texts: int) -> pd.DataFrame:
    """See `embeddings.position_patterns`: the dimensions whose mean variance is the most and the
    least, where each text has its own."""
    return chosen_patterns(by_position, variance, config.PATTERN_DIMS).assign(texts=n_texts)


def _in_order(pairs: pd.DataFrame) -> pd.DataFrame:
    """Heads in the places that they have when they are clustered by their mean CKA."""
    parts = []
    for _, rows in pairs.groupby("kind", sort=False):
        heads = rows.loc[rows["layer_a"].eq(rows["layer_b"]) & rows["head_a"].eq(rows["head_b"])]
        members = pd.MultiIndex.from_frame(heads[["layer_a", "head_a"]])
        a, b = (
            members.get_indexer(pd.MultiIndex.from_frame(rows[[f"layer_{x}", f"head_{x}"]]))
            for x in "ab"
        )
        cka = np.full((len(members), len(members)), np.nan)
        cka[a, b] = cka[b, a] = rows["cka"]
        order = np.argsort(leaf_order(cka))
        parts.append(rows.assign(order_a=order[a], order_b=order[b]))
    return pd.concat(parts, ignore_index=True)
