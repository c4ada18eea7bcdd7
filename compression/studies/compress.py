"""`--mode compress`: smaller embedding dimensions, each way at several kept shares."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

import config
from analysis.margins import not_apart, tied
from compression.base import Compressor, Uncompressed
from compression.methods.dim_groups import dimension_groups
from compression.methods.dimensions import (
    PCA,
    CalibratedPCA,
    DroppedDims,
    EmbeddingFactor,
    MergedDims,
    Projection,
    fitted_bases,
)
from compression.studies.base import Ends, Learned, Plan, Report, Study, plain_ends, spread
from data.cache import KVCache

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model


@dataclass(frozen=True, kw_only=True)
class CompressStudy(Study):
    """levels: shares of the dimensions that are kept. sink_tokens, recent_tokens: first and most
    recent tokens that stay plain. unrotated_keys: compress keys as they were before rotary
    embedding as well."""

    title: ClassVar[str] = "Embedding compression"
    levels: tuple[float, ...] | None = None
    sink_tokens: int | None = None
    recent_tokens: int | None = None
    unrotated_keys: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        PCA(**self._ends)  # refuses what makes no sense
        for level in self.shares:
            MergedDims(level, largest=config.LARGEST_DIM_GROUP)  # refuses what it cannot reach

    @property
    def n_learned(self) -> int:
        return config.CALIBRATION_TEXTS

    @property
    def _ends(self) -> Ends:
        return plain_ends(self.sink_tokens, self.recent_tokens)

    @property
    def shares(self) -> list[float]:
        return sorted(self.levels or config.LEVELS, reverse=True)

    def look(self, judge: "Judge", learned: Learned) -> "CompressPlan":
        return self.plan(judge.cache, learned)

    def plan(self, cache: KVCache, learned: Learned) -> "CompressPlan":
        """Without what is fitted on caches of other texts where `learned` has none."""
        PCA(**self._ends, unrotated_keys=self.unrotated_keys).refuse_idle(cache)
        groups = dimension_groups(cache, config.DIM_SIMILARITY, config.LARGEST_DIM_GROUP)
        methods: list[Compressor] = [Uncompressed()]
        for unrotated in (False, True) if self.unrotated_keys else (False,):
            methods += self._methods(unrotated)
            methods += self._fitted(learned, unrotated) if learned.caches else []
        return CompressPlan(methods, self.shares, self.context, groups)

    def _fitted(self, learned: Learned, unrotated: bool) -> list[Compressor]:
        names, caches = zip(*learned.caches, strict=True)
        bases = fitted_bases(caches, unrotated, "; ".join(names))
        return [
            CalibratedPCA(keep, **self._ends, unrotated_keys=unrotated, calibration=bases)
            for keep in self.shares
        ]

    def _methods(self, unrotated: bool) -> list[Compressor]:
        ends, largest = self._ends, config.LARGEST_DIM_GROUP
        natural = MergedDims(
            1.0,
            **ends,
            unrotated_keys=unrotated,
            similarity=config.DIM_SIMILARITY,
            largest=largest,
        )
        methods: list[Compressor] = [natural]
        for keep in self.shares:
            methods += [
                MergedDims(keep, **ends, unrotated_keys=unrotated, largest=largest),
                DroppedDims(
                    keep,
                    **ends,
                    unrotated_keys=unrotated,
                    percentage=config.SPARSITY_THRESHOLD_PERCENTAGE,
                ),
                EmbeddingFactor(keep, **ends, unrotated_keys=unrotated),
                PCA(keep, **ends, unrotated_keys=unrotated),
            ]
        return methods


class CompressPlan(Plan):
    """levels: kept shares, the largest first. groups: which dimensions of the first text go
    together."""

    def __init__(
        self, methods: list[Compressor], levels: list[float], context: int, groups: pd.DataFrame
    ) -> None:
        self.methods = methods
        self.levels = levels
        self.context = context
        self.groups = groups

    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        by_way = self.by_way(summary)
        tables = {
            "embeddings/dimension_compression": by_way,
            "embeddings/dimension_compression_texts": rows,
            "similarity/embedding_dimension_groups": self.groups,
        }
        return Report(tables, self._lines(by_way))

    def by_way(self, summary: pd.DataFrame) -> pd.DataFrame:
        """The summary's rows but for the untouched cache, with columns keep and unrotated_keys, and
        the context from which storing a basis for the model pays: pays_from_tokens."""
        ways = {(m.name, m.words()): m for m in self.methods if isinstance(m, Projection)}
        table = summary[summary["method"] != "none"].copy()
        methods = [ways[key] for key in zip(table["method"], table["settings"], strict=True)]
        table.insert(2, "keep", [method.keep for method in methods])
        table.insert(3, "unrotated_keys", [method.unrotated_keys for method in methods])
        saved_per_token = (table["original_bytes"] - table["stored_bytes"]) / self.context
        table["pays_from_tokens"] = (table["per_model_bytes"] / saved_per_token).round()
        return table

    def _lines(self, table: pd.DataFrame) -> list[str]:
        lines = [_cheapest(table[table["keep"] == keep]) for keep in self.levels]
        natural = table[table["settings"].str.contains("similarity=")].iloc[0]
        lines.append(
            f"Merging what goes together (|cosine| from {config.DIM_SIMILARITY:g}) stores "
            f"{natural['bits_per_value']:.2f} of 16 bits per value at KL {spread(natural)}."
        )
        cheap = table[(table["kl_mean_nats"] <= config.ACCEPTABLE_KL) & (table["ratio"] > 1)]
        if cheap.empty:
            return [
                *lines,
                f"No way that saves bytes costs {config.ACCEPTABLE_KL:g} nats of KL or less.",
            ]
        best = cheap.loc[cheap["ratio"].idxmax()]
        return [
            *lines,
            f"Smallest within {config.ACCEPTABLE_KL:g} nats: {_named(best)}, {best['keep']:.0%} of "
            f"the dimensions, {best['ratio']:.2f} x at KL {spread(best)}.",
        ]


def _named(row: pd.Series) -> str:
    return f"{row['method']}{' of unrotated keys' if row['unrotated_keys'] else ''}"


def _cheapest(rows: pd.DataFrame) -> str:
    """Of the ways that keep one share, that which costs least, and the others' costs."""
    rows = rows[~rows["settings"].str.contains("similarity=")].sort_values("kl_mean_nats")
    best, rest = rows.iloc[0], rows.iloc[1:]
    others = ", ".join(
        f"{_named(row)} {row['kl_mean_nats']:z.3f} at {row['ratio']:.2f} x"
        for _, row in rest.iterrows()
    )
    as_little = tied(not_apart(rest, "kl_mean_nats", best, least=True))
    basis = ""
    if best["per_model_bytes"]:
        basis = f" (and {best['per_model_bytes'] / 2**20:.1f} MiB once per model)"
    return (
        f"{best['keep']:.0%} of the dimensions: {_named(best)} costs least, KL {spread(best)} "
        f"nats at {best['ratio']:.2f} x{basis}{as_little}; the others: {others}."
    )
