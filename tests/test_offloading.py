"""Caches that are kept elsewhere as they are made are the same caches, bit for bit."""

import dataclasses
import mmap
import os
import tempfile

import pytest
import torch

from compression.base import Uncompressed
from compression.evaluate import Judge
from config import UsageError
from data import offloading
from data.extraction import generate, prefill
from data.own_cache import OwnCache
from data.scoring import Continuation
from data.sensitivity import draws
from tests import families
from tests.caches import equal

N = 40
EVERY = [*families.SETTINGS, *families.KEEPS_MORE]
PLACES = ("memory", "disk")


def kept(name: str, where: str, chunk: int | None = None):
    return dataclasses.replace(families.loaded(name), cache_offload=where, prefill_chunk=chunk)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("chunk", [None, 7])
def test_a_cache_kept_elsewhere_is_the_same_bit_for_bit(name, chunk):
    ids = families.token_ids(N)
    here = kept(name, "none", chunk)
    start = prefill(here, ids, probe=True)
    grown = generate(here, start, 5)
    for where in PLACES:
        there = dataclasses.replace(here, cache_offload=where)
        begun = prefill(there, ids, probe=True)
        assert equal(start.cache, begun.cache)
        assert equal(grown, generate(there, begun, 5))
        assert equal(start.cache, begun.cache)  # still


def test_growing_layers_are_mapped_and_bounded_ones_stay(monkeypatch):
    made = []
    mapped = offloading._mapped
    monkeypatch.setattr(offloading, "_mapped", lambda *a: made.append(mapped(*a)) or made[-1])
    cache = prefill(kept("gemma3", "disk", 7), families.token_ids(N)).cache
    sliding, full = cache.layers
    assert [x.data_ptr() for x in made] == [full.keys.data_ptr(), full.values.data_ptr()]
    assert sliding.kind == "sliding" and [x.shape[-2] for x in made] == [N, N]


def test_every_kind_of_growing_layer_is_kept_elsewhere():
    # an index beside keys, a state beside keys, and a cache whose layers are made as they come
    for name in ("deepseek_v32", "falcon_h1", "hrm_text", "gpt2"):
        past = prefill(kept(name, "memory"), families.token_ids(N)).past
        assert {layer.kept_in for layer in past.layers} == {"memory"}


@pytest.mark.parametrize("name", ["llama_gqa", "gemma3", "falcon_h1", "deepseek_v32"])
@pytest.mark.parametrize("where", PLACES)
def test_scores_on_top_of_it_are_the_same_and_leave_it_as_it_is(name, where):
    ids, scores = families.token_ids(N + 8), {}
    for place in ("none", where):
        loaded = kept(name, place)
        start = prefill(loaded, ids[:N])
        before = [layer.keys.clone() for layer in start.cache.layers]
        continuation = Continuation(loaded, start.past, ids[N:])
        judge = Judge(start.cache, continuation)
        first, again = (continuation.log_probabilities(start.cache) for _ in range(2))
        assert torch.equal(first, again)
        assert all(torch.equal(a, b.keys) for a, b in zip(before, start.cache.layers, strict=True))
        row = judge.score(Uncompressed())
        scores[place] = first, continuation.greedy(start.cache, 4), row["kl_mean_nats"]
    assert torch.equal(scores["none"][0], scores[where][0])
    assert scores["none"][1:] == scores[where][1:]


def test_a_copy_never_writes_into_what_it_was_copied_from():
    ids = families.token_ids(N + 8)
    loaded = kept("llama_gqa", "memory")
    start = prefill(loaded, ids[:N])
    generate(loaded, start, 3)  # so that there is room behind the text
    cache = start.cache
    behind = [layer.keys.clone() for layer in start.past.layers]
    Continuation(loaded, start.past, ids[N:]).log_probabilities(cache)
    for layer, then in zip(start.past.layers, behind, strict=True):
        assert torch.equal(layer.keys, then)


def test_gradients_pass_through_it():
    ids = families.token_ids(N + 8)
    here, there = (draws(kept("llama_gqa", place), ids, N)[0] for place in ("none", "disk"))
    for a, b in zip(here.gradients, there.gradients, strict=True):
        assert all(torch.equal(a[kind], b[kind]) for kind in a)


def test_the_form_of_what_a_model_keeps_is_the_same():
    loaded = kept("falcon_h1", "disk")
    own = OwnCache.of(loaded, N, 5)
    assert own.fits(prefill(loaded, families.token_ids(N)).past)


def test_the_file_has_no_name_and_its_room_is_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reserved, real = [], offloading._reserve

    def noted(file, nbytes):
        real(file, nbytes)
        reserved.append((os.fstat(file.fileno()).st_blocks * 512, nbytes))

    monkeypatch.setattr(offloading, "_reserve", noted)
    x = offloading._mapped((1, 2, 1000, 16), torch.bfloat16)
    assert x.dtype == torch.bfloat16 and x.shape == (1, 2, 1000, 16)
    assert list(tmp_path.iterdir()) == []
    assert all(taken >= nbytes == 64_000 for taken, nbytes in reserved)


def test_room_is_taken_by_zeros_where_the_system_cannot_reserve_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(offloading, "ZEROS", bytes(1000))
    with (tmp_path / "f").open("wb+") as file:
        offloading._reserve(file, 2500)
        assert os.fstat(file.fileno()).st_size == 2500
        assert len(mmap.mmap(file.fileno(), 2500)) == 2500


@pytest.mark.parametrize("fails", [OSError(28, "No space left on device"), FileNotFoundError("no")])
def test_a_full_disk_is_one_sentence(monkeypatch, fails):
    def full(*_, **__):
        raise fails

    monkeypatch.setattr(offloading, "_reserve", full)
    with pytest.raises(UsageError, match=r"cannot be kept in the temporary folder .*TMPDIR"):
        prefill(kept("llama_gqa", "disk"), families.token_ids(N))


def test_lack_of_memory_is_no_full_disk(monkeypatch):
    def lacking(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", lacking)
    with pytest.raises(OSError, match="Cannot allocate"):
        offloading._mapped((1, 1, 4, 4), torch.float32)


def test_the_model_is_left_as_it_was():
    from transformers.cache_utils import Cache

    update = Cache.update
    with pytest.raises(RuntimeError), offloading.offloaded("disk", 4):
        raise RuntimeError
    assert Cache.update is update
