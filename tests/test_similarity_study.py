"""`analyze_similarity`: what is alike is really merged, and counted as it is."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compression.methods.merging import MergedHeads
from compression.studies.base import Learned
from compression.studies.similarity import SimilarityStudy
from data.cache import KVCache
from tests import caches
from tests.commands import both

TWO = ["--num_samples", "2", "--context_tokens", "80", "--score_tokens", "8"]
SIMILARITY = [
    "layer_similarity_matrix",
    "head_similarity_matrix",
    "token_similarity_matrix",
    "token_kv_similarity_matrices",
    "token_embedding_patterns",
    "embedding_dimension_correlations",
    "embedding_dimension_groups",
]


def test_similarity_merges_what_it_finds_or_the_nearest_pair(ended):
    found = ended("analyze_similarity", *TWO)
    tables = {f"similarity/{name}.csv" for name in ("texts", "potential_savings")}
    tables |= {
        "cache_inventory.csv",
        "report.html",
        *(f"similarity/{name}_texts.csv" for name in SIMILARITY),
    }
    assert found.files == tables | {"analyze_similarity.json"} | both(
        *(f"similarity/{name}" for name in SIMILARITY)
    )
    savings = found.table("similarity/potential_savings").set_index("level")
    assert list(savings.index) == ["layers", "heads", "tokens", "dimensions"]
    assert savings["kl_mean_nats"].notna().all()
    saved = savings["original_bytes"] - savings["stored_bytes"]
    np.testing.assert_allclose(savings["saved_bytes"], saved)
    said = found.manifest("analyze_similarity")["verdict"]
    nearest = "none pass |cosine| 0.8 in the first text; nearest by keys: layers 0 and 1"
    assert nearest in said[0]
    for line, (_, row) in zip(said, savings.iterrows(), strict=False):
        assert f"({row['saved_share']:.1%}) and costs KL {row['kl_mean_nats']:z.4f} ±" in line


def with_windows(pairs: int) -> KVCache:
    """Layers of which each two hold the same keys and values, the second of the first pair in a
    window."""
    layers = [caches.layer(i // 2, 3, 40, (8, 8)) for i in range(2 * pairs)]
    layers = [replace(layer, index=i) for i, layer in enumerate(layers)]
    recent = {name: getattr(layers[1], name)[:, 30:] for name in ("keys", "values")}
    layers[1] = replace(layers[1], **recent, positions=torch.arange(30, 40), kind="sliding")
    return caches.cache(*layers)


@pytest.mark.parametrize(("pairs", "merged"), [(1, []), (2, [(2, 3)]), (3, [(2, 3), (4, 5)])])
def test_groups_are_counted_as_they_are_merged(pairs, merged):
    plan = SimilarityStudy().look(SimpleNamespace(cache=with_windows(pairs)), Learned())
    layers, heads = plan.parts
    counted = f"{len(merged)} groups of keys and {len(merged)} groups of values"
    assert (layers.level, layers.counts) == ("layers", counted)
    assert ("layers" in plan.merges) == layers.passed == bool(merged)
    if merged:
        groups = tuple(tuple((i, head) for i in pair) for pair in merged for head in range(3))
        assert plan.merges["layers"] == MergedHeads(groups, groups)
        assert plan.merges["heads"] == MergedHeads(groups, groups)
        n = len(groups)
        assert heads.counts == f"{n} groups of keys and {n} groups of values"
