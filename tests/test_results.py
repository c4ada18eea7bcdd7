"""--json: one object on stdout and all else on stderr, whatever comes of the command."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from tests.commands import PROMPT, ROOT, Done, done
from visualization.terminal.streams import escaped

SHORT = ["--prompt", PROMPT, "--sequence_length", "60"]
SCORED = ["--context_tokens", "60", "--score_tokens", "5", "--num_samples", "1"]


def object_of(run: Done) -> dict:
    assert run.printed.isascii() and run.printed.count("\n") == 1
    return json.loads(run.printed)


@pytest.fixture(scope="module")
def of_heads(ended):
    return ended("analyze", *SHORT, "--analysis_focus", "heads", "--json")


def test_a_run_with_pictures_prints_what_its_manifest_says(of_heads):
    found, manifest = object_of(of_heads), of_heads.manifest("analyze")
    assert of_heads.code == 0
    for name in ("mode", "model", "text", "texts", "tokens_read", "settings", "timings_s"):
        assert found[name] == manifest[name]
    titles = list(found["findings"])
    assert found["findings"][titles[0]] == manifest["findings"]
    assert found["findings"][titles[1]] == manifest["recommendations_not_measured"]
    files = [str(of_heads.out / file) for file in [*manifest["files"], "analyze.json"]]
    assert found["files"] == files
    table = of_heads.table("heads/head_pruning_potential")
    keys = table[table["kind"] == "key"].set_index("head")["sparsity_mean"]
    rows = found["table"]["rows"]
    assert {row["head"]: row["sparsity_key"] for row in rows} == pytest.approx(dict(keys))
    assert "error" not in found


def test_what_a_person_reads_is_the_same_and_on_stderr(of_heads):
    found = object_of(of_heads)
    said = [line for lines in found["findings"].values() for line in lines]
    shown = [line[4:] for line in of_heads.said.splitlines() if line.startswith("  - ")]
    assert shown == said + found["files"]
    assert "KV heads, over all layers:" in of_heads.said and "Time: " in of_heads.said


@pytest.mark.parametrize(
    ("mode", "flags", "table"),
    [
        ("tucker", ["--token_rank", "4", "--embedding_rank", "4", "--recent_tokens", "4",
                    "--no_sensitivity"], "tucker/summary"),
        ("compress", ["--levels", "0.5", "--recent_tokens", "4"],
         "embeddings/dimension_compression"),
        ("prune", ["--prune_method", "dimension", "--levels", "0.5"], "pruning/pruning_impact"),
        ("analyze_similarity", ["--recent_tokens", "4"], "similarity/potential_savings"),
    ],
)  # fmt: skip
def test_each_study_prints_its_main_table_and_nothing_else_where_quiet(ended, mode, flags, table):
    run = ended(mode, *SCORED, *flags, "--json", "--quiet")
    found = object_of(run)
    assert (run.code, run.said) == (0, "")
    assert found["table"]["made_from"] == f"{table}.csv"
    measured = {round(row["kl_mean_nats"], 9) for row in found["table"]["rows"]}
    assert measured and measured <= {round(x, 9) for x in run.table(table)["kl_mean_nats"]}
    assert found["findings"][next(iter(found["findings"]))] == run.manifest(mode)["verdict"]


def test_what_is_refused_after_the_work_has_its_results_beside_the_reason(ended):
    budget = ["--quick", "--methods", "int8", "--max_bits", "0.1"]
    run = ended("compare", *SCORED, *budget, "--context_tokens", "80", "--json")
    found = object_of(run)
    assert run.code == 2 and found["error"].startswith("No setting measured fits --max_bits 0.1")
    assert f"main.py: {found['error']}\n" in run.said
    assert [row["label"] for row in found["table"]["rows"]] == ["int8", "none"]
    assert all(file.startswith(str(run.out)) for file in found["files"])


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        (["--sequence_length", "0"], 2, "--sequence_length is 0: it takes 1 or more tokens"),
        (["--mode", "nothing"], 2, "--mode is 'nothing': it takes one of"),
        (["--mode", "store"], 2, "A prompt is stored, compressed or plain, or gone on from"),
        (["--model", "./no\x1bwhere"], 2, "./no"),
    ],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_a_refusal_is_an_object_as_well(tmp_path, monkeypatch, typed, code, says, quiet):
    monkeypatch.chdir(tmp_path)
    run = done(tmp_path, *typed, "--json", *(["--quiet"] if quiet else []))
    assert run.code == code and says in object_of(run)["error"]
    last = run.said.splitlines()[-1:]
    assert last == ([] if quiet else [f"main.py: {escaped(object_of(run)['error'])}"])


def test_several_models_are_a_list_in_the_object_of_all(folder_of, tmp_path, empty_cache):
    models = [folder_of(name) for name in ("llama_gqa", "gpt2")]
    out = tmp_path / "out"
    typed = ["--mode", "prune", "--models", ",".join(models), "--device", "cpu", "--quiet"]
    typed += ["--no-use_wikitext", "--output_dir", str(out), "--prune_method", "dimension"]
    run = done(out, *typed, "--levels", "0.5", *SCORED, "--json")
    found = object_of(run)
    assert run.code == 0 and found["table"]["made_from"] == "models/models.csv"
    assert [each["model"]["name"] for each in found["models"]] == ["llama_gqa", "gpt2"]
    assert [row["model"] for row in found["table"]["rows"]] == ["llama_gqa", "gpt2"]
    for each in found["models"]:
        assert each["table"]["made_from"] == "pruning/pruning_impact.csv"
        assert set(each["files"]).isdisjoint(found["files"])


def test_store_calibrate_and_the_listing_print_objects_too(mode, tiny_model, tmp_path, capsys):
    file = str(tmp_path / "prompt.kv")
    quiet = ["--json", "--quiet"]

    def of(name: str, *flags: str) -> dict:
        assert mode(name, *flags) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return json.loads(printed.out)

    saved = of("store", "--prompt", PROMPT, "--methods", "none", "--save_compressed", file, *quiet)
    assert saved["files"] == [file] and f"{len(PROMPT)} tokens" in saved["findings"]["Stored"][0]
    assert saved["text"]["source"] == "prompt" and saved["timings_s"]["prefill"] > 0
    went_on = of("store", "--load_compressed", file, "--new_tokens", "3", *quiet)
    assert mode("store", "--load_compressed", file, "--new_tokens", "3", "--quiet") == 0
    assert capsys.readouterr().out == went_on["generated"]["Generated after the prompt"] + "\n"
    learned = of("calibrate", *quiet)
    assert learned["model"]["name"] == "tiny-llama"
    assert "is calibrated, on " in learned["findings"]["Calibrated"][0]
    assert mode("list_samples", "--json") == 0
    listed = capsys.readouterr()
    rows = json.loads(listed.out)["table"]["rows"]
    shown = [line.split()[:3] for line in listed.err.splitlines()[2:]]
    assert shown == [[str(r["index"]), str(r["characters"]), str(r["tokens"])] for r in rows]


def test_notices_are_in_the_object(ended):
    short = ["--prompt", "too short", "--sequence_length", "60", "--analysis_focus", "layers"]
    run = ended("analyze", *short, "--json", "--quiet")
    assert object_of(run)["notes"] == [
        "The text has 9 tokens, fewer than --sequence_length 60: using all of them."
    ]


def test_what_a_library_prints_keeps_out_of_the_object(flags, tmp_path, monkeypatch):
    really = pd.DataFrame.to_csv
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *a, **k: (print("noise"), really(*a, **k)))
    run = done(tmp_path / "out", *flags, "--analysis_focus", "layers", "--json")
    assert object_of(run)["mode"] == "analyze" and "noise\n" in run.said


@pytest.mark.skipif(os.name != "posix", reason="asks for a device that is always full")
@pytest.mark.parametrize(("stream", "code"), [("2>/dev/full", 0), (">/dev/full", 2)])
def test_a_stream_that_is_full_costs_only_what_goes_there(stream, code):
    typed = f"{sys.executable} main.py --mode list_samples --no-use_wikitext --json {stream}"
    ended = subprocess.run(["bash", "-c", typed], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code
    if code == 0:
        assert json.loads(ended.stdout)["mode"] == "list_samples"
    else:
        assert "Standard output cannot be written (No space left" in ended.stderr
