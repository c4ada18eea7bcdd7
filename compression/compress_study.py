"""`--mode compress`: smaller embedding dimensions, each way at several kept shares."""

from typing import ClassVar

import pandas as pd

import config
from compression.base import Uncompressed
from compression.dim_groups import dimension_groups
from compression.dimensions import (
    PCA,
    CalibratedPCA,
    DroppedDims,
    EmbeddingFactor,
    MergedDims,
    fitted_bases,
)
from compression.evaluate import Judge, words
from compression.study import BaseStudy, Tables, spread
from config import RunConfig
from data.cache import KVCache


class Study(BaseStudy):
    title: ClassVar[str] = "Embedding compression"

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.ends = {"sink_tokens": run.sink_tokens, "recent_tokens": run.recent_tokens}
        PCA(**self.ends)  # refuses what makes no sense
        self.n_learned = config.CALIBRATION_TEXTS
        self.learned: list[tuple[str, KVCache]] = []
        for level in run.levels:
            MergedDims(level, largest=config.LARGEST_DIM_GROUP)  # refuses what it cannot reach

    def learn(self, cache: KVCache, name: str) -> None:
        self.learned.append((name, cache.in_16_bits()))

    def look(self, judge: Judge) -> None:
        cache, largest = judge.cache, config.LARGEST_DIM_GROUP
        PCA(**self.ends, unrotated_keys=self.run.unrotated_keys).refuse_idle(cache)
        self.groups = dimension_groups(cache, config.DIM_SIMILARITY, largest)
        self.methods = [Uncompressed()]
        names, caches = zip(*self.learned, strict=True)
        percentage = config.SPARSITY_THRESHOLD_PERCENTAGE
        for unrotated in (False, True) if self.run.unrotated_keys else (False,):
            both = {**self.ends, "unrotated_keys": unrotated}
            bases = fitted_bases(caches, unrotated, "; ".join(names))
            natural = {"similarity": config.DIM_SIMILARITY, "largest": largest}
            self.methods.append(MergedDims(1.0, **both, **natural))
            for keep in sorted(self.run.levels, reverse=True):
                self.methods += [
                    MergedDims(keep, **both, largest=largest),
                    DroppedDims(keep, **both, percentage=percentage),
                    EmbeddingFactor(keep, **both),
                    PCA(keep, **both),
                    CalibratedPCA(keep, **both, model_side=bases),
                ]

    def tables(self, rows: pd.DataFrame, summary: pd.DataFrame) -> Tables:
        return {
            "embeddings/dimension_compression": self.by_way(summary),
            "embeddings/dimension_compression_texts": rows,
            "similarity/embedding_dimension_groups": self.groups,
        }

    def by_way(self, summary: pd.DataFrame) -> pd.DataFrame:
        """The summary's rows but for the untouched cache, with columns keep and unrotated_keys, and
        the context from which storing a basis for the model pays: pays_from_tokens."""
        said = {(m.name, words(m)): m for m in self.methods if m.name != "none"}
        table = summary[summary["method"] != "none"].copy()
        methods = [said[key] for key in zip(table["method"], table["settings"], strict=True)]
        table.insert(2, "keep", [method.keep for method in methods])
        table.insert(3, "unrotated_keys", [method.unrotated_keys for method in methods])
        saved_per_token = (table["original_bytes"] - table["stored_bytes"]) / self.context
        table["pays_from_tokens"] = (table["per_model_bytes"] / saved_per_token).round()
        return table

    def verdict(self, rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
        table = self.by_way(summary)
        lines = [_cheapest(table[table["keep"] == keep]) for keep in sorted(self.run.levels)[::-1]]
        natural = table[table["settings"].str.contains("similarity=")].iloc[0]
        lines.append(
            f"Merging what goes together (|cosine| from {config.DIM_SIMILARITY:g}) stores "
            f"{natural['bits_per_value']:.2f} of 16 bits per value at KL {spread(natural)}."
        )
        cheap = table[(table["kl_mean_nats"] <= config.ACCEPTABLE_KL) & (table["ratio"] > 1)]
        if cheap.empty:
            return [*lines, f"No way costs less than {config.ACCEPTABLE_KL:g} nats of KL."]
        best = cheap.loc[cheap["ratio"].idxmax()]
        return [
            *lines,
            f"Smallest within {config.ACCEPTABLE_KL:g} nats: {_named(best)}, {best['keep']:.0%} of "
            f"the dimensions, {best['ratio']:.2f} x at KL {spread(best)}.",
        ]


def _named(row: pd.Series) -> str:
    return row["method"] + (" of unrotated keys" if row["unrotated_keys"] else "")


def _cheapest(rows: pd.DataFrame) -> str:
    """Of the ways that keep one share, that which costs least, and the others' costs."""
    rows = rows[~rows["settings"].str.contains("similarity=")].sort_values("kl_mean_nats")
    best, rest = rows.iloc[0], rows.iloc[1:]
    others = ", ".join(f"{_named(row)} {row['kl_mean_nats']:.3f}" for _, row in rest.iterrows())
    basis = ""
    if best["per_model_bytes"]:
        basis = f" (and {best['per_model_bytes'] / 2**20:.1f} MiB once per model)"
    return (
        f"{best['keep']:.0%} of the dimensions: {_named(best)} costs least, KL {spread(best)} "
        f"nats at {best['ratio']:.2f} x{basis}; the others: {others}."
    )
