"""`--mode analyze_similarity`: what is alike in the cache, and what it costs to really merge it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

import config
from analysis import clusters, similarity
from compression.base import Compressor, Uncompressed
from compression.methods.dim_groups import dimension_groups
from compression.methods.dimensions import MergedDims
from compression.methods.merging import Head, MergedHeads, MergedTokens
from compression.studies.base import (
    Learned,
    Plan,
    Report,
    Study,
    Tables,
    errors,
    plain_ends,
    spread,
)
from data.cache import KINDS, KVCache

if TYPE_CHECKING:
    from compression.evaluate import Judge
    from compression.studies.work import Model

SHOWN_LAYERS = 4  # of which the similarity of tokens is drawn
Member = tuple[int, ...]  # (layer,) or (layer, head)


@dataclass(frozen=True, kw_only=True)
class SimilarityStudy(Study):
    """Groups of layers and heads are found on the first text and merged on all; tokens and
    dimensions are grouped in each text anew. How alike they are is looked at in every text.

    sink_tokens, recent_tokens: first and most recent tokens whose dimensions stay as they are.
    """

    title: ClassVar[str] = "Similarity"
    sink_tokens: int | None = None
    recent_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._dims  # noqa: B018 (refuses what makes no sense)

    @property
    def _dims(self) -> MergedDims:
        return MergedDims(
            1.0,
            similarity=config.DIM_SIMILARITY,
            largest=config.LARGEST_DIM_GROUP,
            **plain_ends(self.sink_tokens, self.recent_tokens),
        )

    def look(self, judge: "Judge", learned: Learned) -> "SimilarityPlan":
        return self.plan(judge.cache)

    def plan(self, cache: KVCache) -> "SimilarityPlan":
        kinds = similarity.comparable_kinds(cache)
        looked = _looked_at(cache, kinds)
        parts = [
            _alike("layers", cache, looked, config.LAYER_SIMILARITY),
            _alike("heads", cache, looked, config.HEAD_SIMILARITY),
        ]
        merges: dict[str, Compressor] = {
            part.level: part.method for part in parts if part.method is not None
        }
        merges["tokens"] = MergedTokens(
            config.TOKEN_SIMILARITY, unrotated_keys="unrotated_key" in kinds
        )
        merges["dimensions"] = self._dims
        return SimilarityPlan(looked, parts, merges)

    def see(self, judge: "Judge") -> Tables:
        return _looked_at(judge.cache, similarity.comparable_kinds(judge.cache))


def _looked_at(cache: KVCache, kinds: Sequence[str]) -> Tables:
    """How alike layers, heads, tokens and dimensions are, at the same positions everywhere."""
    positions = similarity.shared_positions(cache, config.SIMILARITY_POSITIONS)
    shown = similarity.chosen_layers(cache, SHOWN_LAYERS)
    return {
        "similarity/layer_similarity_matrix": similarity.layer_similarity(
            cache, kinds, positions, config.SUBSPACE_RANK
        ),
        "similarity/head_similarity_matrix": similarity.head_similarity(cache, kinds, positions),
        "similarity/token_similarity_matrix": similarity.token_similarity(cache, kinds, positions),
        "similarity/token_kv_similarity_matrices": similarity.token_kv_similarity(
            cache, kinds, positions[::2].contiguous(), shown
        ),
        "similarity/token_embedding_patterns": similarity.token_embedding_patterns(
            cache, positions
        ),
        "similarity/embedding_dimension_correlations": similarity.dimension_correlations(
            cache, kinds
        ),
        "similarity/embedding_dimension_groups": dimension_groups(
            cache, config.DIM_SIMILARITY, config.LARGEST_DIM_GROUP
        ),
    }


@dataclass(frozen=True)
class Alike:
    """Layers, or heads, that are alike in the first text.

    held: layer -> what has to be the same for two to be merged. passed: whether some pairs are
    above the threshold. method: what merges those, or else the nearest pair; None where no two can
    be compared. counts: groups that are merged, in words. all_mergeable: whether every pair that
    was compared could be merged.
    """

    level: str
    held: dict[int, tuple[int, str]]
    threshold: float
    passed: bool
    method: MergedHeads | None
    counts: str
    all_mergeable: bool

    def sentence(self, savings: pd.DataFrame, looked: Mapping[str, pd.DataFrame]) -> str:
        """savings: see `SimilarityPlan.savings`, by level. looked: over all texts."""
        pairs = _of_one_shape(looked[_table_of(self.level)], self.held)
        several = "texts" in pairs
        where = " in the first text" if several else ""
        nearest = [clusters.nearest(pairs, self.level, kind) for kind in KINDS]
        named = " and, by values, ".join(near or "none comparable" for near in nearest)
        among = self.level.capitalize()
        if self.method is None:
            return f"{among}: no two hold the same tokens in the same shape."
        if not self.all_mergeable:
            among += " that hold the same tokens"
        paid = _paid(savings.loc[self.level])
        if self.passed:
            return (
                f"{among}: {self.counts} pass |cosine| {self.threshold:g}{where}; merging them "
                f"{paid}. "
                f"Nearest by keys: {named}."
            )
        return (
            f"{among}: none pass |cosine| {self.threshold:g}{where}; nearest by keys: {named}. "
            f"Merging even {'the nearest of the first text' if several else 'those'} {paid}."
        )


def _alike(level: str, cache: KVCache, looked: Tables, threshold: float) -> Alike:
    """What passes the threshold; where nothing does, the nearest pair of each kind."""
    table = looked[_table_of(level)]
    held = {layer.index: (layer.n_tokens, layer.kind) for layer in cache.layers}
    pairs = _of_one_shape(table, held)
    groups = {kind: clusters.groups_of(pairs, level, kind, threshold) for kind in KINDS}
    counts = " and ".join(f"{len(groups[kind])} groups of {kind}s" for kind in KINDS)
    passed = any(groups.values())
    if not passed:
        groups = {kind: _nearest_members(pairs, level, kind) for kind in KINDS}
    method = None
    if any(groups.values()):
        n_heads = {layer.index: layer.n_heads for layer in cache.layers}
        key_groups, value_groups = (_heads_of(groups[kind], n_heads) for kind in KINDS)
        method = MergedHeads(key_groups, value_groups)
    return Alike(level, held, threshold, passed, method, counts, len(pairs) == len(table))


class SimilarityPlan(Plan):
    """looked: see `_looked_at`. parts: which layers and heads of the first text are alike. merges:
    level -> what is really merged."""

    def __init__(
        self, looked: Tables, parts: list[Alike], merges: Mapping[str, Compressor]
    ) -> None:
        self.looked = looked
        self.parts = parts
        self.merges = merges
        self.methods = [Uncompressed(), *merges.values()]

    def report(
        self, rows: pd.DataFrame, summary: pd.DataFrame, needles: pd.DataFrame, model: "Model"
    ) -> Report:
        table = self.savings(summary)
        tables = {"similarity/potential_savings": table, "similarity/texts": rows}
        return Report({**self.looked, **tables}, self.lines(table))

    def lines(self, savings: pd.DataFrame) -> list[str]:
        savings = savings.set_index("level")
        lines = [part.sentence(savings, self.looked) for part in self.parts]
        lines.append(self._tokens(savings.loc["tokens"]))
        lines.append(
            "Dimensions: merging those of a head with |cosine over tokens| from "
            f"{config.DIM_SIMILARITY:g} {_paid(savings.loc['dimensions'])}."
        )
        return [*lines, "Savings of different levels overlap and cannot be added up."]

    def savings(self, summary: pd.DataFrame) -> pd.DataFrame:
        """level, saved_bytes, saved_share, and the summary's columns of really merging it."""
        by_setting = summary.set_index(["method", "settings"])
        rows = []
        for level, method in self.merges.items():
            named = {"level": level, "method": method.name, "settings": method.words()}
            scores = by_setting.loc[(method.name, method.words())]
            saved = scores["original_bytes"] - scores["stored_bytes"]
            savings = {"saved_bytes": saved, "saved_share": saved / scores["original_bytes"]}
            rows.append(named | savings | dict(scores))
        return pd.DataFrame(rows)

    def _tokens(self, row: pd.Series) -> str:
        table = self.looked["similarity/token_similarity_matrix"]
        kind = "unrotated_key" if "unrotated_key" in set(table["kind"]) else "key"
        near = [clusters.nearest(table, "tokens", k) or "none comparable" for k in (kind, "value")]
        return (
            f"Tokens: merging those of a layer with a cosine from {config.TOKEN_SIMILARITY:g} "
            f"{_paid(row)}. Nearest over all layers by keys: {near[0]}; by values: {near[1]}."
        )


def _nearest_members(table: pd.DataFrame, level: str, kind: str) -> list[list[Member]]:
    """The two members that are most alike, in either sign, as one group; none where no two can be
    compared."""
    members, matrix = clusters.similarity_matrix(table, level, kind)
    pair = clusters.nearest_pair(abs(matrix))
    return [] if pair is None else [[members[i] for i in pair[:2]]]


def _table_of(level: str) -> str:
    return f"similarity/{level[:-1]}_similarity_matrix"


def _of_one_shape(table: pd.DataFrame, held: Mapping[int, tuple[int, str]]) -> pd.DataFrame:
    """The pairs whose layers hold the same tokens: others cannot be one tensor, however alike the
    positions are that they share."""
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
    """What merging saves and costs: in the model's predictions, or where there is no model in
    errors."""
    saved = (
        f"saves {row['saved_bytes'] / 2**20:.2f} MiB of {row['original_bytes'] / 2**20:.2f} "
        f"({row['saved_share']:.1%})"
    )
    if "kl_mean_nats" in row:
        return f"{saved} and costs KL {spread(row)} nats per token"
    return f"{saved} at a relative error of {errors(row)}"
