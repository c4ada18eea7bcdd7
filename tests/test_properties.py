"""What must hold for any input at all: packed codes, bits and coded integers come back."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compression import fixed_rate
from compression.bits import packed, unpacked
from compression.packing import nbytes_of, pack, unpack
from tests.test_rans import KINDS, N_CLASSES, same_back, tables

shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)
unhurried = settings(deadline=None, max_examples=60)


@unhurried
@given(st.data(), st.integers(1, 8), shapes)
def test_packed_codes_come_back(data, bits, shape):
    codes = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    stored = pack(torch.from_numpy(codes), bits)
    assert stored.dtype == torch.uint8 and len(stored) == nbytes_of(codes.size, bits)
    assert torch.equal(unpack(stored, bits, shape), torch.from_numpy(codes))


@unhurried
@given(arrays.arrays(np.bool_, shapes))
def test_packed_booleans_come_back(flags):
    stored = packed(torch.from_numpy(flags))
    assert len(stored) == nbytes_of(flags.size, 1)
    assert torch.equal(unpacked(stored, flags.shape), torch.from_numpy(flags))


integers = st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1))


@unhurried
@given(st.data(), st.integers(0, 300))
def test_integers_of_fixed_width_come_back(data, n):
    values = data.draw(arrays.arrays(np.int32, n, elements=integers, fill=st.just(0)))
    assert np.array_equal(fixed_rate.decode(fixed_rate.encode(values), n), values)


@unhurried
@given(st.data(), st.integers(0, 400), st.sampled_from(KINDS))
def test_coded_integers_come_back(data, n, kind):
    values = data.draw(arrays.arrays(np.int32, n, elements=integers, fill=st.just(0)))
    classes = data.draw(arrays.arrays(np.int16, n, elements=st.integers(0, N_CLASSES - 1)))
    same_back(values, classes, tables(kind))
