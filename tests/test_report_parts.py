"""The parts of the page of a folder, each held against its table."""

import base64
import gzip
import json

import numpy as np
import pandas as pd
import pytest

from compression.studies import presets
from tests import reported
from visualization.report import kept
from visualization.report.cells import packed_logs
from visualization.report.changed import changed, quantiles, tail
from visualization.report.frontier import engines_of, frontier
from visualization.report.ledger import ledger
from visualization.report.pictures import extremes, pictures
from visualization.report.results import Results
from visualization.report.ribbon import ribbon


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return reported.compared(reported.analysed(tmp_path_factory.mktemp("results")))


def test_packed_numbers_are_within_what_is_said_of_them():
    draw = np.random.default_rng(0)
    values = draw.lognormal(-8, 3, 1000).astype(np.float16)
    values[:3] = [np.nan, 0, values.max()]
    made = packed_logs(values)
    codes = np.frombuffer(gzip.decompress(base64.b64decode(made["bytes"])), np.uint8)
    read = made["low"] * np.exp((codes.astype(float) - 2) * made["step"])
    assert codes[0] == 0 and codes[1] == 1 and (codes[values > 0] >= 2).all()
    positive = values > 0
    off = np.abs(read[positive] / values[positive].astype(float) - 1)
    assert off.max() <= made["off_by"] * 1.001 < 0.05


def test_quantiles_are_costs_of_tokens_and_a_tail_counts_them():
    kl = pd.Series(np.random.default_rng(0).lognormal(-5, 2, 1500)).round(4)
    said = quantiles(kl)
    for name, share in {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1}.items():
        assert said[name] == sorted(kl)[int(np.ceil(share * len(kl))) - 1]
    line = tail(kl)
    assert len(line["share"]) > 10 and line["share"][0] == 1 / 1500 and line["share"][-1] == 0.5
    for share, cost in zip(line["share"], line["kl"], strict=True):
        assert (kl >= cost * (1 - 1e-4)).mean() >= share - 1e-9


def test_a_sentence_names_the_largest_and_the_smallest(folder):
    table = pd.DataFrame(
        {"layer_a": [0, 0, 1], "layer_b": [0, 1, 1], "kind": "key", "cosine": [1.0, 0.25, 1.0]}
    )
    assert "everywhere" in extremes(table, "cosine")  # what is itself is left out
    table = pd.DataFrame({"layer": [0, 1, 2], "kind": "value", "sparsity": [0.5, 0.125, 0.25]})
    assert extremes(table, "sparsity") == (
        "Sparsity is highest at layer 0, values with 50 %, lowest at layer 1, values with 12.5 %; "
        "the mean of 3 is 29.2 %."
    )
    none = pd.DataFrame({"method": ["none", "a"], "label": ["x", "y"], "kl_mean_nats": [0.0, 0.5]})
    assert extremes(none, "kl_mean_nats") == "KL is 0.5 nats per token everywhere."


def test_the_frontier_and_the_ledger_say_what_their_tables_do(folder):
    results = Results(folder)
    rows = pd.DataFrame(frontier(results)["rows"])
    table = results.table("compare/compare").set_index("label")
    assert rows["label"].tolist() == list(reported.SETTINGS)  # by size, as the table is not
    assert (rows["kl"] == table.loc[rows["label"], "kl_mean_nats"].to_numpy()).all()
    assert (rows["kl_shown"] > 0).all() and (rows["kl_low"] <= rows["kl_high"]).all()
    engines = dict(zip(rows["label"], rows["engines"], strict=True))
    assert engines["fp8"] == [["vLLM", "--kv-cache-dtype fp8_e4m3"]] and engines["none"] == []
    assert engines["kivi-4"] == [
        ["transformers", 'cache_config={"nbits": 4}'],
        ["llama.cpp", "-ctk q4_0"],
    ]
    found = ledger(results)
    for setting in found["settings"]:
        parts = pd.DataFrame({k: v for k, v in setting.items() if k != "label"})
        stored = parts.loc[~parts["once"], "bytes"].sum()
        assert stored == int(table.loc[setting["label"], "stored_bytes"])
    assert found["plain_bytes_per_token"] == reported.PLAIN_BYTES


def test_every_engine_setting_is_copied_without_the_name_of_its_engine():
    for said in presets.ENGINES.values():
        for name, setting in engines_of(said):
            assert name in ("vLLM", "llama.cpp", "transformers") and setting
            assert not setting.startswith(name) and setting in said


def test_what_changed_has_every_scored_token_of_every_setting(folder):
    results = Results(folder)
    found, table = changed(results), results.table("compare/scored_tokens")
    assert [s["label"] for s in found["settings"]] == list(reported.SETTINGS)[:-1]
    for setting in found["settings"]:
        own = table[table["label"] == setting["label"]]
        assert np.allclose(setting["kl"], own["kl_nats"], rtol=1e-4)
        worst = set(np.argsort(own["kl_nats"].to_numpy())[::-1][:32].tolist())
        assert set(setting["after"]) == worst


def test_the_ribbon_reads_attention_at_the_positions_of_the_table(folder):
    (data,) = ribbon(Results(folder))["texts"]
    shape = (len(data["by_head"]["layers"]), data["by_head"]["heads"], len(data["token"]))
    kept_ones = data["by_head"]["received"]
    codes = np.frombuffer(gzip.decompress(base64.b64decode(kept_ones["bytes"])), np.uint8)
    read = kept_ones["low"] * np.exp((codes.reshape(shape).astype(float) - 2) * kept_ones["step"])
    assert np.allclose(read.mean((0, 1)), data["attention_received"], rtol=0.05)


def test_the_ribbon_spends_the_bits_of_the_table_at_their_positions(folder):
    results = Results(folder)
    (data,) = ribbon(results)["texts"]
    table = results.table("compare/bits_by_token").set_index("position")
    assert [one["label"] for one in data["bits"]] == ["coded 2.0e-04", "coded 5.0e-05", "kivi-2"]
    for one in data["bits"]:
        own = table.loc[table["label"] == one["label"], "bits_per_value"]
        np.testing.assert_allclose(one["per_value"], own[data["position"]], rtol=1e-4)
        assert one["mean"] == pytest.approx(own.mean(), rel=1e-4)


@pytest.mark.parametrize("changed_at", [None, 3])
def test_of_another_text_the_ribbon_is_made_apart(changed_at, tmp_path):
    """The last tokens of a text that `analyze` read further have no figure."""
    reported.compared(reported.analysed(tmp_path, tokens=600))
    bits = reported.spent()
    bits.loc[bits["position"] == changed_at, "token"] = "␣another"
    reported.write(tmp_path, "compare/bits_by_token", bits)
    texts = ribbon(Results(tmp_path))["texts"]
    if changed_at is None:
        (data,) = texts
        assert data["named"] == "The first text that analyze read" and "importance" in data
        for one in data["bits"]:
            told = [x is not None for x in one["per_value"]]
            assert told == [True] * reported.CONTEXT + [False] * (600 - reported.CONTEXT)
    else:
        looked, spent = texts
        assert looked["bits"] is None and len(looked["token"]) == 600
        assert spent["named"] == "The first text that compare read" and "importance" not in spent
        assert spent["token"][changed_at] == "␣another" != looked["token"][changed_at]


def test_settings_that_read_other_tokens_than_the_first_have_no_ribbon(tmp_path):
    reported.compared(tmp_path)
    bits = reported.spent()
    bits.loc[3, "token"] = "␣another"  # of one setting alone
    reported.write(tmp_path, "compare/bits_by_token", bits)
    with pytest.raises(ValueError, match=r"coded 5\.0e-05 has other tokens"):
        ribbon(Results(tmp_path))


def test_without_analyze_the_ribbon_is_of_the_bits_alone(tmp_path):
    reported.compared(tmp_path)
    (data,) = ribbon(Results(tmp_path))["texts"]
    assert data.keys() == {"named", "token", "position", "by_head", "bits"}
    tokens = reported.spent().groupby("position")["token"].first()
    assert data["token"] == tokens.tolist() and data["position"] == tokens.index.tolist()


def test_only_what_a_manifest_names_below_its_folder_is_read(tmp_path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    inside = tmp_path / "out"
    files = [
        "../secret.csv",
        str(secret),
        "gone.csv",
        reported.write(inside, "b", pd.DataFrame({"a": [1]})),
    ]
    reported.write(inside, "unnamed", pd.DataFrame({"a": [1]}))
    reported.manifest(inside, "analyze", files)
    (inside / "other.json").write_text('{"mode": 5}')
    results = Results(inside)
    assert results.files == ["b.csv"] and [run.mode for run in results.runs] == ["analyze"]
    assert results.table("unnamed") is None and results.table("../secret") is None


def test_staged_files_go_before_those_that_they_will_replace(tmp_path):
    reported.manifest(
        tmp_path / "out",
        "analyze",
        [reported.write(tmp_path / "out", "a", pd.DataFrame({"x": [1]}))],
    )
    reported.manifest(tmp_path / "out", "prune", [])
    reported.manifest(
        tmp_path / "new",
        "analyze",
        [reported.write(tmp_path / "new", "a", pd.DataFrame({"x": [2]}))],
    )
    results = Results(tmp_path / "out", tmp_path / "new")
    assert [run.mode for run in results.runs] == ["analyze", "prune"]
    assert results.table("a")["x"].tolist() == [2]


def test_attention_that_does_not_fit_is_named(tmp_path):
    folder = reported.analysed(tmp_path, tokens=40)
    (folder / "tokens/attention.safetensors").write_bytes(b"nonsense")
    results = Results(folder)
    (data,) = ribbon(results)["texts"]
    assert data["by_head"] is None and "attention.safetensors" in results.missing[0]


def test_pictures_that_find_no_room_are_named_the_largest_first(tmp_path):
    sizes = {"a.png": 100, "b.png": 900, "c.png": 200}
    for file, size in sizes.items():
        (tmp_path / file).write_bytes(b"x" * size)
    reported.manifest(tmp_path, "analyze", list(sizes))
    shown = {p.file: p for p in pictures(Results(tmp_path), room=400)["analyze"]}
    assert [file for file, one in shown.items() if not one.source] == ["b.png"]
    assert (
        shown["b.png"].why and base64.b64decode(shown["a.png"].source.split(",")[1]) == b"x" * 100
    )


def test_what_is_kept_is_made_again_when_it_is_damaged(empty_cache):
    made = kept.parts()
    (file,) = (empty_cache / "report").iterdir()
    for damaged in ("{", "[]", '{"body": "{}", "sha256": "0"}', "{}"):
        file.write_text(damaged)
        kept._parts.cache_clear()
        assert kept.parts() == made and json.loads(file.read_text())["sha256"]
    kept._parts.cache_clear()
    assert kept.parts() == made and "vegaEmbed" in made.bundle


def test_charts_hold_no_data_and_their_colours_are_signals():
    for name, chart in kept.parts().charts.items():
        text = json.dumps(chart)
        assert '"values"' not in text.replace('"values": [0.5', "") and "datasets" not in chart, (
            name
        )
        assert {"ink", "soft", "faint", "accent"} <= {p["name"] for p in chart["params"]}
