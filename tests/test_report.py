"""The page of a folder: what it holds, that it asks nothing of a network, and that no text of a
model, file or prompt becomes markup."""

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from config import UsageError
from tests import reported
from tests.commands import modules_after, of_mode, run
from visualization.catalogue import PICTURES
from visualization.report import kept
from visualization.report.cells import as_json, packed_logs
from visualization.report.changed import changed, quantiles, tail
from visualization.report.frontier import frontier
from visualization.report.ledger import ledger
from visualization.report.page import build
from visualization.report.pictures import explained, explanations, extremes, pictures
from visualization.report.results import Results
from visualization.report.ribbon import ribbon
from visualization.terminal import command_line
from visualization.terminal.typed import as_typed

EVIL = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> &amp; ' \" {{ 7*7 }}"


class Elements(HTMLParser):
    """Tags with their attributes' names, bodies of scripts and styles, and the words between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.bodies: dict[str, list[str]] = {"script": [], "style": [], "json": []}
        self._inside = ""
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = "json" if dict(attrs).get("type") == "application/json" else tag
        if self._inside in self.bodies:
            self.bodies[self._inside].append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in self.bodies:
            self.bodies[self._inside][-1] += data
        else:
            self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("results")
    return reported.compared(reported.analysed(made))


@pytest.fixture(scope="module")
def page(folder):
    return build(folder)


def test_the_page_runs_its_own_scripts_and_asks_nothing_of_a_network(page):
    elements = Elements(page)
    (policy,) = (value for _, name, value in elements.attributes if value.startswith("default-src"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:" and "unsafe" not in policy

    def digests(bodies):
        hashed = (hashlib.sha256(body.encode()).digest() for body in bodies)
        return {f"'sha256-{base64.b64encode(one).decode()}'" for one in hashed}

    assert set(rules["script-src"].split()) == digests(elements.bodies["script"])
    assert set(rules["style-src"].split()) == digests(elements.bodies["style"])
    fetched = [v for _, name, v in elements.attributes if name in ("src", "srcset", "data")]
    assert all(value.startswith("data:") for value in fetched)
    assert not re.search(r"url\(|@import", "".join(elements.bodies["style"]))
    assert not [1 for _, name, _ in elements.attributes if name.startswith("on") or name == "style"]


def test_no_text_of_a_model_file_or_prompt_becomes_markup(tmp_path):
    def told(text):
        folder = tmp_path / str(len(text))
        reported.analysed(folder, tokens=40, token=text, findings=[text], generated=text)
        table = pd.DataFrame({"method": [text], "sparsity": [0.5], text: [text]})
        files = [reported.write(folder, "layers/odd", table)]
        model = {"name": text, "revision": text, "dtype": text, "device": text}
        settings = {"prompt": text, "model": text}
        reported.manifest(folder, "prune", files, model=model, verdict=[text], settings=settings)
        reported.compared(folder, n_scored=40, token=text)
        return Elements(build(folder, compare_with=folder))

    evil, plain = told(EVIL), told("plain")
    assert evil.tags == plain.tags
    assert len(evil.bodies["json"]) == len(plain.bodies["json"]) > 5
    found = [json.loads(body) for body in evil.bodies["json"]]
    assert sum(EVIL in json.dumps(one, ensure_ascii=False).replace('\\"', '"') for one in found) > 4
    assert sum(EVIL in word for word in evil.words) >= 4


@pytest.mark.parametrize("value", [EVIL, "\u2028\u2029", [1.5, None, True], {"a<b": ["&"]}])
def test_json_in_a_script_says_the_same_and_cannot_end_it(value):
    text = as_json(value)
    assert json.loads(text) == value and not set("<>&\u2028\u2029") & set(text)


def test_packed_numbers_are_within_what_is_said_of_them():
    import gzip

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


def test_every_picture_is_explained():
    for stem in PICTURES:
        said = explained(stem)
        assert {"title", "shows", "read", "misleads", "measure"} <= said.keys(), stem
    assert not [name for name in explanations() if not any(s.endswith(name) for s in PICTURES)]


def test_the_frontier_and_the_ledger_say_what_their_tables_do(folder):
    results = Results(folder)
    rows = pd.DataFrame(frontier(results)["rows"])
    table = results.table("compare/compare").set_index("label")
    assert rows["label"].tolist() == list(reported.SETTINGS)  # by size, as the table is not
    assert (rows["kl"] == table.loc[rows["label"], "kl_mean_nats"].to_numpy()).all()
    assert (rows["kl_shown"] > 0).all() and (rows["kl_low"] <= rows["kl_high"]).all()
    assert dict(zip(rows["label"], rows["engine"], strict=True))["fp8"].startswith("vLLM")
    found = ledger(results)
    for setting in found["settings"]:
        parts = pd.DataFrame({k: v for k, v in setting.items() if k != "label"})
        stored = parts.loc[~parts["once"], "bytes"].sum()
        assert stored == int(table.loc[setting["label"], "stored_bytes"])
    assert found["plain_bytes_per_token"] == reported.PLAIN_BYTES


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
    import gzip

    data = ribbon(Results(folder))
    shape = (len(data["by_head"]["layers"]), data["by_head"]["heads"], len(data["token"]))
    kept_ones = data["by_head"]["received"]
    codes = np.frombuffer(gzip.decompress(base64.b64decode(kept_ones["bytes"])), np.uint8)
    read = kept_ones["low"] * np.exp((codes.reshape(shape).astype(float) - 2) * kept_ones["step"])
    assert np.allclose(read.mean((0, 1)), data["attention_received"], rtol=0.05)


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


@pytest.mark.parametrize(
    "stem", ["compare/compare", "compare/byte_ledger", "compare/scored_tokens"]
)
def test_a_damaged_table_takes_its_part_away_and_is_named(stem, tmp_path):
    folder = reported.compared(reported.analysed(tmp_path, tokens=40), n_scored=20)
    (folder / f"{stem}.csv").write_text('label,kl_mean_nats\n"open\n')
    words = " ".join(Elements(build(folder)).words)
    assert f"{stem}.csv (ParserError" in words and "Token ribbon" in words


def test_attention_that_does_not_fit_is_named(tmp_path):
    folder = reported.analysed(tmp_path, tokens=40)
    (folder / "tokens/attention.safetensors").write_bytes(b"nonsense")
    results = Results(folder)
    assert ribbon(results)["by_head"] is None and "attention.safetensors" in results.missing[0]


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


def test_a_folder_without_results_is_refused_in_a_sentence(tmp_path, capsys):
    with pytest.raises(UsageError, match="There are no results in"):
        build(tmp_path)
    assert run("--mode", "report", "--output_dir", str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--output_dir" in said and not list(tmp_path.iterdir())


def test_two_folders_say_what_is_different(folder, tmp_path):
    other = reported.analysed(tmp_path, tokens=40, settings={"mode": "analyze", "model": "another"})
    words = [w.strip() for w in Elements(build(folder, compare_with=other)).words if w.strip()]
    at = words.index("analyze: model")
    assert words[at + 1 : at + 3] == ['"smollm2-135m"', '"another"']
    same = [w.strip() for w in Elements(build(folder, compare_with=folder)).words]
    assert "Model, text and settings of both folders are the same." in same


def test_a_run_ends_with_the_page_of_all_that_its_folder_holds(tiny_model, tmp_path):
    heads = of_mode("analyze", tiny_model, tmp_path, "--analysis_focus", "heads")
    assert run(*heads, "--sequence_length", "40") == 0
    prune = ["--context_tokens", "40", "--score_tokens", "8", "--num_samples", "1"]
    assert run(*of_mode("prune", tiny_model, tmp_path, *prune, "--prune_layers", "0")) == 0
    page = (tmp_path / "report.html").read_text()
    pictured = {value for _, name, value in Elements(page).attributes if name == "id"}
    assert {"pictures-analyze", "pictures-prune"} <= pictured
    assert "What could not be read" not in page
    told = {
        mode: json.loads((tmp_path / f"{mode}.json").read_text()) for mode in ("analyze", "prune")
    }
    assert "report.html" in told["prune"]["files"] and "report.html" not in told["analyze"]["files"]
    (tmp_path / "report.html").unlink()
    assert run("--mode", "report", "--output_dir", str(tmp_path), "--quiet") == 0
    assert (tmp_path / "report.html").read_text() == page


def test_the_page_is_made_without_torch_or_pictures_being_drawn(folder):
    code = f"import main; main.main(['--mode', 'report', '--output_dir', {str(folder)!r}])"
    loaded = modules_after(code)
    assert "jinja2" in loaded and not {"torch", "transformers", "matplotlib"} & loaded


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


@pytest.mark.parametrize(
    "typed",
    [
        "--mode analyze",
        "--mode analyze --analysis_focus heads --text_file 'a b.md' --sequence_length 512",
        "--mode analyze --measure --no-use_wikitext --wikitext_index 3 --score_tokens 9",
        "--mode prune --prune_heads 4:0,2 --prune_layers 0,1",
        "--mode compare --methods kivi,snapkv --levels 0.5,0.25 --max_kl 0.01",
        "--mode tucker --energy 0.95 --unrotated_keys --no_sensitivity --context_tokens 64",
        """--mode analyze_generation --prompt 'It'"'"'s $HOME; rm' --new_tokens 64""",
        "--mode compare --models a,b --quick",
    ],
)
def test_the_command_of_a_run_repeats_it(typed):
    given = command_line.parse(shlex.split(typed))
    told = json.loads(json.dumps(given))  # as a manifest keeps it
    again = shlex.split(as_typed(told["mode"], told))
    assert again[:2] == ["python", "main.py"] and command_line.parse(again[2:]) == given
