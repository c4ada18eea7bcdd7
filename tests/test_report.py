"""The page of a folder: what it holds, that it asks nothing of a network, and that no text of a
model, file or prompt becomes markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from config import UsageError
from tests import reported
from tests.commands import modules_after, of_mode, run
from visualization.catalogue import PICTURES
from visualization.report.cells import as_json
from visualization.report.page import build
from visualization.report.pictures import explained

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


def test_every_picture_is_explained():
    for stem in PICTURES:
        said = explained(stem)
        assert {"title", "shows", "read", "misleads"} <= said.keys(), stem


@pytest.mark.parametrize(
    "stem",
    [f"compare/{name}" for name in ("compare", "byte_ledger", "scored_tokens", "bits_by_token")],
)
def test_a_damaged_table_takes_its_part_away_and_is_named(stem, tmp_path):
    folder = reported.compared(reported.analysed(tmp_path, tokens=40), n_scored=20)
    (folder / f"{stem}.csv").write_text('label,kl_mean_nats\n"open\n')
    words = " ".join(Elements(build(folder)).words)
    assert f"{stem}.csv (ParserError" in words and "Token ribbon" in words


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
