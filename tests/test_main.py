"""The command line end to end: on a tiny model, on the real default one, on wrong input."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
import torch

import config
import main
from tests import families

ROOT = Path(__file__).parent.parent
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
PROMPT = "The cache of a model holds the keys and values of every token that it has read. " * 2


@pytest.fixture
def flags(tiny_model, tmp_path):
    """Flags of a run on the tiny model, into an empty folder."""
    where = ["--model", str(tiny_model), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    return [*where, "--prompt", PROMPT, "--sequence_length", "150", "--new_tokens", "5"]


def run(*arguments: str) -> int:
    return main.main([*arguments])


def in_a_process(*arguments: str, **kw) -> subprocess.CompletedProcess:
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **kw)


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode", "compress_all"], "invalid choice: 'compress_all'"),
        (["--analysis_focus", "neurons"], "invalid choice: 'neurons'"),
        (["--new_tokens", "many"], "--new_tokens"),
        (["--new_tokens", "0"], "--new_tokens is 0"),
        (["--sequence_length", "-3"], "--sequence_length is -3"),
        (["--sequence_length", "0"], "--sequence_length is 0"),
        (["--sequence_length", "300", "--prompt", "x" * 300], "beyond the 256 positions"),
        (["--seq", "5"], "unrecognized arguments"),
        (["--text_file", "nowhere.txt"], "both given"),
        (["--model", "./nowhere"], "does not exist"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--mode", "tucker", "--sink_tokens", "-1"], "--sink_tokens is -1"),
        (["--mode", "tucker", "--score_tokens", "0"], "--score_tokens is 0"),
        (["--mode", "tucker", "--score_tokens", "99"], "need a text of 250 tokens"),
        (["--mode", "tucker", "--energy", "2"], "--energy is 2.0"),
        (["--mode", "tucker", "--energy", ".5", "--target_ratio", "2"], "both given"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(flags, tmp_path, capsys, arguments, says):
    assert run(*flags, *arguments) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.out == ""
    assert printed.err.startswith("main.py: ") and printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    out = tmp_path / "out"
    assert not out.exists() or not any(out.iterdir())


def test_nonsense_in_config_is_named_on_start(monkeypatch, capsys):
    monkeypatch.setattr(config, "FIGURE_DPI", "high")
    assert run("--mode", "list_samples") == 2
    assert "config.py: FIGURE_DPI is 'high'" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_work(
    flags, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    assert run(*flags, "--output_dir", str(tmp_path / "file" / "out")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_earlier_results_as_they_were(flags, tmp_path):
    out = tmp_path / "out"
    assert in_a_process(*flags, "--analysis_focus", "layers").returncode == 0
    before = {name: (out / name).read_bytes() for name in files_below(out)}
    small_files = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    full = in_a_process(*flags, preexec_fn=small_files)
    assert full.returncode == 2, full.stderr
    assert "cannot be written (File too large)" in full.stderr
    assert "Traceback" not in full.stderr
    assert {name: (out / name).read_bytes() for name in files_below(out)} == before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_no_traceback_and_no_half_result(flags, tmp_path, sent, code):
    child = subprocess.Popen(
        [sys.executable, "main.py", *flags, "--new_tokens", "100"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    out = tmp_path / "out"
    while not out.exists():  # it has begun
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(sent)
    _, complaint = child.communicate(timeout=60)
    assert child.returncode == code
    assert b"Traceback" not in complaint
    assert not any(out.iterdir())


@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), ("2>&-", 0), (">/dev/full", 2), ("| head -1", 0)]
)
def test_streams_that_take_nothing(redirection, code):
    listing = f"{sys.executable} main.py --mode list_samples --no-use_wikitext {redirection}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = ["bash", "-c", f"set -o pipefail; {listing}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert (done.stderr == "") == (code == 0)


def test_nan_weights_are_named_with_their_layer(tmp_path, capsys):
    broken = families.model("llama_gqa")
    broken.model.layers[0].self_attn.k_proj.weight.data.fill_(float("nan"))
    families.save(broken, tmp_path / "broken")
    where = ["--model", str(tmp_path / "broken"), "--device", "cpu", "--prompt", PROMPT]
    assert run(*where, "--output_dir", str(tmp_path / "out")) == 2
    assert "keys of layer 0 of broken hold NaN or Inf" in capsys.readouterr().err


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
