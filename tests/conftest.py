"""No test goes online by itself; the hub is out of reach unless a test says otherwise."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tensors here are tiny: threads would only wait for each other, for minutes on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("KV_CACHE_HOME", None)  # whose finished rows and calibrations no test may take

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import families
from tests.commands import PROMPT, Done, done, of_mode, run

ROOM = 2**30  # bytes beyond what the tests themselves take: hostile files are a few thousand long


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def models_stay_as_they_are():
    """No test may change a model that others are given too."""
    yield
    changed = [name for name, one in families.shared.items() if not families.is_as_it_was(one)]
    assert not changed, f"changed by some test, which is to take families.fresh: {changed}"


@pytest.fixture(autouse=True)
def own_cache_folder(request, tmp_path_factory, monkeypatch):
    """What is kept between runs is kept apart from other tests', unless a module shares it."""
    if "KV_CACHE_HOME" not in os.environ:
        home = tmp_path_factory.getbasetemp() / f"home-{abs(hash(request.node.nodeid))}"
        monkeypatch.setenv("KV_CACHE_HOME", str(home))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[[str], str]:
    """The folder of a family's model and tokenizer, named after it; not to be written into."""
    home, saved = tmp_path_factory.mktemp("models"), set()

    def folder(name: str) -> str:
        if name not in saved:
            families.save(families.model(name), home / name)
            saved.add(name)
        return str(home / name)

    return folder


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
    return [*where, "--prompt", PROMPT, "--sequence_length", "60"]


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """The folder of what is kept between runs, which no test here has used."""
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """The same for runs that the tests of a module share."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KV_CACHE_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def ended(tiny_model, tmp_path_factory, shared_cache) -> Callable[..., Done]:
    """Runs a mode on the tiny model and the offline corpus, for the tests of a module to share: the
    same flags run once."""
    kept: dict[tuple[str, ...], Done] = {}

    def go(name: str, *flags: str) -> Done:
        if (name, *flags) not in kept:
            out = tmp_path_factory.mktemp(name) / "out"
            kept[name, *flags] = done(out, *of_mode(name, tiny_model, out, *flags))
        return kept[name, *flags]

    return go


@pytest.fixture
def mode(tiny_model, tmp_path, empty_cache):
    """Runs a mode on the tiny model and the offline corpus, into an empty folder."""

    def go(name: str, *flags: str) -> int:
        return run(*of_mode(name, tiny_model, tmp_path / "out", *flags))

    return go


@pytest.fixture
def stored(mode, tmp_path) -> Callable[..., str]:
    """Stores a text as `none`, on the tiny model unless another is named; the file."""

    def store(text: str, *flags: str) -> str:
        file = str(tmp_path / "prompt.kv")
        as_none = ["--methods", "none", "--save_compressed", file, "--prompt", text]
        assert mode("store", *as_none, *flags) == 0
        return file

    return store


@pytest.fixture
def little_memory():
    """As good as none is left."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
