"""The modes that compress, from flags to files, on a tiny model."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import config
from analysis.measures import sweep
from compression.choices import asked, recommended
from compression.merging import MergedHeads
from compression.similarity_study import Study as SimilarityStudy
from config import RunConfig, UsageError
from data.cache import KVCache
from tests import caches, families
from tests.commands import PROMPT, files_below, run

LENGTHS = ["--context_tokens", "100", "--score_tokens", "12"]


@pytest.fixture
def mode(tiny_model, tmp_path):
    """Runs a mode on the tiny model and gives its manifest and folder."""

    def go(name: str, *flags: str):
        out = tmp_path / "out"
        where = ["--model", str(tiny_model), "--device", "cpu", "--output_dir", str(out)]
        text = ["--no-use_wikitext", "--num_samples", "2", *LENGTHS]
        assert run("--mode", name, *where, *text, *flags) == 0
        return json.loads((out / f"{name}.json").read_text()), out

    return go


def both(*stems: str) -> set[str]:
    return {f"{stem}.{ending}" for stem in stems for ending in ("png", "csv")}


def test_compress(mode, capsys):
    manifest, out = mode("compress", "--levels", "0.5,0.25", "--unrotated_keys")
    tables = {"embeddings/dimension_compression_texts.csv", "compress.json"}
    pictures = both("embeddings/dimension_compression", "similarity/embedding_dimension_groups")
    assert files_below(out) == tables | pictures
    rows = pd.read_csv(out / "embeddings/dimension_compression_texts.csv")
    assert rows.groupby("title").size().tolist() == [1 + 2 * (1 + 2 * 5)] * 2
    assert (rows.loc[rows["method"] == "none", "kl_mean_nats"] == 0).all()
    assert (rows["per_model_bytes"] > 0).equals(rows["method"] == "calibrated_pca")
    assert not set(manifest["calibration_texts"]) & set(manifest["texts"])
    table = pd.read_csv(out / "embeddings/dimension_compression.csv").set_index("settings")
    assert (table["texts"] == 2).all() and table["kl_mean_nats_se"].notna().all()
    calibrated = table[table["method"] == "calibrated_pca"]
    saved = (calibrated["original_bytes"] - calibrated["stored_bytes"]) / 100
    np.testing.assert_allclose(
        calibrated["pays_from_tokens"], calibrated["per_model_bytes"] / saved, atol=0.5
    )
    printed = capsys.readouterr().out
    assert "50% of the dimensions:" in printed and "Merging what goes together" in printed


def test_prune_without_a_word_tries_what_the_heuristics_recommend(mode, capsys):
    manifest, out = mode("prune", "--trial")
    pictures = [f"pruning/{n}" for n in ("pruning_impact", "heuristics_on_trial")]
    assert files_below(out) == both(*pictures, "pruning/cost_of_each_part") | {
        "pruning/texts.csv",
        "prune.json",
    }
    impact = pd.read_csv(out / "pruning/pruning_impact.csv")
    assert set(impact["level"]) == {"layer", "head", "dimension", "threshold", "token"}
    assert (impact.groupby("choice")["role"].apply(lambda r: (r == "chosen").sum()) == 1).all()
    parts = pd.read_csv(out / "pruning/cost_of_each_part.csv")
    assert len(parts) == 2 * 2 * (2 + 2) and parts["kl_mean_nats"].notna().all()
    assert len(manifest["verdict"]) > 5


@pytest.mark.parametrize(
    ("flags", "settings", "stored"),
    [
        (["--prune_layers", "1"], "layers=(1,)", 1 / 2),
        (["--prune_heads", "0"], "heads=((0, 0), (1, 0))", 1 / 2),
        (["--prune_heads", "1:0,0:1"], "heads=((0, 1), (1, 0))", 1 / 2),
        (["--prune_heads", "1", "--prune_layers", "0"], "heads=((0, 1),)", 3 / 4),
        (["--keep_tokens", "0.25", "--token_score", "recent"], "keep=0.25 score=recent", 1 / 4),
    ],
)
def test_prune_as_asked(mode, flags, settings, stored):
    _, out = mode("prune", *flags)
    impact = pd.read_csv(out / "pruning/pruning_impact.csv")
    (row,) = impact[impact["role"] == "chosen"].to_dict("records")
    assert settings in row["settings"]
    mask = 2 * 2 * 100 / 8  # layers, heads, tokens: a bit each
    assert row["stored_bytes"] == pytest.approx(stored * row["original_bytes"] + mask, abs=4)


def test_every_token_score_is_tried_where_none_is_named(mode):
    _, out = mode("prune", "--prune_method", "token")
    impact = pd.read_csv(out / "pruning/pruning_impact.csv")
    assert (impact["role"] == "chosen").sum() == len(config.TOKEN_SCORES)


def test_dimensions_are_pruned_at_the_levels(mode):
    _, out = mode("prune", "--prune_method", "dimension", "--levels", "0.5")
    impact = pd.read_csv(out / "pruning/pruning_impact.csv")
    assert list(impact["role"]) == ["chosen"] + ["control"] * config.CONTROLS


SIMILARITY = [
    "layer_similarity_matrix",
    "head_similarity_matrix",
    "token_similarity_matrix",
    "token_kv_similarity_matrices",
    "token_embedding_patterns",
    "embedding_dimension_correlations",
    "embedding_dimension_groups",
]


def test_similarity_merges_what_it_finds_or_the_nearest_pair(mode, capsys):
    _, out = mode("analyze_similarity")
    tables = {f"similarity/{name}.csv" for name in ("texts", "potential_savings")}
    assert files_below(out) == tables | {"analyze_similarity.json"} | both(
        *(f"similarity/{name}" for name in SIMILARITY)
    )
    savings = pd.read_csv(out / "similarity/potential_savings.csv").set_index("level")
    assert list(savings.index) == ["layers", "heads", "tokens", "dimensions"]
    assert savings["kl_mean_nats"].notna().all()
    saved = savings["original_bytes"] - savings["stored_bytes"]
    np.testing.assert_allclose(savings["saved_bytes"], saved)
    printed = capsys.readouterr().out
    assert "none pass |cosine| 0.8; nearest by keys: layers 0 and 1" in printed


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
    study = SimilarityStudy(RunConfig())
    study.look(SimpleNamespace(cache=with_windows(pairs)))
    counted = f"{len(merged)} groups of keys and {len(merged)} groups of values"
    assert study.counts["layers"] == counted
    assert ("layers" in study.merges) == study.passed["layers"] == bool(merged)
    if merged:
        groups = tuple(tuple((i, head) for i in pair) for pair in merged for head in range(3))
        assert study.merges["layers"] == MergedHeads(groups, groups)
        assert study.merges["heads"] == MergedHeads(groups, groups)
        n = len(groups)
        assert study.counts["heads"] == f"{n} groups of keys and {n} groups of values"


def test_a_given_continuation_is_what_is_scored(mode):
    _, out = mode("prune", "--prune_layers", "1", "--continuation", "And so on, for ever.")
    rows = pd.read_csv(out / "pruning/texts.csv")
    assert (rows["scored_tokens"] == len("And so on, for ever.")).all()
    assert (rows["context_tokens"] == 100).all()


def test_analyze_can_measure_its_recommendations(flags, tmp_path, capsys):
    flags = [*flags, "--measure", "--score_tokens", "5"]
    assert run(*flags) == 0
    out = tmp_path / "out"
    assert "pruning/heuristics_on_trial.png" in files_below(out)
    manifest = json.loads((out / "analyze.json").read_text())
    assert any("measured KL" in line for line in manifest["recommendations_measured"])
    assert "The same, measured:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode", "compress", "--levels", "0.5,zero"], "'0.5,zero' was given"),
        (["--mode", "compress", "--levels", "1.5"], "1.5 is no share"),
        (["--mode", "compress", "--levels", "0.1"], "groups of more than 8"),
        (["--mode", "compress", "--sink_tokens", "90", "--recent_tokens", "90"], "leave none of"),
        (["--mode", "prune", "--prune_layers", "0,7"], "has no cache in layer 7; give some of 0"),
        (["--mode", "prune", "--prune_layers", "0,1"], "names every layer"),
        (["--mode", "prune", "--prune_layers", "a"], "'a' was given: it takes layers such as"),
        (["--mode", "prune", "--prune_heads", "3"], "has KV heads 0 to 1, not 3; keys and values"),
        (["--mode", "prune", "--prune_heads", "9:0"], "has no cache in layer 9"),
        (["--mode", "prune", "--prune_heads", "0,1"], "names every KV head"),
        (["--mode", "prune", "--prune_method", "token", "--prune_layers", "0"], "does not go"),
        (["--mode", "prune", "--prune_method", "layer", "--prune_heads", "0"], "does not go"),
        (
            ["--mode", "prune", "--prune_method", "head", "--prune_layers", "0"],
            "may take --prune",
        ),
        (["--mode", "prune", "--keep_tokens", "0"], "0 is no share"),
        (["--mode", "prune", "--keep_tokens", "0.5", "--prune_layers", "0"], "drop the others"),
        (["--mode", "prune", "--token_score", "loud"], "invalid choice: 'loud'"),
        (["--mode", "prune", "--continuation", ""], "--continuation has no tokens"),
        (["--mode", "prune", "--context_tokens", "0"], "--context_tokens is 0"),
        (["--mode", "prune", "--sequence_length", "90"], "both given"),
        (["--mode", "prune", "--score_tokens", "90"], "need a text of 191 tokens"),
    ],
)
def test_wrong_input(tiny_model, tmp_path, capsys, arguments, says):
    out = tmp_path / "out"
    where = ["--model", str(tiny_model), "--device", "cpu", "--output_dir", str(out)]
    assert run(*where, "--prompt", PROMPT, *LENGTHS, *arguments) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.out == "" and printed.err.count("\n") == 1
    assert not out.exists() or not any(out.iterdir())


def test_a_model_that_hides_nothing_is_refused_for_eviction(tmp_path, capsys):
    families.save(families.model("falcon"), tmp_path / "falcon")
    where = ["--model", str(tmp_path / "falcon"), "--device", "cpu", "--prompt", PROMPT]
    where += ["--output_dir", str(tmp_path / "out"), *LENGTHS]
    assert run("--mode", "prune", "--prune_layers", "0", *where) == 2
    assert "does not let entries of its cache be hidden" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [s for s in caches.SHAPES if s != "half precision"])
def test_recommendations_fit_awkward_caches(shape):
    cache = caches.SHAPES[shape]()
    cache = caches.with_attention(cache, caches.random_attention(cache))
    found = recommended(sweep(cache, 1.0))
    levels = [choice.level for choice in found]
    assert ("layer" in levels) == (cache.n_layers > 1)
    assert ("head" in levels) == (cache.n_heads > 1)
    for choice in found:
        assert choice.method not in choice.controls
        assert len(set(choice.controls)) == len(choice.controls) <= config.CONTROLS


def test_controls_are_other_sets_of_the_same_size():
    cache = caches.alike()
    (choice,) = asked(RunConfig(prune_heads=((None, 1),), prune_layers=(0, 2)), cache)
    assert choice.method.heads == ((0, 1), (2, 1))
    assert all(len(control.heads) == 2 for control in choice.controls)
    with pytest.raises(UsageError, match="several query heads share"):
        asked(RunConfig(prune_heads=((0, 3),)), cache)
