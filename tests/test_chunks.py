"""Chunks that stand alone as bytes. What holds for every method, `coded_chunks` among them, is in
test_compression.py."""

import hashlib
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache as once

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression.coded import chunk_bytes, rans
from compression.coded.calibration import calibrate
from compression.coded.chunk_bytes import CHECKSUM_BYTES, HEAD, LENGTH, split
from compression.coded.chunked import CodedChunks, between
from compression.coded.chunks import ChunkCodec
from compression.coded.transform import read
from compression.shapes import LayerShape
from config import UsageError
from data.cache import KINDS
from tests import caches
from tests.caches import random_gradients

MODEL, OTHER = 64 * "a", 64 * "b"
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "100"))
few = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@once
def learned(name="alike", seed=0):
    draws = [random_gradients(caches.SHAPES[name](), seed + k) for k in (0, 1)]
    return calibrate(draws, "random", room=1)  # a basis for each layer, turned together


@once
def codec(name="alike", step=0.01, model=MODEL, seed=0):
    shapes = tuple(LayerShape.of(layer) for layer in caches.SHAPES[name]().layers)
    return ChunkCodec(shapes, model, learned(name, seed), step)


def given_layers(name="alike", start=0):
    """Keys, values and positions of a chunk of ten tokens."""
    layers = caches.SHAPES[name]().in_16_bits().layers
    return [x.keys for x in layers], [x.values for x in layers], torch.arange(start, start + 10)


def relative(x, y):
    return float((x.float() - y.float()).norm() / x.float().norm())


@pytest.mark.parametrize("start", [0, 1, 768, 10**6])
@pytest.mark.parametrize("name", ["alike", "half precision"])
def test_keys_and_values_come_back_as_near_as_the_step_says(name, start):
    keys, values, positions = given_layers(name, start)
    worst = []
    for step in (0.3, 0.03, 0.003):
        one = codec(name, step)
        back = one.decode(one.encode(keys, values, positions))
        pairs = [*zip(keys, back[0], strict=True), *zip(values, back[1], strict=True)]
        assert all(x.dtype == y.dtype and x.shape == y.shape for x, y in pairs)
        worst.append(max(relative(x, y) for x, y in pairs))
        if start == 0:  # the first token of a text is exact
            assert all(torch.equal(x[:, :1], y[:, :1]) for x, y in pairs)
    assert worst[0] > worst[1] > worst[2] and worst[2] < 0.02


def test_a_window_that_has_forgotten_tokens_is_part_of_a_chunk():
    cache = caches.mixed().in_16_bits()
    one = codec("mixed", 0.001)
    for start, end in ((0, 10), (0, 6), (2, 4), (0, 3), (9, 10)):
        layers = between(cache.layers, start, end)
        back = one.decode_layers(one.encode_layers(layers, start, end - start))
        for a, b in zip(layers, back, strict=True):
            assert torch.equal(a.positions, b.positions)
            assert all(a.tensor(k).shape == b.tensor(k).shape for k in KINDS)
            assert all(not a.n_tokens or relative(a.tensor(k), b.tensor(k)) < 0.02 for k in KINDS)


def test_any_chunk_of_a_stream_is_read_without_the_others():
    keys, values, _ = given_layers()
    one = codec()
    chunks = [one.encode(keys, values, torch.arange(s, s + 10)) for s in (0, 10, 20)]
    stream = b"".join(chunks)  # appended one behind the other
    assert [bytes(chunk) for chunk in split(stream)] == chunks
    last = one.decode(list(split(stream))[2])
    alone = one.decode(chunks[2])
    assert all(
        torch.equal(x, y) for x, y in zip(last[0] + last[1], alone[0] + alone[1], strict=True)
    )
    with pytest.raises(UsageError, match="bytes are due where"):
        list(split(stream[:-1]))


def test_a_chunk_of_another_model_or_calibration_is_refused_and_one_of_another_step_is_not():
    chunk = codec().encode(*given_layers())
    with pytest.raises(UsageError, match="The chunk is of model aaaaaaaaaaaa"):
        codec(model=OTHER).decode(chunk)
    with pytest.raises(UsageError, match="The chunk is of calibration"):
        codec(seed=5).decode(chunk)
    with pytest.raises(UsageError, match="The chunk is of model"):
        codec("mixed", model=OTHER).decode(chunk)  # of other sizes too
    one, other = codec(), codec(step=0.2)
    assert all(map(torch.equal, one.decode(chunk)[0], other.decode(chunk)[0]))


def test_a_chunk_of_another_format_is_refused():
    chunk = codec().encode(*given_layers())
    for other in (b"KVchunk2" + chunk[8:], b"", b"KVchunk3", 100 * b"\0"):
        with pytest.raises(UsageError, match="does not begin with KVchunk3"):
            codec().decode(other)


def test_what_is_no_chunk_of_the_model_is_refused():
    keys, values, positions = given_layers()
    one = codec()
    for wrong, said in (
        ((keys[:-1], values, positions), "keys of 3 layers"),
        (([k[:1] for k in keys], [v[:1] for v in values], positions), "those of the model are"),
        ((keys, values, positions * 2), "do not follow each other"),
        ((keys, values, positions - 1), "from position -1 on"),
        (([k / 0 for k in keys], values, positions), "holds NaN or Inf"),
    ):
        with pytest.raises(UsageError, match=said):
            one.encode(*wrong)
    long = [torch.zeros(3, 1025, 8, dtype=torch.float16)] * 4
    with pytest.raises(UsageError, match="A chunk of 1025 tokens"):
        one.encode(long, long, torch.arange(1025))
    windows_differ = [replace(x) for x in caches.SHAPES["alike"]().in_16_bits().layers]
    windows_differ[1] = windows_differ[1].between(slice(4, None))
    with pytest.raises(UsageError, match="for their windows differ"):
        one.encode_layers(windows_differ, 0, 10)
    none = [k[:, :0] for k in keys]
    with pytest.raises(UsageError, match="A chunk of 0 tokens"):
        one.encode(none, none, torch.arange(0))


@once
def a_chunk() -> bytes:
    return codec().encode(*given_layers())


@few
@given(st.data())
def test_damage_anywhere_is_found(data):
    chunk = bytearray(a_chunk())
    place = data.draw(st.integers(0, len(chunk) - 1))
    chunk[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UsageError):
        codec().decode(bytes(chunk))


def sealed(content: bytes) -> bytes:
    """With a length and a checksum that fit, as whoever means harm writes them."""
    content = content[:8] + struct.pack("<I", len(content) + CHECKSUM_BYTES) + content[12:]
    return content + hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).digest()


def parts(chunk: bytes) -> list[bytes]:
    """Head and sections."""
    body, found = chunk[HEAD.size : -CHECKSUM_BYTES], [chunk[: HEAD.size]]
    while body:
        (n,) = LENGTH.unpack_from(body)
        found.append(body[LENGTH.size : LENGTH.size + n])
        body = body[LENGTH.size + n :]
    return found


def joined(pieces: list[bytes]) -> bytes:
    return pieces[0] + b"".join(LENGTH.pack(len(x)) + x for x in pieces[1:])


def test_a_chunk_that_is_taken_apart_and_joined_again_is_the_same():
    chunk = codec().encode(*given_layers())
    assert sealed(joined(parts(chunk))) == chunk


@once
def a_chunk_of_mixed_layers() -> bytes:
    return codec("mixed").encode_layers(caches.mixed().in_16_bits().layers, 0, 10)


@few
@given(st.data())
def test_a_chunk_whose_checksum_fits_is_refused_or_of_the_sizes_it_claims(data):
    """Structure-aware: fields and sections are changed, and the seal is made to fit."""
    one, pieces = codec("mixed"), parts(a_chunk_of_mixed_layers())
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, len(pieces) - 1))
        piece = bytearray(pieces[which])
        change = data.draw(st.sampled_from(["byte", "cut", "grow", "swap", "side"]))
        if change == "byte" and piece:
            piece[data.draw(st.integers(0, len(piece) - 1))] = data.draw(st.integers(0, 255))
        elif change == "cut" and which:
            piece = piece[: data.draw(st.integers(0, len(piece)))]
        elif change == "grow" and which:
            piece += data.draw(st.binary(min_size=1, max_size=8))
        elif change == "swap" and which:
            piece = bytearray(pieces[data.draw(st.integers(1, len(pieces) - 1))])
        elif change == "side" and which == 1:
            piece = bytearray(side_with_another_byte(bytes(piece), data))
        pieces[which] = bytes(piece)
    try:
        layers = one.decode_layers(sealed(joined(pieces)))
    except UsageError:
        return
    for layer, shape in zip(layers, one.layers, strict=True):
        assert layer.n_tokens <= 1024 and layer.keys.shape[::2] == (shape.n_heads, shape.key_dim)
        assert layer.keys.isfinite().all() and layer.values.isfinite().all()


def side_with_another_byte(section, data):
    try:
        side = bytearray(zlib.decompress(section))
    except zlib.error:
        return section
    side[data.draw(st.integers(0, len(side) - 1))] = data.draw(st.integers(0, 255))
    return zlib.compress(bytes(side))


def test_a_side_that_inflates_without_end_is_refused_before_it_is_there():
    pieces = parts(codec().encode(*given_layers()))
    pieces[1] = zlib.compress(bytes(1 << 26), 9)
    with pytest.raises(UsageError, match="cannot be inflated to"):
        codec().decode(sealed(joined(pieces)))


@few
@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=300), st.data())
def test_adversarial_integers_go_through_a_chunk_exactly(integers, data):
    tables = read(learned()).tables
    n = len(integers)
    of_each = np.array(data.draw(st.lists(st.integers(16, 64), min_size=n, max_size=n)), np.uint8)
    coded = rans.encode(np.array(integers, np.int32), of_each, tables)
    escapes = coded.get("escapes", torch.zeros(0, dtype=torch.int16)).numpy()
    one = chunk_bytes.Chunk(
        MODEL, OTHER, 0.5, 3, 2, 0,
        *(np.zeros(1, dtype) for dtype in (np.uint16, np.uint8)),
        np.zeros(3, np.int8), np.array([0, 255, 1, 128], np.uint8),
        coded["state"].numpy(), coded["words"].numpy(), escapes, np.arange(3, dtype=np.int16),
    )  # fmt: skip
    back = chunk_bytes.read(chunk_bytes.written(one), n_groups=1, n_layers=1, n_columns=4)
    assert rans.decode(back.stream, of_each, tables).tolist() == integers
    assert back.codes.tolist() == [0, 255, 1, 128] and (back.start, back.step) == (3, 0.5)


def test_two_threads_agree_with_one():
    keys, values, _ = given_layers()
    starts = list(range(0, 120, 10))
    alone = codec()
    chunks = [alone.encode(keys, values, torch.arange(s, s + 10)) for s in starts]
    back = [alone.decode(chunk) for chunk in chunks]
    shared = replace(codec())  # one that has computed nothing yet
    with ThreadPoolExecutor(2) as pool:
        threads = pool.map(lambda s: shared.encode(keys, values, torch.arange(s, s + 10)), starts)
        assert list(threads) == chunks
        for one, two in zip(pool.map(shared.decode, chunks), back, strict=True):
            assert all(map(torch.equal, one[0] + one[1], two[0] + two[1]))


def test_a_cache_in_chunks_is_its_chunks_one_by_one():
    cache = caches.alike().in_16_bits()
    method = CodedChunks(step=0.01, chunk_tokens=4, calibration=learned())
    small = method.compress(cache)
    one = replace(codec(), model=64 * "0")
    for k, (start, end) in enumerate(((0, 4), (4, 8), (8, 10))):
        chunk = small.stored[f"chunks.{k}"].numpy().tobytes()
        assert chunk == one.encode_layers(between(cache.layers, start, end), start, end - start)
    swapped = dict(small.stored)
    swapped["chunks.0"], swapped["chunks.1"] = swapped["chunks.1"], swapped["chunks.0"]
    with pytest.raises(ValueError, match="not of positions 0 to 3"):
        method.decode(swapped, small.shape)


def test_recent_tokens_stay_exact_until_they_fill_a_chunk():
    cache = caches.alike().in_16_bits()
    for recent, plain in ((1, 2), (2, 2), (3, 6), (7, 10)):
        method = CodedChunks(step=0.3, chunk_tokens=4, recent_tokens=recent, calibration=learned())
        back = method.compress(cache).restore()
        exact = [
            (a.keys == b.keys).all(dim=(0, 2))
            for a, b in zip(cache.layers, back.layers, strict=True)
        ]
        assert all(bool(each[-plain:].all()) for each in exact)
        assert not any(bool(each[1 : 10 - plain].any()) for each in exact)
