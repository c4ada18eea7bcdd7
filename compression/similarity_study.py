"""`--mode analyze_similarity`: what is alike in the cache, and what it costs to really merge it."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import pandas as pd

import config
from analysis import clusters, similarity
from compression.base import Compressor, Uncompressed
from compression.dim_groups import dimension_groups
from compression.dimensions import MergedDims
from compression.evaluate import Judge, words
from compression.merging import Head, MergedHeads, MergedTokens
from compression.study import BaseStudy, Tables, spread
from config import RunConfig
from data.cache import KINDS, KVCache

SHOWN_LAYERS = 4  # of which the similarity of tokens is drawn
Member = tuple[int, ...]  # (layer,) or (layer, head)


class Study(BaseStudy):
    """Groups of layers and heads are found on the first text and merged on all; tokens and
    dimensions are grouped in each text anew. passed: level -> whether anything was alike enough."""

    title: ClassVar[str] = "Similarity"

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.merges: dict[str, Compressor] = {}
        self.passed: dict[str, bool] = {}
        self.counts: dict[str, str] = {}
        self.mergeable: dict[str, pd.DataFrame] = {}

    def look(self, judge: Judge) -> None:
        cache = judge.cache
        kinds = similarity.comparable_kinds(cache)
        at = similarity.shared_positions(cache, config.SIMILARITY_POSITIONS)
        shown = similarity.chosen_layers(cache, SHOWN_LAYERS)
        layers = similarity.layer_similarity(cache, kinds, at, config.SUBSPACE_RANK)
        heads = similarity.head_similarity(cache, kinds, at)
        self.looked = {
            "similarity/layer_similarity_matrix": layers,
            "similarity/head_similarity_matrix": heads,
            "similarity/token_similarity_matrix": similarity.token_similarity(cache, kinds, at),
            "similarity/token_kv_similarity_matrices": similarity.token_kv_similarity(
                cache, kinds, at[::2].contiguous(), shown
            ),
            "similarity/token_embedding_patterns": similarity.token_embedding_patterns(cache, at),
            "similarity/embedding_dimension_correlations": similarity.dimension_correlations(
                cache, kinds
            ),
            "similarity/embedding_dimension_groups": dimension_groups(
                cache, config.DIM_SIMILARITY, config.LARGEST_DIM_GROUP
            ),
        }
        self._merge("layers", cache, layers, config.LAYER_SIMILARITY)
        self._merge("heads", cache, heads, config.HEAD_SIMILARITY)
        unrotated = "unrotated_key" in kinds
        self.merges["tokens"] = MergedTokens(config.TOKEN_SIMILARITY, unrotated)
        self.merges["dimensions"] = MergedDims(
            1.0,
            similarity=config.DIM_SIMILARITY,
            largest=config.LARGEST_DIM_GROUP,
            sink_tokens=self.run.sink_tokens,
            recent_tokens=self.run.recent_tokens,
        )
        self.methods = [Uncompressed(), *self.merges.values()]

    def _merge(self, level: str, cache: KVCache, table: pd.DataFrame, threshold: float) -> None:
        """What passes the threshold; where nothing does, the nearest pair of each kind."""
        table = self.mergeable[level] = _of_one_shape(table, cache)
        groups = {kind: clusters.groups_of(table, level, kind, threshold) for kind in KINDS}
        self.passed[level] = any(groups.values())
        self.counts[level] = " and ".join(
            f"{len(groups[kind])} groups of {kind}s" for kind in KINDS
        )
        if not self.passed[level]:
            groups = {kind: _nearest_members(table, level, kind) for kind in KINDS}
        if any(groups.values()):
            n_heads = {layer.index: layer.n_heads for layer in cache.layers}
            keys, values = (_heads_of(groups[kind], n_heads) for kind in KINDS)
            self.merges[level] = MergedHeads(keys, values)

    def tables(self, rows: pd.DataFrame, summary: pd.DataFrame) -> Tables:
        return self.looked | {
            "similarity/potential_savings": self.savings(summary),
            "similarity/texts": rows,
        }

    def savings(self, summary: pd.DataFrame) -> pd.DataFrame:
        """level, saved_bytes, saved_share, and the summary's columns of really merging it."""
        by_setting = summary.set_index(["method", "settings"])
        rows = []
        for level, method in self.merges.items():
            named = {"level": level, "method": method.name, "settings": words(method)}
            scores = by_setting.loc[(method.name, named["settings"])]
            saved = scores["original_bytes"] - scores["stored_bytes"]
            named |= {"saved_bytes": saved, "saved_share": saved / scores["original_bytes"]}
            rows.append(named | dict(scores))
        return pd.DataFrame(rows)

    def verdict(self, rows: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
        savings = self.savings(summary).set_index("level")
        lines = [self._parts(level, savings) for level in ("layers", "heads")]
        lines.append(self._tokens(savings.loc["tokens"]))
        lines.append(self._dims(savings.loc["dimensions"]))
        return [*lines, "Savings of different levels overlap and cannot be added up."]

    def _parts(self, level: str, savings: pd.DataFrame) -> str:
        threshold = {"layers": config.LAYER_SIMILARITY, "heads": config.HEAD_SIMILARITY}[level]
        looked = self.looked[f"similarity/{level[:-1]}_similarity_matrix"]
        nearest = [clusters.nearest(self.mergeable[level], level, kind) for kind in KINDS]
        named = " and, by values, ".join(near or "none comparable" for near in nearest)
        if level not in savings.index:
            return f"{level.capitalize()}: no two hold the same tokens in the same shape."
        among = level.capitalize()
        if len(self.mergeable[level]) < len(looked):
            among += " that hold the same tokens"
        row = savings.loc[level]
        if self.passed[level]:
            return (
                f"{among}: {self.counts[level]} pass |cosine| {threshold:g}; merging "
                f"them {_paid(row)}. Nearest by keys: {named}."
            )
        return (
            f"{among}: none pass |cosine| {threshold:g}; nearest by keys: {named}. "
            f"Merging even those {_paid(row)}."
        )

    def _tokens(self, row: pd.Series) -> str:
        table = self.looked["similarity/token_similarity_matrix"]
        kind = "unrotated_key" if "unrotated_key" in set(table["kind"]) else "key"
        near = [clusters.nearest(table, "tokens", k) or "none comparable" for k in (kind, "value")]
        return (
            f"Tokens: merging those of a layer with a cosine from {config.TOKEN_SIMILARITY:g} "
            f"{_paid(row)}. Nearest over all layers by keys: {near[0]}; by values: {near[1]}."
        )

    def _dims(self, row: pd.Series) -> str:
        return (
            f"Dimensions: merging those of a head with |cosine over tokens| from "
            f"{config.DIM_SIMILARITY:g} {_paid(row)}."
        )


def _nearest_members(table: pd.DataFrame, level: str, kind: str) -> list[list[Member]]:
    """The two members that are most alike, in either sign, as one group; none where no two can be
    compared."""
    members, matrix = clusters.similarity_matrix(table, level, kind)
    pair = clusters.nearest_pair(abs(matrix))
    return [] if pair is None else [[members[i] for i in pair[:2]]]


def _of_one_shape(table: pd.DataFrame, cache: KVCache) -> pd.DataFrame:
    """The pairs whose layers hold the same tokens: others cannot be one tensor, however alike the
    positions are that they share."""
    held = {layer.index: (layer.n_tokens, layer.kind) for layer in cache.layers}
    return table[table["layer_a"].map(held) == table["layer_b"].map(held)]


def _heads_of(
    groups: Sequence[Sequence[Member]], n_heads: Mapping[int, int]
) -> tuple[tuple[Head, ...], ...]:
    """Groups of (layer, head) as they are; a group of (layer,) is one for each of its heads."""
    by_head: list[tuple[Head, ...]] = []
    for group in groups:
        if len(group[0]) == 2:
            by_head.append(tuple((layer, head) for layer, head in group))
        else:
            heads = range(n_heads[group[0][0]])
            by_head += [tuple((layer, head) for (layer,) in group) for head in heads]
    return tuple(by_head)


def _paid(row: pd.Series) -> str:
    return (
        f"saves {row['saved_bytes'] / 2**20:.2f} MiB of {row['original_bytes'] / 2**20:.2f} "
        f"({row['saved_share']:.1%}) and costs KL {spread(row)} nats per token"
    )
