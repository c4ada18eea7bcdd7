"""Many tensors as two, and the way back; what a stranger may claim of them."""

import json
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.packed import (
    CONTENT,
    DTYPES,
    INDEX,
    LARGEST_INFLATED,
    deflated,
    index,
    inflated,
    packed,
    unpacked,
)
from compression.stored import nbytes
from tests.mutations import change_place, places


def some(seed=0):
    """Tensors of every dtype, some without an entry, some without a dimension, one of no order."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{i}.{name}": torch.randint(0, 2, sizes, generator=generator).to(dtype)
        for name, dtype in DTYPES.items()
        for i, sizes in enumerate([(3,), (), (0, 4), (1, 2, 3), (5, 1)])
    }
    turned = torch.rand(3, 4, generator=generator).T
    return dict(sorted(tensors.items())) | {"turned": turned}


def same(one, two):
    return one.keys() == two.keys() and all(
        x.dtype == two[name].dtype and x.shape == two[name].shape and (x == two[name]).all()
        for name, x in one.items()
    )


def test_what_is_packed_comes_back_from_as_many_bytes():
    for tensors in (some(), {}):
        two = packed(tensors)
        assert two.keys() == {CONTENT, INDEX} and len(two[CONTENT]) == nbytes(tensors)
        back = unpacked(two[CONTENT], two[INDEX])
        assert same(back, tensors)


def test_the_index_is_of_names_dtypes_and_shapes_alone_in_whatever_order():
    tensors = some()
    turned = dict(reversed(tensors.items()))
    empty = {name: x.to("meta") for name, x in tensors.items()}
    for other in (some(1), turned, empty):
        assert torch.equal(index(other), index(tensors))
    assert torch.equal(packed(turned)[CONTENT], packed(tensors)[CONTENT])


def test_a_name_among_hundreds_takes_a_few_bytes():
    tensors = {
        f"{i}.{kind}.{part}": torch.zeros(size)
        for i in range(80)
        for kind in ("key", "value")
        for part, size in (("codes", 9), ("scales", 3), ("zeros", 3))
    }
    assert len(index(tensors)) < 3 * len(tensors)


def read(index):
    return json.loads(inflated(index, INDEX))


def written(rows):
    return deflated(json.dumps(rows).encode())


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({}, "takes a list"),
        ([["uint8", [4]]], "takes 3"),
        ([["float3", [4], ["a"]]], "of dtype float3"),
        ([["uint8", [-4], ["a"]]], "claims sizes"),
        ([["uint8", [0, 2**30, 2**30], ["a"]]], "claims sizes"),
        ([["uint8", [2**30, 2**9], ["a"]]], "goes beyond"),
        ([["uint8", [2], ["a", "a"]]], "there twice"),
        ([["uint8", [3], ["a"]]], "1 bytes belong to no tensor"),
        ([["uint8", [1], ["a"]], ["int16", [1], ["b"]]], "where no such tensor may lie"),
    ],
)
def test_an_index_that_is_not_of_the_content_is_refused(rows, reason):
    with pytest.raises(ValueError, match=reason):
        unpacked(torch.zeros(4, dtype=torch.uint8), written(rows))


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_whatever_an_index_says_it_is_refused_or_is_of_all_the_content(data):
    two = packed(some())
    rows = read(two[INDEX])
    for _ in range(data.draw(st.integers(1, 2))):
        found = list(places(rows))
        change_place(data.draw, *data.draw(st.sampled_from(found)))
    try:
        tensors = unpacked(two[CONTENT], written(rows))
    except ValueError:
        return
    assert nbytes(tensors) == len(two[CONTENT])


@pytest.mark.parametrize("size", [0, 1, 100, LARGEST_INFLATED, LARGEST_INFLATED + 1])
def test_bytes_come_back_however_they_are_kept(size):
    plain = np.random.default_rng(0).bytes(size)
    for data in (plain, bytes(size)):
        kept = deflated(data)
        assert inflated(kept, "x") == data and len(kept) <= size + 1
    assert (len(kept) < 2000) == (size <= LARGEST_INFLATED)  # only so much is kept deflated


def of(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def test_few_bytes_that_would_become_many_take_no_memory():
    bomb = of(b"\1" + zlib.compress(bytes(2**28), 9))
    tracemalloc.start()
    with pytest.raises(ValueError, match="it cannot be inflated"):
        inflated(bomb, "x")
    assert tracemalloc.get_traced_memory()[1] < 4 * LARGEST_INFLATED
    tracemalloc.stop()


def test_what_cannot_be_inflated_is_refused():
    good = bytes(deflated(bytes(100)).numpy())
    assert inflated(of(good), "x") == bytes(100)
    for bad in (good[:-1], good + b"\0", b"\2" + good[1:], good[:1], b"\1words", good[:5] + good):
        with pytest.raises(ValueError, match=r"it cannot be inflated|no known way"):
            inflated(of(bad), "x")
