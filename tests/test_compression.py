"""The contract of every registered method, over the settings here and every awkward cache."""

import pytest
import torch

from compression import files
from compression.methods import METHODS
from data.cache import KINDS
from data.extraction import prefill
from tests import caches, families

SETTINGS = {
    "none": [{}],
    "tucker": [
        {"token_rank": 1, "embedding_rank": 1},
        {"token_rank": 1, "embedding_rank": 1, "sink_tokens": 2, "recent_tokens": 1},
        {"token_rank": 1, "embedding_rank": 1, "sink_tokens": 1000},
        {"token_rank": 1, "embedding_rank": 1, "sink_tokens": 1, "unrotated_keys": True},
        {"token_rank": None, "embedding_rank": None, "energy": 0.9},
        {"token_rank": None, "embedding_rank": None, "target_ratio": 1.0},
    ],
}
CASES = [(name, settings) for name, each in SETTINGS.items() for settings in each]
every_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
every_shape = pytest.mark.parametrize("shape", caches.SHAPES)


def compressed(name, settings, shape):
    cache = caches.SHAPES[shape]().in_16_bits()
    return cache, METHODS[name](**settings).compress(cache)


def test_every_method_is_under_contract():
    assert set(SETTINGS) == set(METHODS)


@every_case
@every_shape
def test_what_is_restored_has_the_shape_dtype_and_places_of_the_original(name, settings, shape):
    cache, small = compressed(name, settings, shape)
    back = small.restore()
    assert torch.equal(back.token_ids, cache.token_ids)
    assert (back.n_prompt, back.model) == (cache.n_prompt, cache.model)
    for a, b in zip(cache.layers, back.layers, strict=True):
        assert (a.index, a.kind) == (b.index, b.kind)
        assert torch.equal(a.positions, b.positions)
        for kind in KINDS:
            x, y = a.tensor(kind), b.tensor(kind)
            assert x.shape == y.shape and x.dtype == y.dtype and y.isfinite().all()


@every_case
@every_shape
def test_the_original_is_left_alone_and_not_needed_again(name, settings, shape):
    cache, small = compressed(name, settings, shape)
    before = [layer.tensor(kind).clone() for layer in cache.layers for kind in KINDS]
    first = small.restore()
    now = [layer.tensor(kind) for layer in cache.layers for kind in KINDS]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    for layer in cache.layers:  # whoever peeks at it sees this
        layer.keys.fill_(7)
        layer.values.fill_(7)
    again = small.restore()
    for a, b in zip(first.layers, again.layers, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


@every_case
@every_shape
def test_a_file_holds_what_is_counted_and_restores_bit_for_bit(name, settings, shape, tmp_path):
    _, small = compressed(name, settings, shape)
    file = tmp_path / "cache.safetensors"
    files.save(small, file)
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) == header + small.nbytes
    back = files.load(file)
    assert back.compressor == small.compressor and back.shape == small.shape
    assert back.nbytes == small.nbytes
    for a, b in zip(small.restore().layers, back.restore().layers, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


@every_case
def test_the_same_cache_gives_the_same_bytes(name, settings):
    _, one = compressed(name, settings, "alike")
    _, two = compressed(name, settings, "alike")
    assert one.stored.keys() == two.stored.keys()
    assert all(torch.equal(one.stored[key], two.stored[key]) for key in one.stored)


@every_case
@pytest.mark.parametrize("family", families.SETTINGS)
def test_every_family_goes_through(name, settings, family):
    cache = prefill(families.loaded(family), families.token_ids(24)).cache.in_16_bits()
    small = METHODS[name](**settings).compress(cache)
    back = small.restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        assert a.keys.shape == b.keys.shape and a.values.shape == b.values.shape


def test_bytes_count_kv_heads_not_query_heads():
    cache = prefill(families.loaded("llama_gqa"), families.token_ids(24)).cache
    # 2 layers x keys and values x 2 KV heads (of 4 query heads) x 24 tokens x 16 dims x 2 bytes
    assert METHODS["none"]().compress(cache.in_16_bits()).nbytes == 2 * 2 * 2 * 24 * 16 * 2


def test_a_file_of_another_format_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"format": "0"})
    with pytest.raises(ValueError, match="has format 0, not 1"):
        files.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_16_bits_are_what_a_cache_is_served_in(dtype):
    cache = caches.alike(dtype=dtype).in_16_bits()
    expected = torch.float16 if dtype == torch.float32 else dtype
    assert {layer.keys.dtype for layer in cache.layers} == {expected}
    large = caches.alike()
    large.layers[0].keys[0, 0, 0] = 1e5  # beyond float16
    assert large.in_16_bits().layers[0].keys.dtype == torch.bfloat16
