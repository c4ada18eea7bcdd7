"""Which tables each focus of `--mode analyze` makes, by the name of the picture they feed.

To add one: a function from Subject to tables, and a line in FOCUSES.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

import config
from analysis import embeddings, heads, layers, magnitudes, tokens
from analysis.cached_entries import USUAL, Shown, cached_entries
from analysis.measures import Sweep

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Subject:
    """What is looked at: a cache's sums, and its tokens as text on one line. shown: the layer and
    head whose entries are shown, None for none."""

    sweep: Sweep
    tokens: Sequence[str]
    shown: Shown | None = USUAL


def _layers(subject: Subject) -> Tables:
    statistics = layers.layer_statistics(subject.sweep)
    return {
        "layers/layer_statistics": statistics,
        "layers/layer_pruning_potential": layers.layer_pruning_potential(statistics),
        "weight_magnitude_distribution": magnitudes.magnitude_distribution(subject.sweep),
    }


def _heads(subject: Subject) -> Tables:
    by_head = heads.head_sparsity(subject.sweep)
    return {
        "heads/head_sparsity": by_head,
        "heads/head_pruning_potential": heads.head_pruning_potential(by_head),
        "heads/pruning_heatmap_by_layer_head": heads.key_sparsity_by_layer_and_head(by_head),
    }


def _tokens(subject: Subject) -> Tables:
    return {
        "tokens/token_position_importance": tokens.token_importance(
            subject.sweep,
            subject.tokens,
            config.IMPORTANCE_WEIGHTS,
            config.MIN_QUERIES,
        ),
        "tokens/attention_sinks": tokens.attention_sinks(
            subject.sweep, subject.tokens, config.MIN_QUERIES
        ),
        "tokens/attended_text": tokens.attended_text(
            subject.sweep, subject.tokens, config.MIN_QUERIES
        ),
    }


def _embeddings(subject: Subject) -> Tables:
    variance = embeddings.position_variance(subject.sweep)
    patterns = embeddings.position_patterns(subject.sweep, variance, config.PATTERN_DIMS)
    return {
        "embeddings/embedding_consistency": embeddings.embedding_consistency(subject.sweep),
        "embeddings/sparse_dense_embedding_patterns": patterns,
        "embeddings/sparse_dense_embedding_patterns_variance": variance,
    }


def _cache(subject: Subject) -> Tables:
    if subject.shown is None:
        return {}
    return cached_entries(subject.sweep.cache, subject.tokens, subject.shown)


FOCUSES = {
    "layers": _layers,
    "heads": _heads,
    "tokens": _tokens,
    "embeddings": _embeddings,
    "cache": _cache,
}


def tables(subject: Subject, focus: str) -> Tables:
    """The tables of one focus, or of `all`."""
    chosen = FOCUSES.values() if focus == "all" else [FOCUSES[focus]]
    return {stem: table for make in chosen for stem, table in make(subject).items()}
