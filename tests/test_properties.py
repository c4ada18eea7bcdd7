"""What must hold for any input at all: packed codes and integers come back. Those that are entropy
coded are in test_rans.py."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compression.coded import fixed_rate
from compression.methods.packing import nbytes_of, pack, unpack

shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)
unhurried = settings(deadline=None, max_examples=60)


@unhurried
@given(st.data(), st.integers(1, 8), shapes)
def test_packed_codes_come_back(data, bits, shape):
    codes = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    stored = pack(torch.from_numpy(codes), bits)
    assert stored.dtype == torch.uint8 and len(stored) == nbytes_of(codes.size, bits)
    assert torch.equal(unpack(stored, bits, shape), torch.from_numpy(codes))


integers = st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1))


@unhurried
@given(st.data(), st.integers(0, 300))
def test_integers_of_fixed_width_come_back(data, n):
    values = data.draw(arrays.arrays(np.int32, n, elements=integers, fill=st.just(0)))
    assert np.array_equal(fixed_rate.decode(fixed_rate.encode(values), n), values)
