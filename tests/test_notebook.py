"""The lines of Python in the README, run as they stand, on a tiny model."""

import re
from pathlib import Path

import pytest

import config
from compression.studies import notebook
from config import UsageError
from data import models
from tests import families
from tests.commands import ROOT

LINES = next(
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    if "kv.load()" in block
)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def longer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that has positions for the README's text."""
    folder = tmp_path_factory.mktemp("notebook") / "tiny"
    families.save(families.model("llama_gqa", {"max_position_embeddings": 1024}), folder)
    return folder


@pytest.fixture
def ran(longer_model, empty_cache, monkeypatch, capsys):
    """The names that the README's lines leave behind, and what they print."""
    monkeypatch.setattr(config, "DEFAULT_MODEL", str(longer_model))
    monkeypatch.setattr(config, "DEVICE", "cpu")
    names: dict = {}
    exec(compile(LINES, "README.md", "exec"), names)
    return names, capsys.readouterr().out


def test_the_lines_of_the_readme_run_and_print_what_is_measured(ran):
    names, printed = ran
    assert LINES.count("import ") <= 3 and "sys.path" not in LINES
    text, (kivi, coded) = (
        names["text"],
        (line for line in printed.splitlines() if " x smaller" in line),
    )
    assert names["method"].name == "coded" and kivi.startswith("kivi: ")
    ratio = text.cache.nbytes / names["compressed"].file_nbytes
    cost = text.score(names["method"])["kl_mean_nats"]
    assert coded == f"coded: {ratio:.1f} x smaller, KL {cost:.4f} nats per token"
    assert set(names["table"]["layer"]) == {0, 1}
    assert names["picture"]._repr_png_().startswith(PNG)


def test_a_method_finds_the_calibration_that_was_kept(ran, monkeypatch):
    names, _ = ran
    monkeypatch.setattr(
        "compression.coded.calibration.calibrate", lambda *_: pytest.fail("calibrated again")
    )
    again = notebook.make(names["model"], "coded")
    assert again.calibration.identity == names["method"].calibration.identity


def test_a_text_of_ones_own_is_read_from_its_beginning(tiny_model):
    loaded = models.load(str(tiny_model), device="cpu")
    judge = notebook.read(loaded, "abcdefghij" * 10, context_tokens=60, score_tokens=10)
    assert judge.cache.n_tokens == 60 and judge.continuation.n_scored == 10


def test_a_method_that_there_is_not_is_refused_in_a_sentence(tiny_model):
    loaded = models.load(str(tiny_model), device="cpu")
    with pytest.raises(UsageError, match="The method zip is not known: take one of none, coded"):
        notebook.make(loaded, "zip")


def test_a_count_below_one_is_refused(tiny_model):
    loaded = models.load(str(tiny_model), device="cpu")
    with pytest.raises(UsageError, match="`context_tokens` is 0: it takes 1 or more"):
        notebook.read(loaded, "abc", context_tokens=0)
