"""The contract of every registered method, over the settings here and every awkward cache."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache as once
from functools import reduce

import pytest
import torch

from compression import files
from compression.base import Compressor
from compression.costs import joined
from compression.ledger import HEADER, ledger
from compression.registry import METHODS, make
from compression.stored import digest, nbytes
from config import UsageError
from data.cache import KINDS
from tests import caches, families
from tests.caches import equal
from tests.contract import (
    CASES,
    KINDS_OF_CACHE,
    SETTINGS,
    asks_for_attention,
    calibration_for,
    method_for,
    of_family,
)
from tests.made import Made

every_case = pytest.mark.parametrize(("name", "number"), CASES, ids=str)
every_shape = pytest.mark.parametrize("shape", caches.SHAPES)


@once
def of_shape(shape):
    """Makes a cache of this shape, with attention; always the same function for it."""
    return lambda: caches.watched(caches.SHAPES[shape]())


@once
def compressed(name, number, shape):
    cache = of_shape(shape)().in_16_bits()
    return cache, method_for(name, number, of_shape(shape)).compress(cache)


@once
def restored(name, number, shape):
    return compressed(name, number, shape)[1].restore()


def same(one, two):
    """Whether the same is stored."""
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


def test_every_method_is_under_contract():
    assert set(SETTINGS) == set(METHODS)


@every_case
@every_shape
def test_what_is_restored_has_the_shape_dtype_and_places_of_the_original(name, number, shape):
    cache, back = compressed(name, number, shape)[0], restored(name, number, shape)
    assert torch.equal(back.token_ids, cache.token_ids)
    assert (back.n_prompt, back.model) == (cache.n_prompt, cache.model)
    for a, b in zip(cache.layers, back.layers, strict=True):
        assert (a.index, a.kind) == (b.index, b.kind)
        assert torch.equal(a.positions, b.positions)
        for kind in KINDS:
            x, y = a.tensor(kind), b.tensor(kind)
            assert x.shape == y.shape and x.dtype == y.dtype and y.isfinite().all()


@every_case
@pytest.mark.parametrize("shape", ["alike", "mixed"])
def test_the_original_is_left_alone_and_not_needed_again(name, number, shape):
    cache, before = (of_shape(shape)().in_16_bits() for _ in range(2))
    small = method_for(name, number, of_shape(shape)).compress(cache)
    assert equal(cache, before)
    for layer in cache.layers:  # whoever peeks at it sees this
        layer.keys.fill_(7)
        layer.values.fill_(7)
    assert equal(small.restore(), restored(name, number, shape))


TOGETHER = {"coded", "coded_fixed", "coded_chunks", "kvtc", "tucker", "tucker_quantised",
         "cross_layer_svd", "dropped_dims", "calibrated_pca", "importance", "zero_small",
         "merged_heads"}  # fmt: skip


@every_case
@every_shape
def test_layers_one_by_one_give_what_all_together_give_where_a_method_says_so(name, number, shape):
    cache, whole = compressed(name, number, shape)
    method = method_for(name, number, of_shape(shape))
    within = {m.name for m in (method, *vars(method).values()) if isinstance(m, Compressor)}
    assert method.by_layer == (not within & TOGETHER)
    if not method.by_layer:
        return
    parts = [method.compress(replace(cache, layers=(layer,))) for layer in cache.layers]
    assert sum(part.nbytes for part in parts) == whole.nbytes
    assert reduce(joined, parts).file_nbytes == whole.file_nbytes
    alone = [digest({"": x}) for part in parts for x in part.stored.values()]
    assert Counter(alone) == Counter(digest({"": x}) for x in whole.stored.values())
    back = [part.restore().layers[0] for part in parts]
    for one, of_all in zip(back, restored(name, number, shape).layers, strict=True):
        assert all(torch.equal(one.tensor(kind), of_all.tensor(kind)) for kind in KINDS)
        assert (one.keep is None) == (of_all.keep is None)
        assert one.keep is None or torch.equal(one.keep, of_all.keep)


@every_case
@pytest.mark.parametrize("shape", ["alike", "mixed"])
def test_a_run_in_float32_stores_the_bytes_of_16_bits(name, number, shape):
    small = method_for(name, number, of_shape(shape)).compress(of_shape(shape)())
    served = compressed(name, number, shape)[1]
    assert same(small.stored, served.stored) and small.shape == served.shape


@every_case
@every_shape
def test_a_file_holds_what_is_counted_and_restores_bit_for_bit(name, number, shape, tmp_path):
    _, small = compressed(name, number, shape)
    file = tmp_path / "cache.safetensors"
    files.save(small, file)
    content = file.read_bytes()
    assert len(content) == small.file_nbytes == small.nbytes + small.header_nbytes
    assert small.stored_nbytes == (small.nbytes if name == "none" else len(content))
    assert small.ratio == small.shape.nbytes / small.stored_nbytes
    back = files.load(file, calibration_for(name, number, of_shape(shape)))
    assert back.compressor == small.compressor and back.shape == small.shape
    assert same(back.stored, small.stored)
    assert equal(back.restore(), restored(name, number, shape))


@every_case
@every_shape
def test_a_ledger_names_every_byte_once(name, number, shape):
    assert_the_ledger_is_whole(compressed(name, number, shape)[1])


def assert_the_ledger_is_whole(small):
    """Bytes are those of the tensors, parts are told apart, in words, of layers that there are."""
    table = ledger(small)
    header = table["part"] == HEADER.words
    once = table["once_per_model"]
    assert table.loc[~once, "bytes"].sum() == small.stored_nbytes
    assert table.loc[header, "bytes"].tolist() == [small.stored_nbytes - small.nbytes]
    assert table.loc[once, "bytes"].sum() == small.compressor.per_model_nbytes
    assert not table.duplicated(["layers", "kind", "part", "once_per_model"]).any()
    assert set(table["kind"]) <= {*KINDS, "both", ""}
    assert all(re.fullmatch(r"[A-Za-z0-9 ,-]{4,}", part) for part in table["part"])
    for parts in (small.ledger, small.learned):
        assert {i for part in parts for i in part.layers} <= {x.index for x in small.shape.layers}
        assert all(list(part.layers) == sorted(set(part.layers)) for part in parts)
    own = nbytes_by_layer_and_kind(small)
    if own is not None:
        assert own == {
            (i, part.kind): sum(
                n for p, n in small.ledger.items() if (p.layers, p.kind) == ((i,), part.kind)
            )
            for part in small.ledger
            for i in part.layers
        }


def nbytes_by_layer_and_kind(small):
    """Told by the names of the tensors, where these are of a layer and of keys or values each."""
    counted = Counter()
    for stored, tensor in small.stored.items():
        found = re.match(r"(?:then\.)?(?:ends\.)?(\d+)\.(key|value|keep)", stored)
        if found is None or small.compressor.name in TOGETHER:
            return None
        kind = "both" if found[2] == "keep" else found[2]
        counted[small.shape.layers[int(found[1])].index, kind] += nbytes({"": tensor})
    return counted


@every_case
@every_shape
def test_bits_of_tokens_are_those_of_all_that_is_stored(name, number, shape):
    small = compressed(name, number, shape)[1]
    bits = small.bits_by_token
    if bits is not None:
        assert bits.shape == (len(small.shape.token_ids),) and bits.dtype == torch.float64
        assert bits.sum().item() == pytest.approx(8 * small.stored_nbytes)
        assert (bits >= 0).all()


@every_case
def test_settings_go_through_json_to_an_equal_method(name, number):
    method = method_for(name, number, of_shape("alike"))
    settings = json.loads(json.dumps(method.settings()))
    assert "calibration" not in settings
    again = make(name, settings, method.calibration)
    assert again == method and hash(again) == hash(method)
    assert again.settings() == method.settings() and again.words() == method.words()
    assert again.per_model_nbytes == method.per_model_nbytes


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", KINDS_OF_CACHE)
def test_every_kind_of_cache_goes_through_every_method(family, name):
    cache = of_family(family)().in_16_bits()
    for number in range(len(SETTINGS[name])):
        method = method_for(name, number, of_family(family))
        if family in families.WITHOUT_PROBE and asks_for_attention(method):
            with pytest.raises(UsageError, match="does not show its attention"):
                method.compress(cache)
            continue
        small = method.compress(cache)
        assert_the_ledger_is_whole(small)
        back = small.restore()
        for a, b in zip(cache.layers, back.layers, strict=True):
            assert a.index == b.index and a.rotary == b.rotary
            assert a.keys.shape == b.keys.shape and a.values.shape == b.values.shape


def test_bytes_count_kv_heads_not_query_heads():
    # 2 layers x keys and values x 2 KV heads (of 4 query heads) x 24 tokens x 16 dims x 2 bytes
    assert make("none").compress(of_family("llama_gqa")()).nbytes == 2 * 2 * 2 * 24 * 16 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_16_bits_are_what_a_cache_is_served_in(dtype):
    cache = caches.alike(dtype=dtype).in_16_bits()
    expected = torch.float16 if dtype == torch.float32 else dtype
    assert {layer.keys.dtype for layer in cache.layers} == {expected}
    large = caches.alike()
    large.layers[0].keys[0, 0, 0] = 1e5  # beyond float16
    assert large.in_16_bits().layers[0].keys.dtype == torch.bfloat16


SHORT, LONG = 1 << 9, 1 << 11


@once
def of_tokens(n_tokens):
    """Makes a cache of so many tokens."""
    layers = [caches.layer(i, 3, n_tokens, (8, 8), dtype=torch.float16) for i in range(4)]
    return lambda: caches.watched(caches.cache(*layers))


# Of chunks only the usual ones: hundreds of those of a few tokens take a minute.
LONG_CASES = [case for case in CASES if case not in [("coded_chunks", 0), ("coded_chunks", 1)]]


@pytest.mark.parametrize(("name", "number"), LONG_CASES, ids=str)
@pytest.mark.parametrize("way", ["compress", "restore"])
def test_no_tensor_is_of_tokens_by_tokens_and_no_step_of_one_token(name, number, way):
    method = method_for(name, number, of_tokens(SHORT))
    operations = []
    for cache in (of_tokens(SHORT)(), of_tokens(LONG)()):
        small = method.compress(cache)
        with Made() as made:
            method.compress(cache) if way == "compress" else small.restore()
        operations.append(made.operations)
    assert made.largest <= 4 * cache.n_entries  # a head's tokens x tokens are ten times as many
    if name != "coded_chunks":  # whose chunks stand alone, each a step of its own
        assert operations[1] - operations[0] < LONG - SHORT  # some methods take blocks of tokens
