"""The contract of every registered method, over the settings here and every awkward cache."""

from functools import lru_cache

import pytest
import torch

from compression import files
from compression.calibration import calibrate
from compression.dimensions import fitted_bases
from compression.methods import METHODS
from config import UsageError
from data.cache import KINDS
from data.extraction import prefill
from tests import caches, families
from tests.test_coded import draw

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
SETTINGS |= {
    "merged_dims": [{"keep": 0.5}, {"keep": 1.0, "similarity": 0.3, "largest": 3}],
    "dropped_dims": [{"keep": 0.5}, {"sparser": 0.2}, {"sparser": 0.2, "at_random": 1}],
    "embedding_factor": [
        {"keep": 0.5, "unrotated_keys": True, "sink_tokens": 2, "recent_tokens": 1}
    ],
    "pca": [{"keep": 0.25}, {"keep": 1.0}],
    "calibrated_pca": [{"keep": 0.5}, {"keep": 1.0, "unrotated_keys": True}],
    "evict": [{}, {"layers": (0, 3)}, {"heads": ((0, 0), (2, 1)), "layers": (5,)}],
    "evict_tokens": [
        {"keep": 0.5, "score": "recent"},
        {"keep": 0.4, "score": "key_norm", "sink_tokens": 1},
        {"keep": 0.4, "score": "attention"},
        {"keep": 0.9, "score": "importance"},
        {"keep": 0.1, "score": "random", "seed": 3, "sink_tokens": 0},
    ],
    "zero_small": [{"percentage": 0.0}, {"percentage": 20.0}],
    "merged_heads": [{}, {"unrotated_keys": True}],  # groups of heads: test_merging.py
    "merged_tokens": [{"similarity": 0.2}, {"similarity": 1.0, "unrotated_keys": True}],
}
SETTINGS |= {
    "coded": [{"step": 0.03}, {"step": 0.3, "sink_tokens": 4}, {"step": 1e-3, "sink_tokens": 0}],
    "coded_fixed": [{"step": 0.03}, {"step": 1e-4, "sink_tokens": 0}],
    "fp8": [{}, {"sink_tokens": 1, "recent_tokens": 2}],
    "int8": [{}],
    "kivi": [{"bits": 4, "recent_tokens": 0}, {"bits": 3, "group": 4, "recent_tokens": 2}],
    "rotated": [{"bits": 3}, {"bits": 2, "unrotated_keys": True, "sink_tokens": 1}],
    "svd": [{"keep": 0.5}, {"keep": None, "energy": 0.9, "unrotated_keys": True}],
    "cross_layer_svd": [{"keep": 0.5, "group": 2}, {"keep": 1.0, "sink_tokens": 1}],
    "tucker_quantised": [
        {"token_rank": 1, "embedding_rank": 1},
        {"token_rank": 1, "embedding_rank": 1, "bits": 4},
    ],
    "heavy_hitter": [{"keep": 0.5}],
    "snapkv": [{"keep": 0.5, "recent_tokens": 2}],
    "key_diff": [{"keep": 0.3, "sink_tokens": 1, "recent_tokens": 1}],
    "composed": [
        {"eviction": {"name": "key_diff", "keep": 0.5}, "then": {"name": "int8"}},
        {
            "eviction": {"name": "evict_tokens", "keep": 0.4, "score": "recent"},
            "then": {"name": "rotated", "bits": 4, "unrotated_keys": True},
        },
    ],
}
NEEDS_ATTENTION = {"heavy_hitter", "snapkv"}
CASES = [(name, settings) for name, each in SETTINGS.items() for settings in each]
every_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
every_shape = pytest.mark.parametrize("shape", caches.SHAPES)


def method_for(name, settings, cache):
    """With what it would have learned of a model on another text with caches of these shapes."""
    if name.startswith("coded"):
        return METHODS[name](**settings, model_side=calibrate([draw(cache)], "random gradients"))
    if name != "calibrated_pca":
        return METHODS[name](**settings)
    side = fitted_bases([cache], settings.get("unrotated_keys", False), "another text")
    return METHODS[name](**settings, model_side=side)


def compressed(name, settings, shape):
    cache = caches.SHAPES[shape]().in_16_bits()
    cache = caches.with_attention(cache, caches.random_attention(cache))
    return cache, method_for(name, settings, cache).compress(cache)


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
    back = files.load(file, small.compressor.model_side)
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


@lru_cache
def family_cache(family):
    start = prefill(families.loaded(family), families.token_ids(24), probe=True)
    return start.cache.in_16_bits()


@every_case
@pytest.mark.parametrize("family", families.SETTINGS)
def test_every_family_goes_through(name, settings, family):
    cache = family_cache(family)
    asks = name in NEEDS_ATTENTION or settings.get("score") in ("attention", "importance")
    if family in families.WITHOUT_PROBE and asks:
        with pytest.raises(UsageError, match="does not show its attention"):
            method_for(name, settings, cache).compress(cache)
        return
    small = method_for(name, settings, cache).compress(cache)
    back = small.restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        assert a.keys.shape == b.keys.shape and a.values.shape == b.values.shape


def test_bytes_count_kv_heads_not_query_heads():
    cache = prefill(families.loaded("llama_gqa"), families.token_ids(24)).cache
    # 2 layers x keys and values x 2 KV heads (of 4 query heads) x 24 tokens x 16 dims x 2 bytes
    assert METHODS["none"]().compress(cache.in_16_bits()).nbytes == 2 * 2 * 2 * 24 * 16 * 2


def test_a_file_of_another_format_is_refused(tmp_path):
    from safetensors.torch import save_file

    for format in ("0", "1"):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"format": format})
        with pytest.raises(UsageError, match="no compressed cache of format 1"):
            files.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("at", [0, 9, 60, -1, -100])
def test_a_damaged_file_is_refused_and_never_wrong_tensors(tmp_path, at):
    file = tmp_path / "cache.safetensors"
    files.save(METHODS["pca"]().compress(caches.alike().in_16_bits()), file)
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(UsageError):
        files.load(file)


def test_a_truncated_file_is_refused(tmp_path):
    file = tmp_path / "cache.safetensors"
    files.save(METHODS["pca"]().compress(caches.alike().in_16_bits()), file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UsageError, match="is damaged"):
        files.load(file)


def test_no_fact_of_a_damaged_header_is_believed(tmp_path):
    file = tmp_path / "cache.safetensors"
    one = caches.cache(caches.layer(0, 1, 2, (2, 2))).in_16_bits()
    files.save(METHODS["none"]().compress(one), file, model="of these weights")
    assert files.read_facts(file)["model"] == "of these weights"
    content = file.read_bytes()
    for at in range(8 + int.from_bytes(content[:8], "little")):
        flipped = bytes([content[at] ^ 1 << at % 8])
        file.write_bytes(content[:at] + flipped + content[at + 1 :])
        with pytest.raises(UsageError, match="is damaged"):
            files.read_facts(file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_16_bits_are_what_a_cache_is_served_in(dtype):
    cache = caches.alike(dtype=dtype).in_16_bits()
    expected = torch.float16 if dtype == torch.float32 else dtype
    assert {layer.keys.dtype for layer in cache.layers} == {expected}
    large = caches.alike()
    large.layers[0].keys[0, 0, 0] = 1e5  # beyond float16
    assert large.in_16_bits().layers[0].keys.dtype == torch.bfloat16
