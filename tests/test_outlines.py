"""Shapes of caches as bytes, and the way back; what a stranger may claim of them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression import outlines
from compression.file_parts import header_nbytes
from compression.outlines import FREQUENCIES, SHAPE, TOKEN_IDS
from compression.packed import deflated, inflated
from compression.registry import make
from compression.shapes import CacheShape, LayerShape
from data.rotary import NOT_ROTATED, Rotary
from tests import caches
from tests.mutations import change_place, places

PLAIN = Rotary((1.0, 0.25))  # what float32 holds
ROTARIES = (None, NOT_ROTATED, PLAIN, Rotary((0.1, 1 / 3), 1.25, True), Rotary((1e-300,)))


def of_layers(*layers, ids=(0, 1, 2, 3)):
    return CacheShape(tuple(layers), ids, 2, "a model")


def layer(index, rotary=PLAIN, **changes):
    return replace(LayerShape(index, "full", 2, 3, 4, 4, 1, "float16", rotary), **changes)


@pytest.mark.parametrize("shape", caches.SHAPES)
def test_the_shape_of_every_cache_comes_back(shape):
    of_cache = CacheShape.of(caches.SHAPES[shape]())
    assert_comes_back(of_cache)


def assert_comes_back(shape):
    stored = outlines.written(shape)
    assert outlines.read(stored) == shape and not stored


@pytest.mark.parametrize("last", [0, 255, 256, 65535, 65536, 2**31 - 1])
def test_token_ids_take_the_fewest_bytes_that_hold_them_all(last):
    ids = (*np.random.default_rng(0).integers(0, last, 400, endpoint=True).tolist(), last)
    shape = of_layers(layer(0), ids=ids)
    assert_comes_back(shape)
    each = 1 if last < 256 else 2 if last < 65536 else 4
    assert len(outlines.written(shape)[TOKEN_IDS]) <= 1 + each * len(ids)
    repeated = of_layers(layer(0), ids=(last,) * 4000)
    assert_comes_back(repeated)
    assert len(outlines.written(repeated)[TOKEN_IDS]) < 100


def test_a_token_id_that_no_dtype_holds_is_no_token_id():
    with pytest.raises(ValueError, match="no int32 holds"):
        outlines.written(of_layers(layer(0), ids=(2**31,) * 4))


def test_rotary_tables_are_kept_once_and_exactly():
    layers = [layer(i, rotary) for i, rotary in enumerate(ROTARIES * 3)]
    assert_comes_back(of_layers(*layers))
    stored = outlines.written(of_layers(*layers))
    assert len(inflated(stored[FREQUENCIES], "x")) == 8 * sum(
        len(rotary.frequencies) for rotary in ROTARIES if rotary is not None
    )
    exact = outlines.written(of_layers(*(layer(i) for i in range(9))))
    assert len(inflated(exact[FREQUENCIES], "x")) == 4 * 2


def test_layers_that_are_alike_are_described_once():
    def size(*layers):
        return sum(len(x) for x in outlines.written(of_layers(*layers)).values())

    one, more = size(layer(0)), size(*(layer(i) for i in range(80)))
    windows = size(*(layer(i, kind="sliding" if i % 6 else "full") for i in range(80)))
    assert more < one + 200 and windows < one + 300


def outline_of(stored):
    return json.loads(inflated(stored[SHAPE], SHAPE))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("layers", 0), [0, 7], "of a kind that is not there"),
        (("layers", 0), [0, -1], "of a kind that is not there"),
        (("layers", 0), [5, 0], "in the model's order"),
        (("layers", 0), [0], "takes 2"),
        (("alike", 0, "rotary"), 9, "a table that is not there"),
        (("alike", 0, "n_heads"), 0, "claims sizes"),
        (("alike", 0, "n_heads"), 2**40, "takes a whole number"),
        (("tables", 0, "pairs"), 10**9, "tables are not of"),
        (("tables", 0, "pairs"), -1, "turned by no angle"),
        (("tables", 0, "scaling"), 0.0, "scaled by 0"),
        (("frequencies",), "int8", "of dtypes"),
        (("ids",), "float64", "of dtypes"),
        (("n_prompt",), 9, "n_prompt 9 of 4"),
        (("more",), 9, "does not hold"),
    ],
)
def test_an_outline_that_is_of_no_cache_is_refused(path, value, reason):
    stored = outlines.written(of_layers(layer(0), layer(1, kind="sliding")))
    outline = outline_of(stored)
    *above, last = path
    place = outline
    for name in above:
        place = place[name]
    place[last] = value
    with pytest.raises(ValueError, match=reason):
        outlines.read(stored | {SHAPE: deflated(json.dumps(outline).encode())})


@pytest.mark.parametrize("frequencies", [[math.nan, 1], [math.inf, 1], [1], [1, 2, 3]])
def test_frequencies_that_are_none_of_the_tables_are_refused(frequencies):
    stored = outlines.written(of_layers(layer(0)))
    numbers = np.array(frequencies, "<f4").tobytes()
    for data in (numbers, numbers + b"\0"):
        with pytest.raises(ValueError, match=r"no angle|not of|no numbers"):
            outlines.read(stored | {FREQUENCIES: deflated(data)})


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_whatever_an_outline_says_it_is_refused_or_is_a_shape(data):
    shape = of_layers(*(layer(i, rotary) for i, rotary in enumerate(ROTARIES)))
    stored = outlines.written(shape)
    outline = outline_of(stored)
    for _ in range(data.draw(st.integers(1, 2))):
        change_place(data.draw, *data.draw(st.sampled_from(list(places(outline)))))
    try:
        read = outlines.read(stored | {SHAPE: deflated(json.dumps(outline).encode())})
    except ValueError:
        return
    assert isinstance(read, CacheShape) and len(read.token_ids) > 0


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("kivi", {"sink_tokens": 4, "recent_tokens": 64}),
        ("int8", {"sink_tokens": 4, "recent_tokens": 64}),
        ("tucker_quantised", {"token_rank": 2, "embedding_rank": 2, "sink_tokens": 4}),
        ("recent", {}),
        ("composed", {"eviction": {"name": "recent"}, "then": {"name": "kivi"}}),
    ],
)
def test_a_header_is_small_beside_thousands_of_token_ids(name, chosen):
    """At the default model's shape: 30 layers of 3 heads of 64 dims; token ids by chance."""
    ids = torch.randint(0, 49152, (2048,), generator=torch.Generator().manual_seed(0))
    few = caches.cache(*(caches.layer(i, 3, 80, (64, 64)) for i in range(30)))
    small = make(name, chosen).compress(few)
    shape = replace(small.shape, token_ids=tuple(ids.tolist()))
    assert header_nbytes(small.stored, shape, small.header()) <= 8000
