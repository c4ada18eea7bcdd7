"""The command line from end to end: on a tiny model, and on the real default one."""

import json
import os
import subprocess
import sys

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

import config
from compression.studies.analyze import ATTENTION_FILE, Analysis
from compression.studies.one_text import NORMS, ReadText
from config import UsageError
from data import extraction
from data.texts import Sample, visible
from tests import families
from tests.commands import PROMPT, ROOT, done, files_below, in_a_process, of_mode, run

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
        "tokens/attended_text",
    ],
    "embeddings": [
        "embeddings/embedding_consistency",
        "embeddings/sparse_dense_embedding_patterns",
    ],
    "cache": ["cache/keys", "cache/values"],
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
    "tokens/attended_text": "position token mean_received even_share seen_by well_seen",
    "cache/keys": "layer head kind rotary position token tokens dim_0",
    "cache/values": "layer head kind position token tokens dim_0",
    "tokens/generation_stages_comparison": "stage kind n_tokens sparsity sparsity_new_tokens",
    "embeddings/embedding_consistency": "dim kind sparsity",
    "embeddings/sparse_dense_embedding_patterns": "kind dim position mean_abs variance",
}


INVENTORY = "cache_inventory.csv"  # of every mode
SAMPLE = Sample(0, "a prompt", "prompt", PROMPT)
SHORT = ["--prompt", PROMPT, "--sequence_length", "60", "--new_tokens", "5"]


@pytest.fixture(scope="module")
def whole(ended):
    """`analyze` with all pictures, which several tests read."""
    return ended("analyze", *SHORT)


def written(stems: list[str]) -> set[str]:
    variance = "embeddings/sparse_dense_embedding_patterns_variance.csv"
    more = {variance} if "embeddings/embedding_consistency" in stems else set()
    if {"layers/layer_statistics", "tokens/attention_sinks"} & set(stems):
        more.add(f"{NORMS}.csv")
    if "tokens/attention_sinks" in stems:
        more.add(ATTENTION_FILE)
    return (
        {f"{stem}.{end}" for stem in stems for end in ("png", "csv")}
        | {"analyze.json", "report.html", INVENTORY}
        | more
    )


def test_analyze_writes_every_picture_with_its_table(whole):
    assert whole.code == 0 and whole.said == ""
    assert whole.files == written(PICTURES["all"])
    for stem in PICTURES["all"]:
        table = whole.table(stem)
        assert set(COLUMNS[stem].split()) <= set(table.columns)
        assert (table["text_source"] == "prompt").all() and (table["model"] == "tiny-llama").all()
        assert (table["text_index"] == "#0").all() and table["text_title"].nunique() == 1
        assert matplotlib.image.imread(whole.out / f"{stem}.png").std() > 0.02
    manifest = whole.manifest("analyze")
    listed = [f"  - {whole.out / file}" for file in [*manifest["files"], "analyze.json"]]
    told = [f"  - {x}" for x in manifest["findings"] + manifest["recommendations_not_measured"]]
    lines = whole.printed.splitlines()
    assert [line for line in lines if line.startswith("  - ")] == told + listed
    assert lines[lines.index("Generated after the text:") + 1] == f"  {manifest['generated']}"


def test_who_looks_at_which_token_is_written_as_it_was_measured(whole):
    loaded = families.loaded("llama_gqa")
    attention = extraction.prefill(loaded, loaded.ids_of(PROMPT, 60), probe=True).attention
    with safe_open(whole.out / ATTENTION_FILE, "pt") as file:
        assert json.loads(file.metadata()["layers"]) == list(attention.layers)
        assert set(file.keys()) == {"received", "watcher", "watcher_weight"}
        for name, tensor in attention.tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
    received = attention.received.float().nanmean((0, 1))
    told = whole.table("tokens/token_position_importance")["attention_received"]
    np.testing.assert_allclose(told, received, rtol=2e-3)


def test_a_focus_writes_its_own_pictures(flags, tmp_path):
    assert run(*flags, "--analysis_focus", "heads") == 0
    assert files_below(tmp_path / "out") == written(PICTURES["heads"])


def test_every_focus_tells_the_same_numbers_as_all():
    loaded = families.loaded("llama_gqa")
    both = {"context_tokens": 60, "new_tokens": 5}
    together = Analysis(**both).run(loaded, [SAMPLE])
    for focus in ("layers", "heads", "tokens", "embeddings", "cache"):
        alone = Analysis(analysis_focus=focus, **both).run(loaded, [SAMPLE])
        assert {f"{stem}.csv" for stem in alone.tables} == {
            file for file in written(PICTURES[focus]) if file.endswith(".csv")
        }
        assert set(alone.findings) <= set(together.findings)
        assert (alone.texts, alone.measured) == ((SAMPLE.read(60),), [])
        for stem, table in alone.tables.items():
            if stem == NORMS and focus == "layers":  # which generates nothing
                every = together.tables[stem]
                prefill = every[every["stage"] == "prefill"].reset_index(drop=True)
                pd.testing.assert_frame_equal(table, prefill[list(table)])
                continue
            pd.testing.assert_frame_equal(table, together.tables[stem])


def test_the_cache_itself_is_shown_of_the_layer_and_head_that_are_asked_for(flags, tmp_path):
    asked = ["--analysis_focus", "cache", "--layer", "0", "--head", "1"]
    assert run(*flags, *asked) == 0
    assert files_below(tmp_path / "out") == written(PICTURES["cache"])
    loaded = families.loaded("llama_gqa")
    start = extraction.prefill(loaded, extraction.tokenise(loaded, SAMPLE, 60))
    values = pd.read_csv(tmp_path / "out/cache/values.csv").filter(regex=r"^dim_\d+$")
    np.testing.assert_allclose(values, start.cache.layers[0].values[1], rtol=1e-5)


@pytest.mark.parametrize("asked", [["--layer", "2"], ["--layer", "1", "--head", "2"]])
def test_a_layer_or_head_that_is_not_there_is_refused_in_one_sentence_and_before_the_text_is_read(
    flags, tmp_path, capsys, monkeypatch, asked
):
    monkeypatch.setattr(ReadText, "run", lambda *_: pytest.fail("the text was read"))
    assert run(*flags, "--analysis_focus", "cache", *asked) == 2
    said = capsys.readouterr().err
    assert said.strip().splitlines()[-1].endswith("it takes 0 to 1.") and asked[-2] in said
    assert not files_below(tmp_path / "out")


def test_the_cache_itself_is_of_one_text():
    with pytest.raises(UsageError, match="it shows the entries of one"):
        Analysis(analysis_focus="cache", num_samples=2)


def test_the_manifest_says_what_made_the_files(whole):
    manifest = whole.manifest("analyze")
    assert manifest["model"]["name"] == "tiny-llama"
    assert manifest["model"]["dtype"] == "float32" and manifest["model"]["device"] == "cpu"
    assert manifest["text"]["source"] == "prompt" and manifest["text"]["tokens_read"] == 60
    assert manifest["text"]["sha256"] == SAMPLE.sha256
    assert manifest["settings"]["new_tokens"] == 5
    assert manifest["settings"]["SPARSITY_THRESHOLD_PERCENTAGE"] == 1.0
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["thresholds"] == {
        kind: rows["threshold"].iloc[0]
        for kind, rows in whole.table("weight_magnitude_distribution").groupby("kind")
    }
    assert all(manifest["timings_s"][phase] > 0 for phase in ("load", "prefill", "drawing"))
    assert manifest["peak_memory_bytes"] > 2**20
    assert {*manifest["files"], "analyze.json"} == whole.files


def test_analyze_generation_runs_on_the_whole_text(ended):
    run = ended("analyze_generation", "--prompt", PROMPT, "--new_tokens", "5")
    stages = run.table("tokens/generation_stages_comparison")
    n = len(PROMPT)  # one token per byte
    assert list(stages["n_tokens"]) == [n, n + 1, n + 3, n + 5] * 2
    assert run.files == {
        "tokens/generation_stages_comparison.png",
        "tokens/generation_stages_comparison.csv",
        "analyze_generation.json",
        "report.html",
        INVENTORY,
    }


TUCKER = ["tucker_components", "layer_sensitivity", "rank_sensitivity"]
RANKS = ["--token_rank", "8", "--embedding_rank", "8", "--sink_tokens", "2"]
SCORED = ["--score_tokens", "10", "--recent_tokens", "4", "--context_tokens", "100"]


@pytest.fixture(scope="module")
def tucker(ended):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "TOKEN_RANKS", (2, 8))
        patch.setattr(config, "EMBEDDING_RANKS", (4, 8))
        return ended("tucker", "--prompt", PROMPT, *RANKS, *SCORED)


def test_tucker_measures_and_draws(tucker):
    assert tucker.code == 0
    tables = {f"tucker/{name}.csv" for name in [*TUCKER, "texts", "summary"]}
    tables |= {INVENTORY, "report.html"}
    assert tucker.files == tables | {f"tucker/{name}.png" for name in TUCKER} | {"tucker.json"}
    row = tucker.table("tucker/texts").set_index("method").loc["tucker"]
    # 2 layers, keys and values, 2 heads: 6 plain tokens of 16 dims, core 8 x 8, factors
    tensors = 2 * 2 * 2 * (2 * 6 * 16 + 2 * 8 * 8 + 94 * 8 + 16 * 8)
    assert tensors < row["stored_bytes"] < tensors + 2000  # the header
    assert row["original_bytes"] == 2 * 2 * 2 * 2 * 100 * 16
    assert row["ratio"] == pytest.approx(row["original_bytes"] / row["stored_bytes"])
    assert (row["context_tokens"], row["scored_tokens"]) == (100, 10)
    assert row["kl_mean_nats"] > 0
    manifest = tucker.manifest("tucker")
    assert manifest["settings"]["token_rank"] == 8 and manifest["text"]["source"] == "prompt"
    untouched = manifest["summary"][0]
    assert untouched["method"] == "none" and untouched["kl_mean_nats"] == 0
    layers = tucker.table("tucker/layer_sensitivity")
    assert layers["kl_mean_nats"].notna().all()
    dearest = layers.loc[layers["kl_mean_nats"].idxmax()]
    assert set(tucker.table("tucker/tucker_components")["layer"]) == {dearest["layer"]}


def test_what_tucker_prints_is_in_its_tables(tucker):
    row = tucker.table("tucker/texts").set_index("method").loc["tucker"]
    layers = tucker.table("tucker/layer_sensitivity").nlargest(3, "kl_mean_nats")
    said = tucker.manifest("tucker")["verdict"]
    assert f"{row['bits_per_value']:.2f} bits per value, {row['ratio']:.2f} x smaller" in said[0]
    assert f"relative error {row['key_error']:.3f} of keys, {row['value_error']:.3f} of" in said[1]
    assert f"over 1 text(s): KL {row['kl_mean_nats']:.4f} nats" in said[2]
    named = [f"layer {r.layer} {r.kind}s ({r.kl_mean_nats:.4f})" for r in layers.itertuples()]
    assert said[3].endswith(f"KL: {', '.join(named)}.")
    assert all(f"  - {line}" in tucker.printed for line in said)


@pytest.mark.parametrize("start", [["compression/run_tucker_analysis.py"],
                                   ["-m", "compression.run_tucker_analysis"]])  # fmt: skip
def test_the_documented_tucker_commands(tiny_model, tmp_path, start):
    where = ["--model", str(tiny_model), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, *start, *where, "--prompt", PROMPT, *RANKS, *SCORED]
    refused = subprocess.run([*command, "--energy", "x"], cwd=ROOT, capture_output=True)
    assert refused.returncode == 2 and b"--energy is x: it takes a share" in refused.stderr
    if "-m" not in start:  # what it does then is the same
        short = ["--context_tokens", "40", "--score_tokens", "5", "--no_sensitivity"]
        ended = subprocess.run([*command, *short], cwd=ROOT, capture_output=True)
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / "out/tucker/tucker_components.png").exists()
        layers = pd.read_csv(tmp_path / "out/tucker/layer_sensitivity.csv")
        assert layers["kl_mean_nats"].isna().all() and layers["relative_error"].notna().all()
        assert b"Dearest" not in ended.stdout


def test_quiet_says_nothing(flags, capsys):
    assert run(*flags, "--quiet", "--analysis_focus", "layers") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["mistral", "deepseek_v3", "qwen3_next", "mimo"])
def test_awkward_caches_have_every_table(name):
    found = Analysis(context_tokens=60, new_tokens=3).run(families.loaded(name), [SAMPLE])
    assert set(PICTURES["all"]) <= set(found.tables)
    assert all(len(found.tables[stem]) for stem in PICTURES["all"])


def test_every_picture_of_an_awkward_cache(folder_of, tmp_path):
    out = tmp_path / "out"
    found = done(out, *of_mode("analyze", folder_of("gemma4"), out, *SHORT))
    assert found.code == 0
    assert {f"{stem}.png" for stem in PICTURES["all"]} <= found.files


def test_without_the_probe_there_is_no_sink_picture_and_the_run_says_so(folder_of, tmp_path):
    out, focus = tmp_path / "out", ["--analysis_focus", "tokens"]
    found = done(out, *of_mode("analyze", folder_of("falcon"), out, *focus, *SHORT))
    assert found.code == 0 and "attention columns are empty" in found.said
    assert "tokens/attention_sinks.png" not in found.files
    table = found.table("tokens/token_position_importance")
    assert ATTENTION_FILE not in found.files
    assert table["attention_received"].isna().all() and table["importance"].notna().all()


def test_the_documented_wikitext_command_falls_back_loudly_and_names_the_source(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    out, focus = tmp_path / "out", ["--analysis_focus", "layers"]
    text = ["--use_wikitext", "--wikitext_index", "2", "--sequence_length", "100"]
    found = done(out, *of_mode("analyze", tiny_model, out, *focus, *text))
    assert found.code == 0 and found.said.count("using the offline corpus") == 1
    manifest = found.manifest("analyze")
    assert manifest["text"]["source"] == "Python language reference (offline)"
    assert manifest["text"]["index"] == 2
    table = found.table("layers/layer_statistics")
    assert set(table["text_source"]) == {"Python language reference (offline)"}


def test_notices_name_flags(flags, capsys):
    short = ["--prompt", "too short", "--analysis_focus", "layers"]
    assert run(*flags, *short) == 0
    said = capsys.readouterr().err
    assert said == (
        "note: The text has 9 tokens, fewer than --sequence_length 60: using all of them.\n"
    )


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
    strange = 'a$b$\x1b[31m"quoted",\n\u4e2d ' * 2
    flags[flags.index("--prompt") + 1] = strange
    assert run(*flags, "--analysis_focus", "tokens") == 0
    table = pd.read_csv(tmp_path / "out/tokens/token_position_importance.csv")
    decode = families.tokenizer().decode
    assert list(table["token"]) == [visible(decode([i])) for i in table["token_id"]]
    assert len(table) == len(strange.encode()) and "\\x1b" in set(table["token"])


def test_the_real_default_model_from_end_to_end(tmp_path):
    """The documented command as it stands: real weights, real text, every picture."""
    environment = {k: v for k, v in os.environ.items() if k != "KV_CACHE_HOME"}
    ended = in_a_process("--mode", "analyze", "--output_dir", str(tmp_path), env=environment)
    assert ended.returncode == 0, ended.stderr
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
