"""A model that is spread over memory and disk is the model in one place."""

import tempfile

import pytest
import torch
import transformers.integrations.accelerate as placing

from compression.studies.rows import Rows
from config import UsageError
from data import models, placement
from data.extraction import generate, prefill
from data.scoring import Continuation
from data.sensitivity import draws
from tests import families
from tests.caches import equal

N = 40
FAMILIES = ["llama_gqa", "gpt2", "gemma3", "deepseek_v3"]


@pytest.fixture(params=FAMILIES)
def both(request, folder_of, monkeypatch, tmp_path):
    """A family's model in one place, and with only a part of it in memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = folder_of(request.param)
    plain = models.load(folder, device="cpu")
    room = sum(w.numel() * w.element_size() for w in plain.model.parameters()) // 2
    monkeypatch.setattr(placing, "get_max_memory", lambda *_: {"cpu": room, "disk": 10**12})
    return plain, models.load(folder, device_map="auto")


def test_caches_attention_and_scores_are_those_of_one_place(both):
    plain, spread = both
    assert "meta" in {w.device.type for w in spread.model.parameters()}
    assert spread.device == torch.device("cpu") and spread.place in ("disk", "cpu + disk")
    assert placement.is_offloaded(spread.model) and not placement.is_offloaded(plain.model)
    ids = families.token_ids(N + 8)
    scores, starts = [], []
    for loaded in both:
        start = prefill(loaded, ids[:N], probe=True)
        starts.append(start)
        scores.append(Continuation(loaded, start.past, ids[N:]).log_probabilities(start.cache))
    assert equal(starts[0].cache, starts[1].cache)
    for a, b in zip(starts[0].cache.layers, starts[1].cache.layers, strict=True):
        assert a.rotary == b.rotary
    assert torch.equal(*scores)
    assert equal(*(generate(each, start, 4) for each, start in zip(both, starts, strict=True)))


def test_it_is_the_same_model_and_its_rows_are_others(both, empty_cache):
    plain, spread = both
    assert plain.identity == spread.identity
    ids = families.token_ids(9)
    texts = [Rows(each, ids, 8)._text for each in both]
    assert texts[0] != texts[1]
    assert plain.weight_nbytes == spread.weight_nbytes


def test_its_gradients_are_refused_in_a_sentence(both):
    _, spread = both
    with pytest.raises(UsageError, match="cannot be calibrated, for its gradients take all of"):
        draws(spread, families.token_ids(N), 20)


def test_a_model_that_fits_is_in_one_place(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded = models.load(str(tiny_model), device_map="auto")
    assert not placement.is_offloaded(loaded.model)
    assert loaded.identity == models.load(str(tiny_model), device="cpu").identity
    assert len(list(tmp_path.iterdir())) == 1  # until the process ends
