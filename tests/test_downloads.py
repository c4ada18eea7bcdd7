"""Models from a hub that works, and from hubs that do not: each call has a deadline."""

import threading
import time
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import _http

import config
from config import UsageError
from data import corpora, downloads, hub, models
from tests import families, hubs

BAD = {
    "drips": hubs.drips,
    "fails": hubs.fails,
    "garbage": hubs.garbage,
    "goes round": hubs.goes_round,
    "silent": hubs.silent,
}
every_bad_hub = pytest.mark.parametrize("answer", BAD.values(), ids=BAD)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Patience that a test can afford."""
    monkeypatch.setattr(config, "HUB_PATIENCE_S", 1.0)
    monkeypatch.setattr(downloads, "ANSWER_S", 2.0)
    monkeypatch.setattr(corpora, "TEXT_PATIENCE_S", 2.0)
    monkeypatch.setattr(hub, "STALL_S", 1.0)
    corpora.wikitext_samples.cache_clear()
    yield
    corpora.wikitext_samples.cache_clear()


def answers_first(answer):
    """A hub that is there when it is asked whether it is, and not after."""

    def call(request):
        return request.send_error(404) if request.path == "/" else answer(request)

    return call


def test_a_model_is_brought_from_a_hub(tiny_model, tmp_path, monkeypatch):
    with hubs.running(hubs.holding(tiny_model), monkeypatch, tmp_path):
        loaded = models.load("owner/name", device="cpu")
    assert (loaded.name, loaded.revision) == ("owner/name", hubs.COMMIT)
    weights = families.model("llama_gqa").state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in loaded.model.state_dict().items())
    hub.reachable.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert models.load("owner/name", device="cpu").identity == loaded.identity  # from the cache


@every_bad_hub
@pytest.mark.parametrize("first", [True, False], ids=["answers first", "never answers"])
def test_a_model_is_refused_soon_by_a_bad_hub(answer, first, tmp_path, monkeypatch):
    began = time.monotonic()
    bad = answers_first(answer) if first else answer
    with hubs.running(bad, monkeypatch, tmp_path):
        with pytest.raises(UsageError, match="was not found in the local cache, and the hub "):
            models.load("owner/name", device="cpu")
        assert time.monotonic() - began < 4


@every_bad_hub
def test_wikitext_is_given_up_soon_on_a_bad_hub(answer, tmp_path, monkeypatch):
    with hubs.running(answers_first(answer), monkeypatch, tmp_path):
        began = time.monotonic()
        assert corpora.wikitext_samples() is None
        assert time.monotonic() - began < 3


@every_bad_hub
def test_a_local_model_needs_no_hub(answer, tiny_model, tmp_path, monkeypatch):
    began = time.monotonic()
    with hubs.running(answer, monkeypatch, tmp_path):
        assert models.load(str(tiny_model), device="cpu").name == "tiny-llama"
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("answer", [hubs.drips, hubs.silent], ids=["drips", "silent"])
def test_a_download_that_stalls_is_given_up(answer, file, tiny_model, tmp_path, monkeypatch):
    began = time.monotonic()
    a_hub = hubs.holding(tiny_model, answer, (file,))
    refused = pytest.raises(UsageError, match=f"stopped sending {file} of `model` owner/name")
    with hubs.running(a_hub, monkeypatch, tmp_path), refused:
        models.load("owner/name", device="cpu")
    assert time.monotonic() - began < 6


def test_a_question_given_up_does_not_end_a_download(tiny_model, tmp_path, monkeypatch):
    """Its thread may find out much later that it cannot connect, and the client then closes its
    connections. Here it does so over and over."""
    a_hub = hubs.holding(tiny_model, hubs.drips, ("model.safetensors",))
    over, refused = threading.Event(), pytest.raises(UsageError, match="stopped sending model")

    def close_often():
        while not over.wait(0.01):
            huggingface_hub.close_session()

    closing = threading.Thread(target=close_often)
    with hubs.running(a_hub, monkeypatch, tmp_path), refused:
        closing.start()
        try:
            models.load("owner/name", device="cpu")
        finally:
            over.set()
            closing.join()


def test_how_a_person_reaches_the_hub_is_kept(tiny_model, tmp_path, monkeypatch):
    """A proxy or certificates, say: the client in use stays open, and later ones are made alike."""
    made = []

    def own() -> Any:
        made.append(_http.default_client_factory())
        return made[-1]

    monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", own)
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT", own())
    hub._keep_connections.cache_clear()
    with hubs.running(hubs.holding(tiny_model), monkeypatch, tmp_path):
        assert hub.reachable() and huggingface_hub.get_session() is made[0]
        huggingface_hub.close_session()
        assert huggingface_hub.get_session() is made[1] and not made[0].is_closed
        models.load("owner/name", device="cpu")
    hub._keep_connections.cache_clear()


def test_a_client_without_these_names_is_used_as_it_is(tiny_model, tmp_path, monkeypatch):
    monkeypatch.delattr(_http, "_CLIENT_LOCK")
    hub._keep_connections.cache_clear()
    with hubs.running(hubs.holding(tiny_model), monkeypatch, tmp_path):
        assert hub.reachable()
    hub._keep_connections.cache_clear()


def test_a_slow_download_that_moves_is_waited_for(monkeypatch):
    arrived = [0]

    def slow():
        for _ in range(8):
            time.sleep(0.4)
            arrived[0] += hub.LEAST_BYTES
        return "all of it"

    assert hub.while_it_moves(slow, lambda: arrived[0]) == "all of it"


def test_a_model_that_is_not_on_the_hub_says_so(tiny_model, tmp_path, monkeypatch):
    refused = pytest.raises(UsageError, match="the hub has none of this name that you have access")
    with hubs.running(hubs.holding(tiny_model), monkeypatch, tmp_path), refused:
        models.load("owner/other", device="cpu")
