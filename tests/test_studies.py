"""The modes that compress: what each measures and says, by library and by command line."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

import config
from analysis.measures import sweep
from compression.registry import make
from compression.studies import choices
from compression.studies.analyze import Analysis
from compression.studies.base import Study
from compression.studies.compare import CompareStudy
from compression.studies.compress import CompressStudy
from compression.studies.prune import PruneStudy
from compression.studies.run import Outcome
from compression.studies.run import run as carried_out
from compression.studies.similarity import SimilarityStudy
from compression.studies.tucker import TuckerStudy
from config import UsageError
from data.corpora import reference_samples
from data.vocabulary import EVICTIONS
from tests import caches, families
from tests.commands import PROMPT, both, done, run

LENGTHS = ["--context_tokens", "80", "--score_tokens", "8"]
TWO = ["--num_samples", "2", *LENGTHS]
ALWAYS = {"cache_inventory.csv", "report.html"}  # of every mode
LOWER = {"context_tokens": 80, "score_tokens": 8, "num_samples": 1}


@cache
def outcome(study: Study, continuation: str | None = None) -> Outcome:
    """A study on a tiny model and the offline corpus."""
    return carried_out(study, families.loaded("llama_gqa"), reference_samples(), continuation)


@pytest.fixture(scope="module")
def compressed(ended):
    ends = ["--sink_tokens", "2", "--recent_tokens", "8"]
    return ended("compress", "--levels", "0.5,0.25", "--unrotated_keys", *ends, *TWO)


def test_compress(compressed):
    tables = {"embeddings/dimension_compression_texts.csv", *ALWAYS, "compress.json"}
    pictures = both("embeddings/dimension_compression", "similarity/embedding_dimension_groups")
    assert compressed.code == 0 and compressed.files == tables | pictures
    rows = compressed.table("embeddings/dimension_compression_texts")
    assert rows.groupby("title").size().tolist() == [1 + 2 * (1 + 2 * 5)] * 2
    assert (rows.loc[rows["method"] == "none", "kl_mean_nats"] == 0).all()
    assert (rows["per_model_bytes"] > 0).equals(rows["method"] == "calibrated_pca")
    manifest = compressed.manifest("compress")
    assert len(manifest["calibration_texts"]) == config.CALIBRATION_TEXTS
    scored = {f"{text['source']} #{text['index']}: {text['title']}" for text in manifest["texts"]}
    assert len(scored) == 2 and not set(manifest["calibration_texts"]) & scored
    table = compressed.table("embeddings/dimension_compression").set_index("settings")
    assert (table["texts"] == 2).all() and table["kl_mean_nats_se"].notna().all()
    calibrated = table[table["method"] == "calibrated_pca"]
    saved = (calibrated["original_bytes"] - calibrated["stored_bytes"]) / 80
    np.testing.assert_allclose(
        calibrated["pays_from_tokens"], calibrated["per_model_bytes"] / saved, atol=0.5
    )


def test_compress_says_what_its_table_shows(compressed):
    table = compressed.table("embeddings/dimension_compression")
    merged = table["settings"].str.contains("similarity=")
    said = compressed.manifest("compress")["verdict"]
    for line, keep in zip(said, (0.5, 0.25), strict=False):
        rows = table[(table["keep"] == keep) & ~merged]
        assert len(rows) == 2 * 5
        best = rows.loc[rows["kl_mean_nats"].idxmin()]
        assert line.startswith(f"{keep:.0%} of the dimensions: {best['method']}")
        assert f"KL {best['kl_mean_nats']:z.4f} ±" in line
    natural = table[merged].iloc[0]
    assert f"stores {natural['bits_per_value']:.2f} of 16 bits per value" in said[2]
    cheap = table[(table["kl_mean_nats"] <= config.ACCEPTABLE_KL) & (table["ratio"] > 1)]
    assert f"{cheap['ratio'].max():.2f} x" in said[3]
    assert all(f"  - {line}" in compressed.printed for line in said)


@pytest.fixture(scope="module")
def pruned(ended):
    """What the heuristics recommend, with the trial."""
    return ended("prune", "--trial", *TWO)


def test_prune_without_a_word_tries_what_the_heuristics_recommend(pruned):
    pictures = both(*(f"pruning/{n}" for n in ("pruning_impact", "heuristics_on_trial")))
    more = both("pruning/cost_of_each_part") | {"pruning/texts.csv", *ALWAYS, "prune.json"}
    assert pruned.code == 0 and pruned.files == pictures | more
    impact = pruned.table("pruning/pruning_impact")
    assert set(impact["level"]) == {"layer", "head", "dimension", "threshold", "token"}
    assert (impact.groupby("choice")["role"].apply(lambda r: (r == "chosen").sum()) == 1).all()
    parts = pruned.table("pruning/cost_of_each_part")
    assert len(parts) == 2 * 2 * (2 + 2) and parts["kl_mean_nats"].notna().all()


def test_prune_says_of_each_choice_what_it_saves_and_whether_chance_would_do(pruned):
    impact = pruned.table("pruning/pruning_impact")
    said = pruned.manifest("prune")["verdict"]
    for line, (what, rows) in zip(said, impact.groupby("choice", sort=False), strict=False):
        (own,) = rows.loc[rows["role"] == "chosen", ["ratio", "kl_mean_nats"]].to_numpy()
        chance = rows.loc[rows["role"] == "control", "kl_mean_nats"]
        assert line.lower().startswith(f"{what}: saves {1 - 1 / own[0]:.1%} of".lower())
        assert f"KL {own[1]:z.4f} ±" in line
        assert (": cheap" in line) == (own[1] <= config.ACCEPTABLE_KL)
        if own[0] <= 1:
            assert line.endswith("nothing is saved.")
        elif len(chance):
            low, high = f"{chance.min():.4f}", f"{chance.max():.4f}"
            span = low if low == high else f"{low} to {high}"
            assert f"random costs {span} ({len(chance)} draw" in line
            assert "paired over 2 texts" in line
            assert own[1] < chance.min() or "better than chance" not in line
            assert own[1] > chance.max() or "worse than chance" not in line


@pytest.mark.parametrize(
    ("asked", "method", "settings", "stored"),
    [
        ({"prune_layers": (1,)}, "evict", "layers=(1,)", 1 / 2),
        ({"prune_heads": ((None, 0),)}, "evict", "heads=((0, 0), (1, 0))", 1 / 2),
        ({"prune_heads": ((1, 0), (0, 1))}, "evict", "heads=((0, 1), (1, 0))", 1 / 2),
        (
            {"prune_heads": ((None, 1),), "prune_layers": (0,)},
            "evict",
            "heads=((0, 1),)",
            3 / 4,
        ),
        ({"keep_tokens": 0.25, "token_score": "recent"}, "recent", "keep=0.25", 1 / 4),
    ],
)
def test_prune_as_asked(asked, method, settings, stored):
    impact = outcome(PruneStudy(**asked, **LOWER)).report.tables["pruning/pruning_impact"]
    (row,) = impact[impact["role"] == "chosen"].to_dict("records")
    assert row["method"] == method and settings in row["settings"]
    mask = 2 * 2 * 80 / 8  # layers, heads, tokens: a bit each
    header = row["stored_bytes"] - stored * row["original_bytes"] - mask
    assert 0 < header < 2000


def test_every_token_score_is_tried_where_none_is_named():
    found = outcome(PruneStudy(prune_method="token", **LOWER))
    impact = found.report.tables["pruning/pruning_impact"]
    chosen = impact[impact["role"] == "chosen"]
    assert list(chosen["method"]) == list(config.TOKEN_SCORES)
    assert len(found.rows) == len(found.rows.drop_duplicates(["method", "settings"]))


def test_dimensions_are_pruned_at_the_levels():
    study = PruneStudy(prune_method="dimension", levels=(0.5,), **LOWER)
    impact = outcome(study).report.tables["pruning/pruning_impact"]
    assert list(impact["role"]) == ["chosen"] + ["control"] * config.CONTROLS


def test_a_given_continuation_is_what_is_scored():
    rows = outcome(PruneStudy(prune_layers=(1,), **LOWER), "And so on, for ever.").rows
    assert (rows["scored_tokens"] == len("And so on, for ever.")).all()
    assert (rows["context_tokens"] == 80).all()


def test_analyze_can_measure_its_recommendations(flags, tmp_path):
    measured = [*flags, "--analysis_focus", "layers", "--measure", "--score_tokens", "5"]
    found = done(tmp_path / "out", *measured)
    assert found.code == 0 and "pruning/heuristics_on_trial.png" in found.files
    impact = found.table("pruning/pruning_impact")
    lines = found.manifest("analyze")["recommendations_measured"]
    for line, (what, rows) in zip(lines, impact.groupby("choice", sort=False), strict=False):
        kl = rows.loc[rows["role"] == "chosen", "kl_mean_nats"].item()
        assert line.lower().startswith(what.lower()) and f"measured KL {kl:.4f}" in line
    assert all(f"  - {line}" in found.printed for line in lines)


REFUSED = [
    (CompressStudy, {"levels": (0.1,)}, "groups of more than 8"),
    (CompressStudy, {"levels": (1.5,)}, "1.5"),
    (CompressStudy, {"sink_tokens": -1}, "`sink_tokens` is -1"),
    (PruneStudy, {"prune_method": "token", "prune_layers": (0,)}, "does not go"),
    (PruneStudy, {"prune_method": "layer", "prune_heads": ((None, 0),)}, "does not go"),
    (PruneStudy, {"prune_method": "head", "prune_layers": (0,)}, "may take `prune_layers`"),
    (PruneStudy, {"keep_tokens": 0.5, "prune_layers": (0,)}, "drop the others"),
    (TuckerStudy, {"energy": 2.0}, "`energy` is 2"),
    (TuckerStudy, {"energy": 0.5, "target_ratio": 2.0}, "both given"),
    (TuckerStudy, {"sink_tokens": -1}, "`sink_tokens` is -1"),
    (
        CompareStudy,
        {"methods": ("zip",)},
        "zip of `methods` is not known: take some of none, coded",
    ),
    (CompareStudy, {"methods": ("none",)}, "give a method to compare with it"),
    (CompareStudy, {"context_tokens": 68}, "too short to compare: give `context_tokens` 69"),
    (Analysis, {"analysis_focus": "generation", "measure": True}, "recommend nothing to prune"),
    (Analysis, {"analysis_focus": "spectrum", "measure": True}, "energy spectra recommend nothing"),
    (Analysis, {"analysis_focus": "neurons"}, "`analysis_focus` is neurons: it takes one of all"),
    (PruneStudy, {"prune_method": "neuron"}, "`prune_method` is neuron: it takes one of layer"),
    (PruneStudy, {"prune_method": "token", "token_score": "loud"}, "loud"),
    (PruneStudy, {"keep_tokens": 0.0}, "`keep` is 0"),
    (PruneStudy, {"prune_layers": (0,), "prune_heads": ((1, 0),)}, "1:0 names its own layer"),
    (PruneStudy, {"levels": (0.5,)}, "`levels` goes with `prune_method` dimension"),
    (CompareStudy, {"methods": ("coded",), "levels": (0.5,)}, "shares of the tokens that evict"),
    (PruneStudy, {"prune_method": "dimension", "levels": (1.5,)}, "1.5"),
    (CompareStudy, {"levels": (0.0,)}, "`keep` is 0"),
    (SimilarityStudy, {"recent_tokens": -1}, "`recent_tokens` is -1"),
    (SimilarityStudy, {"context_tokens": 0}, "`context_tokens` is 0: it takes 1 or more"),
    (PruneStudy, {"score_tokens": 0}, "`score_tokens` is 0"),
    (TuckerStudy, {"num_samples": -1}, "`num_samples` is -1"),
]


@pytest.mark.parametrize(("study", "settings", "says"), REFUSED)
def test_wrong_settings_are_refused_when_a_study_is_made(study, settings, says):
    with pytest.raises(UsageError) as refusal:
        study(**settings)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mode", "compress", "--levels", "0.1"],
        ["--mode", "prune", "--keep_tokens", "0.5", "--prune_layers", "0"],
        ["--mode", "tucker", "--energy", "2"],
        ["--mode", "compare", "--methods", "zip"],
        ["--mode", "analyze_generation", "--measure"],
    ],
)
def test_they_are_refused_before_any_work_is_done(flags, monkeypatch, tmp_path, capsys, arguments):
    monkeypatch.setattr("data.models.load", lambda **given: pytest.fail("the model was loaded"))
    assert run(*flags, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    out = tmp_path / "out"
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"prune_layers": (0, 7)},
            r"has no cache in layer 7, which `prune_layers` names: give some of 0 to 3",
        ),
        ({"prune_layers": (0, 1, 2, 3)}, "names every layer"),
        (
            {"prune_heads": ((None, 3),)},
            "has KV heads 0 to 2, not 3, which `prune_heads` names: keys and values are stored",
        ),
        ({"prune_heads": ((9, 0),)}, "has no cache in layer 9"),
        ({"prune_heads": tuple((None, i) for i in range(3))}, "names every KV head"),
    ],
)
def test_what_a_cache_does_not_have_cannot_be_pruned(settings, says):
    with pytest.raises(UsageError, match=says):
        PruneStudy(**settings).asked(caches.alike())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compress", "--sink_tokens", "40", "--recent_tokens", "40"], "leave none of the 80"),
        (["prune", "--score_tokens", "90"], "need a text of 171 tokens"),
    ],
)
def test_what_a_text_does_not_allow_is_one_sentence(mode, tmp_path, capsys, arguments, says):
    name, *more = arguments
    assert mode(name, "--prompt", PROMPT, *LENGTHS, *more) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.out == "" and printed.err.count("\n") == 1
    assert not any((tmp_path / "out").iterdir())


def test_a_model_that_hides_nothing_is_refused_for_eviction():
    with pytest.raises(UsageError, match="does not let entries of its cache be hidden"):
        carried_out(
            PruneStudy(prune_layers=(0,), **LOWER), families.loaded("falcon"), reference_samples()
        )


@pytest.mark.parametrize("shape", [s for s in caches.SHAPES if s != "half precision"])
def test_recommendations_fit_awkward_caches(shape):
    cache = caches.watched(caches.SHAPES[shape]())
    found = choices.recommended(sweep(cache, 1.0))
    levels = [choice.level for choice in found]
    assert ("layer" in levels) == (cache.n_layers > 1)
    assert ("head" in levels) == (cache.n_heads > 1)
    for choice in found:
        assert choice.method not in choice.controls
        assert len(set(choice.controls)) == len(choice.controls) <= config.CONTROLS


def test_controls_are_other_sets_of_the_same_size():
    (choice,) = PruneStudy(prune_heads=((None, 1),), prune_layers=(0, 2)).asked(caches.alike())
    assert choice.method.heads == ((0, 1), (2, 1))
    assert len(choice.controls) == config.CONTROLS
    assert all(len(control.heads) == 2 for control in choice.controls)
    assert choice.method not in choice.controls


def test_rows_of_a_report_are_those_of_its_texts():
    found = outcome(PruneStudy(prune_layers=(1,), **LOWER | {"num_samples": 2}))
    assert [sample.index for sample in found.samples] == [0, 1]
    assert [text.name for text in found.read] == [sample.name for sample in found.samples]
    per_text = found.rows.groupby("index").size()
    assert list(per_text) == [len(found.summary)] * 2
    means = found.rows.groupby(["method", "settings"], sort=False)["kl_mean_nats"].mean()
    pd.testing.assert_series_equal(
        found.summary.set_index(["method", "settings"])["kl_mean_nats"], means
    )


@pytest.mark.parametrize("score", EVICTIONS)
def test_an_eviction_is_the_same_method_in_prune_as_in_compare(score):
    choice = choices.tokens(0.5, score, "as asked")
    assert choice.method == make(score, {"keep": 0.5, "sink_tokens": config.SINK_TOKENS})
    for control in choice.controls:  # whichever go, the same tokens are safe
        assert control.recent_tokens == choice.method.recent_tokens
