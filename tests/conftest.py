"""No test goes online by itself; the hub is out of reach unless a test says otherwise."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tensors here are tiny: threads would only wait for each other, for minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import families
from tests.commands import PROMPT, run


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a tiny random Llama (GQA, 2 layers) and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    families.save(families.model("llama_gqa"), folder)
    return folder


@pytest.fixture
def flags(tiny_model, tmp_path):
    """Flags of a run on the tiny model, into an empty folder."""
    where = ["--model", str(tiny_model), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    return [*where, "--prompt", PROMPT, "--sequence_length", "150", "--new_tokens", "5"]


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """The folder of what is kept between runs, which no test here has used."""
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def mode(tiny_model, tmp_path, empty_cache):
    """Runs a mode on the tiny model and the offline corpus, into an empty folder."""

    def go(name: str, *flags: str) -> int:
        out = ["--output_dir", str(tmp_path / "out")]
        where = ["--model", str(tiny_model), "--device", "cpu", "--no-use_wikitext"]
        return run("--mode", name, *where, *out, *flags)

    return go
