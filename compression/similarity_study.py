"""`--mode analyze_similarity`: what is alike in the cache, and what it costs to really merge it."""

from collections.abc import Sequence
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
Groups = Sequence[Sequence[Head]]


class Study(BaseStudy):
    """Groups of layers and heads are found on the first text and merged on all; tokens and
    dimensions are grouped in each text anew. passed: level -> whether anything was alike enough."""

    title: ClassVar[str] = "Similarity"

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.merges: dict[str, Compressor] = {}
        self.passed: dict[str, bool] = {}
        self.counts: dict[str, str] = {}

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
        self._merge_layers(cache, layers)
        self._merge_heads(cache, heads)
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

    def _merge_layers(self, cache: KVCache, table: pd.DataFrame) -> None:
        """Each group of layers is a group for each of its heads."""
        n_heads = {layer.index: layer.n_heads for layer in cache.layers}
        found, counts = {}, []
        for kind in KINDS:
            groups = clusters.layer_groups(table, kind, config.LAYER_SIMILARITY)
            counts.append(f"{len(groups)} groups of {kind}s")
            found[kind] = [
                [(layer, head) for layer in group]
                for group in groups
                for head in range(n_heads[group[0]])
            ]
        pairs = {kind: _nearest_members(table, "layers", kind) for kind in KINDS}
        nearest = {
            kind: [[(layer, h) for (layer,) in pair] for h in range(n_heads[pair[0][0]])]
            for kind, pair in pairs.items()
            if pair
        }
        self._merge("layers", cache, found, nearest, counts)

    def _merge_heads(self, cache: KVCache, table: pd.DataFrame) -> None:
        found = {kind: clusters.head_groups(table, kind, config.HEAD_SIMILARITY) for kind in KINDS}
        counts = [f"{len(groups)} groups of {kind}s" for kind, groups in found.items()]
        pairs = {kind: _nearest_members(table, "heads", kind) for kind in KINDS}
        self._merge("heads", cache, found, {k: [p] for k, p in pairs.items() if p}, counts)

    def _merge(self, level: str, cache: KVCache, found: dict, nearest: dict, counts: list) -> None:
        """What passed the threshold; where nothing did, the nearest pair."""
        found = {kind: _of_one_shape(groups, cache) for kind, groups in found.items()}
        nearest = {kind: _of_one_shape(groups, cache) for kind, groups in nearest.items()}
        self.passed[level] = any(found.values())
        self.counts[level] = " and ".join(counts)
        chosen = found if self.passed[level] else nearest
        if any(chosen.values()):
            self.merges[level] = MergedHeads(chosen.get("key", ()), chosen.get("value", ()))

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
        table = self.looked[f"similarity/{level[:-1]}_similarity_matrix"]
        threshold = {"layers": config.LAYER_SIMILARITY, "heads": config.HEAD_SIMILARITY}[level]
        nearest = [clusters.nearest(table, level, kind) for kind in KINDS]
        named = " and, by values, ".join(near or "none comparable" for near in nearest)
        if level not in savings.index:
            return f"{level.capitalize()}: none can be compared."
        row = savings.loc[level]
        if self.passed[level]:
            return (
                f"{level.capitalize()}: {self.counts[level]} pass |cosine| {threshold:g}; merging "
                f"them {_paid(row)}. Nearest by keys: {named}."
            )
        return (
            f"{level.capitalize()}: none pass |cosine| {threshold:g}; nearest by keys: {named}. "
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


def _nearest_members(table: pd.DataFrame, level: str, kind: str) -> list[tuple[int, ...]] | None:
    """The two members that are most alike, in either sign."""
    members, matrix = clusters.similarity_matrix(table, level, kind)
    pair = clusters.nearest_pair(abs(matrix))
    return None if pair is None else [members[i] for i in pair[:2]]


def _of_one_shape(groups: Groups, cache: KVCache) -> tuple[tuple[Head, ...], ...]:
    """The groups without those whose members hold different tokens, which cannot be one tensor."""
    held = {layer.index: (layer.n_tokens, layer.kind) for layer in cache.layers}
    return tuple(
        tuple(map(tuple, group))
        for group in groups
        if len({held[layer] for layer, _ in group}) == 1
    )


def _paid(row: pd.Series) -> str:
    return (
        f"saves {row['saved_bytes'] / 2**20:.2f} MiB of {row['original_bytes'] / 2**20:.2f} "
        f"({row['saved_share']:.1%}) and costs KL {spread(row)} nats per token"
    )
