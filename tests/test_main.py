"""The command line from end to end: on a tiny model, and on the real default one."""

import json
import os
import subprocess
import sys

import matplotlib.image
import pandas as pd
import pytest
import torch

import config
from tests import families
from tests.commands import PROMPT, ROOT, files_below, in_a_process, run

PICTURES = {
    "layers": ["layers/layer_statistics", "layers/layer_pruning_potential"],
    "heads": [
        "heads/head_sparsity",
        "heads/head_pruning_potential",
        "heads/pruning_heatmap_by_layer_head",
    ],
    "tokens": [
        "tokens/token_position_importance",
        "tokens/attention_sinks",
        "tokens/generation_stages_comparison",
    ],
    "embeddings": [
        "embeddings/embedding_consistency",
        "embeddings/sparse_dense_embedding_patterns",
    ],
}
PICTURES["layers"].append("weight_magnitude_distribution")
PICTURES["all"] = [stem for stems in PICTURES.values() for stem in stems]
COLUMNS = {
    "layers/layer_statistics": "layer kind sparsity std mean_abs kv_correlation hoyer_sparsity "
    "kurtosis",
    "layers/layer_pruning_potential": "layer kind sparsity mean_sparsity",
    "heads/head_sparsity": "layer head kind sparsity mean_abs",
    "heads/head_pruning_potential": "head kind sparsity_mean sparsity_std",
    "heads/pruning_heatmap_by_layer_head": "layer head sparsity",
    "weight_magnitude_distribution": "kind bin_left bin_right count threshold",
    "tokens/token_position_importance": "position token_id token key_norm value_norm "
    "attention_received attention_energy importance",
    "tokens/attention_sinks": "layer position token attention_received mean_received",
    "tokens/generation_stages_comparison": "stage kind n_tokens sparsity sparsity_new_tokens",
    "embeddings/embedding_consistency": "dim kind sparsity",
    "embeddings/sparse_dense_embedding_patterns": "kind dim position mean_abs variance",
}


@pytest.mark.parametrize("focus", PICTURES)
def test_analyze_writes_the_pictures_of_its_focus_with_their_tables(flags, tmp_path, focus, capsys):
    assert run(*flags, "--mode", "analyze", "--analysis_focus", focus) == 0
    out = tmp_path / "out"
    expected = {f"{stem}.{ending}" for stem in PICTURES[focus] for ending in ("png", "csv")}
    expected.add("analyze.json")
    if focus in ("all", "embeddings"):
        expected.add("embeddings/sparse_dense_embedding_patterns_variance.csv")
    assert files_below(out) == expected
    for stem in PICTURES[focus]:
        table = pd.read_csv(out / f"{stem}.csv")
        assert set(COLUMNS[stem].split()) <= set(table.columns)
        assert (table["text_source"] == "prompt").all() and (table["model"] == "tiny-llama").all()
        assert matplotlib.image.imread(out / f"{stem}.png").std() > 0.02
    printed = capsys.readouterr()
    for heading in ("Key findings", "heuristics, not yet measured", "Files:", "Time: start"):
        assert heading in printed.out
    assert all(name in printed.out for name in expected)
    assert printed.err == ""


def test_every_focus_tells_the_same_numbers_as_all(flags, tmp_path):
    assert run(*flags) == 0
    together = {s: (tmp_path / f"out/{s}.csv").read_text() for s in PICTURES["all"]}
    for focus in ("layers", "heads", "tokens", "embeddings"):
        assert run(*flags, "--analysis_focus", focus) == 0
        for stem in PICTURES[focus]:
            assert (tmp_path / f"out/{stem}.csv").read_text() == together[stem]


def test_the_manifest_says_what_made_the_files(flags, tmp_path):
    assert run(*flags, "--sequence_length", "64") == 0
    manifest = json.loads((tmp_path / "out/analyze.json").read_text())
    assert manifest["model"]["name"] == "tiny-llama"
    assert manifest["model"]["dtype"] == "float32" and manifest["model"]["device"] == "cpu"
    assert manifest["text"]["source"] == "prompt" and manifest["text"]["tokens_read"] == 64
    assert len(manifest["text"]["sha256"]) == 64
    assert manifest["settings"]["new_tokens"] == 5
    assert manifest["settings"]["SPARSITY_THRESHOLD_PERCENTAGE"] == 1.0
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["thresholds"]) == {"key", "value"}
    assert all(manifest["timings_s"][phase] > 0 for phase in ("load", "prefill", "drawing"))
    assert manifest["peak_memory_bytes"] > 2**20
    assert {*manifest["files"], "analyze.json"} == files_below(tmp_path / "out")
    assert manifest["findings"] and manifest["recommendations_not_measured"]


def test_analyze_generation_runs_on_the_whole_text(flags, tmp_path):
    flags = [flag for flag in flags if flag not in ("--sequence_length", "150")]
    assert run(*flags, "--mode", "analyze_generation") == 0
    stages = pd.read_csv(tmp_path / "out/tokens/generation_stages_comparison.csv")
    n = len(PROMPT)  # one token per byte
    assert list(stages["n_tokens"]) == [n, n + 1, n + 3, n + 5] * 2
    assert files_below(tmp_path / "out") == {
        "tokens/generation_stages_comparison.png",
        "tokens/generation_stages_comparison.csv",
        "analyze_generation.json",
    }


TUCKER = ["tucker_components", "layer_sensitivity", "rank_sensitivity"]


@pytest.fixture
def tucker_flags(flags, monkeypatch):
    monkeypatch.setattr(config, "TOKEN_RANKS", (2, 8))
    monkeypatch.setattr(config, "EMBEDDING_RANKS", (4, 8))
    ranks = ["--token_rank", "8", "--embedding_rank", "8", "--sink_tokens", "2"]
    scored = ["--score_tokens", "10", "--recent_tokens", "4", "--sequence_length", "100"]
    return [*flags, *ranks, *scored, "--mode", "tucker"]


def test_tucker_measures_and_draws(tucker_flags, tmp_path, capsys):
    assert run(*tucker_flags) == 0
    out = tmp_path / "out"
    tables = {f"tucker/{name}.csv" for name in [*TUCKER, "texts", "summary"]}
    assert files_below(out) == tables | {f"tucker/{name}.png" for name in TUCKER} | {"tucker.json"}
    row = pd.read_csv(out / "tucker/texts.csv").set_index("method").loc["tucker"]
    # 2 layers, keys and values, 2 heads: 6 plain tokens of 16 dims, core 8 x 8, factors
    assert row["stored_bytes"] == 2 * 2 * 2 * (2 * 6 * 16 + 2 * 8 * 8 + 94 * 8 + 16 * 8)
    assert row["original_bytes"] == 2 * 2 * 2 * 2 * 100 * 16
    assert row["ratio"] == pytest.approx(row["original_bytes"] / row["stored_bytes"])
    assert (row["context_tokens"], row["scored_tokens"]) == (100, 10)
    assert row["kl_mean_nats"] > 0
    manifest = json.loads((out / "tucker.json").read_text())
    assert manifest["settings"]["token_rank"] == 8 and manifest["text"]["source"] == "prompt"
    assert (
        manifest["summary"][0]["method"] == "none" and manifest["summary"][0]["kl_mean_nats"] == 0
    )
    printed = capsys.readouterr().out
    for words in ("bits per value", "Restored: relative error", "Measured over 1 text", "Dearest"):
        assert words in printed
    layers = pd.read_csv(out / "tucker/layer_sensitivity.csv")
    assert layers["kl_mean_nats"].notna().all()


def test_sensitivity_can_be_skipped(tucker_flags, tmp_path, capsys):
    assert run(*tucker_flags, "--no_sensitivity", "--target_ratio", "2") == 0
    layers = pd.read_csv(tmp_path / "out/tucker/layer_sensitivity.csv")
    assert layers["kl_mean_nats"].isna().all() and layers["relative_error"].notna().all()
    assert "Dearest" not in capsys.readouterr().out


@pytest.mark.parametrize("start", [["compression/run_tucker_analysis.py"],
                                   ["-m", "compression.run_tucker_analysis"]])  # fmt: skip
def test_the_documented_tucker_command(tucker_flags, tmp_path, start):
    arguments = [flag for flag in tucker_flags if flag not in ("--mode", "tucker")]
    command = [sys.executable, *start, *arguments, "--no_sensitivity"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/tucker/tucker_components.png").exists()
    refused = subprocess.run([*command, "--token_rank", "9999"], cwd=ROOT, capture_output=True)
    assert refused.returncode == 2 and b"--token_rank is 9999" in refused.stderr


def test_quiet_says_nothing(flags, capsys):
    assert run(*flags, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["mistral", "deepseek_v3", "qwen3_next", "gemma4", "mimo"])
def test_every_picture_of_awkward_caches(name, tmp_path, capsys):
    families.save(families.model(name), tmp_path / name)
    where = ["--model", str(tmp_path / name), "--device", "cpu"]
    assert run(*where, "--prompt", PROMPT, "--output_dir", str(tmp_path / "out")) == 0
    assert {f"{stem}.png" for stem in PICTURES["all"]} <= files_below(tmp_path / "out")


def test_without_the_probe_there_is_no_sink_picture_and_the_run_says_so(tmp_path, capsys):
    families.save(families.model("falcon"), tmp_path / "falcon")
    where = ["--model", str(tmp_path / "falcon"), "--device", "cpu"]
    assert run(*where, "--prompt", PROMPT, "--output_dir", str(tmp_path / "out")) == 0
    assert "attention columns are empty" in capsys.readouterr().err
    assert not (tmp_path / "out/tokens/attention_sinks.png").exists()
    table = pd.read_csv(tmp_path / "out/tokens/token_position_importance.csv")
    assert table["attention_received"].isna().all() and table["importance"].notna().all()


def test_the_documented_wikitext_command_falls_back_loudly_and_names_the_source(
    tiny_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    where = ["--model", str(tiny_model), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    text = ["--use_wikitext", "--wikitext_index", "2", "--sequence_length", "100"]
    assert run(*where, *text, "--analysis_focus", "layers") == 0
    assert capsys.readouterr().err.count("using the offline corpus") == 1
    manifest = json.loads((tmp_path / "out/analyze.json").read_text())
    assert manifest["text"]["source"] == "Python language reference (offline)"
    assert manifest["text"]["index"] == 2
    table = pd.read_csv(tmp_path / "out/layers/layer_statistics.csv")
    assert set(table["text_source"]) == {"Python language reference (offline)"}


def test_samples_are_listed_with_tokens_where_the_tokenizer_is_at_hand(tiny_model, capsys):
    listing = ["--mode", "list_samples", "--no-use_wikitext", "--model"]
    assert run(*listing, str(tiny_model)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Python language reference (offline): ")
    index, characters, tokens = lines[2].split()[:3]
    assert (index, int(tokens) >= int(characters) > 5000) == ("0", True)
    assert run(*listing, "owner/elsewhere") == 0
    assert "no token counts" in capsys.readouterr().out


def test_a_token_of_dollars_and_escapes_spoils_neither_tables_nor_pictures(flags, tmp_path):
    strange = 'a$b$\x1b[31m"quoted",\n\u4e2d ' * 3
    flags[flags.index("--prompt") + 1] = strange
    assert run(*flags) == 0
    table = pd.read_csv(tmp_path / "out/tokens/token_position_importance.csv")
    assert len(table) == len(strange.encode()) < 150
    assert "\\x1b" in set(table["token"])


def test_the_real_default_model_from_end_to_end(tmp_path):
    """The documented command as it stands: real weights, real text, every picture."""
    environment = {k: v for k, v in os.environ.items() if k != "KV_CACHE_HOME"}
    done = in_a_process("--mode", "analyze", "--output_dir", str(tmp_path), env=environment)
    assert done.returncode == 0, done.stderr
    assert {f"{stem}.png" for stem in PICTURES["all"]} <= files_below(tmp_path)
    manifest = json.loads((tmp_path / "analyze.json").read_text())
    assert manifest["model"]["name"] == "SmolLM2-135M-Instruct (Q4_1, dequantised)"
    assert manifest["text"]["tokens_read"] == 1024
    statistics = pd.read_csv(tmp_path / "layers/layer_statistics.csv")
    assert list(statistics["layer"]) == [*range(30), *range(30)]
    heads = pd.read_csv(tmp_path / "heads/head_sparsity.csv")
    assert sorted(heads["head"].unique()) == [0, 1, 2]
    # What is known of this model: the first token is a sink, layer 0's values are tiny.
    tokens = pd.read_csv(tmp_path / "tokens/token_position_importance.csv")
    assert tokens.loc[tokens["well_seen"], "attention_received"].idxmax() == 0
    values = statistics[statistics["kind"] == "value"].set_index("layer")
    assert values["mean_abs"].idxmin() == 0
