"""A text read in chunks is the text read at once, for every kind of cache."""

import dataclasses

import pytest
import torch

from data import reading
from data.extraction import generate, prefill
from data.forward import one_by_one
from data.inventory import leaves
from data.probe import RECENT_QUERIES
from tests import families
from tests.caches import equal

N = 40  # beyond the window of those that have one
TOLERANCE = 3e-4  # of a sum that passes through several layers; a wrong mask or place is 1e-1
EVERY = [*families.SETTINGS, *families.KEEPS_MORE, *families.WRAPPERS]


def in_chunks(name: str, chunk: int | None, **changes):
    read = families.fresh(name, **changes) if changes else families.loaded(name)
    return dataclasses.replace(read, prefill_chunk=chunk)


def assert_alike(whole, chunked) -> None:
    """Caches with their attention."""
    for a, b in zip(whole.layers, chunked.layers, strict=True):
        assert (a.index, a.kind, a.rotary) == (b.index, b.kind, b.rotary)
        assert torch.equal(a.positions, b.positions)
        for part in ("keys", "values", "attention", "recent_attention"):
            x, y = getattr(a, part), getattr(b, part)
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x, y, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", EVERY)
def test_a_text_in_chunks_leaves_what_one_pass_leaves(name):
    ids = families.token_ids(N)
    loaded = in_chunks(name, None)
    whole = prefill(loaded, ids, probe=True)
    for chunk in (1, 7, 17):  # smaller and larger than a window
        start = prefill(dataclasses.replace(loaded, prefill_chunk=chunk), ids, probe=True)
        assert_alike(whole.cache, start.cache)
        assert torch.equal(whole.next_token, start.next_token)
        then = dict(leaves(start.past))
        for path, x in leaves(whole.past):  # states and keys of indexes too
            if isinstance(x, torch.Tensor):
                torch.testing.assert_close(x, then[path], atol=TOLERANCE, rtol=TOLERANCE)
            elif isinstance(x, int):
                assert x == then[path]


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2", "qwen3_next"])
def test_a_text_of_one_chunk_is_read_in_one_pass_bit_for_bit(name):
    ids = families.token_ids(N)
    for chunk in (N, N + 1, 10**9):
        one = prefill(in_chunks(name, chunk), ids, probe=True).cache
        assert equal(one, prefill(in_chunks(name, None), ids, probe=True).cache)


def test_what_is_generated_goes_on_from_chunks():
    ids = families.token_ids(N)
    whole, chunked = in_chunks("gemma3", None), in_chunks("gemma3", 7)
    grown = generate(chunked, prefill(chunked, ids), 5)
    assert_alike(generate(whole, prefill(whole, ids), 5), grown)


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4}
LONG |= {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]}
LONG |= {"original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama_gqa", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
        ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 16}),
    ],
)
def test_frequencies_that_follow_from_a_texts_length_are_of_the_whole_text(name, settings):
    ids = families.token_ids(N)
    whole = prefill(in_chunks(name, None, settings=settings), ids).cache
    usual = prefill(in_chunks(name, None), ids).cache
    assert not torch.allclose(whole.layers[0].keys, usual.layers[0].keys, atol=1e-2)
    for chunk in (3, 17):
        assert_alike(whole, prefill(in_chunks(name, chunk, settings=settings), ids).cache)


def test_without_that_they_would_be_those_of_each_chunk(monkeypatch):
    settings = {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}
    ids = families.token_ids(N)
    whole = prefill(in_chunks("llama_gqa", None, settings=settings), ids).cache
    monkeypatch.setattr(reading, "_depends_on_length", lambda module: False)
    chunked = prefill(in_chunks("llama_gqa", 7, settings=settings), ids).cache
    assert not torch.allclose(whole.layers[0].keys, chunked.layers[0].keys, atol=1e-2)


def test_the_model_is_tried_before_it_goes_on_from_its_cache(monkeypatch):
    loaded, order = in_chunks("zamba", 10), []
    run, tried = loaded.model.forward, reading.refuse_wrong_cache

    def spy(input_ids, **rest):
        order.append(input_ids.shape[1])
        return run(input_ids, **rest)

    def noted(loaded):
        order.append("tried")
        calls = len(order)
        tried(loaded)
        del order[calls:]

    monkeypatch.setattr(loaded.model, "forward", spy)
    monkeypatch.setattr(reading, "refuse_wrong_cache", noted)
    reading.read(loaded, families.token_ids(14))
    assert loaded.model in one_by_one
    assert order == [10, "tried", 1, 1, 1, 1]


def test_who_is_right_one_token_after_the_other_alone_is_told_so(caplog):
    prefill(in_chunks("zamba", 10), families.token_ids(14))
    assert "one token after the other" in caplog.text


@pytest.mark.parametrize("name", ["llama_gqa", "mistral", "gemma2", "deepseek_v3"])
def test_no_mask_is_of_tokens_by_tokens(name, monkeypatch):
    ids, chunk, seen = families.token_ids(200), 8, []
    loaded = in_chunks(name, chunk)
    prefill(loaded, families.token_ids(4))
    from data.probe import AttentionProbe

    attend = AttentionProbe._attend

    def noted(probe, call):
        seen.append(0 if call.mask is None else call.mask.shape[-1] * call.mask.shape[-2])
        return attend(probe, call)

    monkeypatch.setattr(AttentionProbe, "_attend", noted)
    prefill(loaded, ids, probe=True)
    assert 0 < max(seen) <= chunk * len(ids)


@pytest.mark.parametrize("chunk", [1, 3, 5, RECENT_QUERIES, 39])
def test_what_is_kept_of_the_attention_does_not_grow_with_the_chunks(chunk):
    from data.probe import AttentionProbe

    loaded, ids = in_chunks("llama_gqa", chunk), families.token_ids(N)
    assert_alike(
        prefill(in_chunks("llama_gqa", None), ids, probe=True).cache,
        prefill(loaded, ids, probe=True).cache,
    )
    probe = AttentionProbe(N)
    with torch.no_grad():
        reading.read(loaded, ids, probe)
    held = [x for _, x in leaves(probe._sums) if isinstance(x, torch.Tensor)]
    of_layer = 2 * (2 * N + N) + 2 * N  # heads and counts of both; who looks most, how much
    assert sum(x.numel() for x in held) == 2 * of_layer
