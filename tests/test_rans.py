"""The entropy coder: every 32-bit integer comes back exactly, at about the bytes it should take."""

from functools import cache as once

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compression.coded import rans

N_CLASSES = 5
EXTREMES = (-(2**31), 2**31 - 1, -(2**15), 2**15, -128, 128, -127, 127, 0)


@once
def tables(kind="laplace"):
    values = np.abs(np.arange(-rans.TOP, rans.TOP + 1))
    scales = 4.0 ** np.arange(N_CLASSES)[:, None] / 8
    weights = {
        "laplace": np.exp(-values / scales),
        "uniform": np.ones((N_CLASSES, len(values))),
        "only zero": np.tile(values == 0, (N_CLASSES, 1)).astype(float),
        "only escapes": np.zeros((N_CLASSES, len(values))),
    }[kind]
    escapes = np.full((N_CLASSES, 1), 1e-9)
    return rans.Tables(rans.frequencies(np.concatenate([escapes, weights], axis=1)))


def same_back(integers, classes, table):
    stored = rans.encode(integers, classes, table)
    back = rans.decode(dict(stored), classes, table)
    assert np.array_equal(back, integers)
    return stored


KINDS = ("laplace", "uniform", "only zero", "only escapes")


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_sum_to_their_whole_and_allow_an_escape(kind):
    frequencies = tables(kind).frequencies
    assert frequencies.shape == (N_CLASSES, rans.N_SYMBOLS)
    assert (frequencies.sum(1) == 2**14).all()
    assert (frequencies >= 0).all() and (frequencies[:, 0] >= 1).all()


whole = st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1))


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 400), st.sampled_from(KINDS))
def test_any_integers_come_back(data, n, kind):
    integers = data.draw(arrays.arrays(np.int32, n, elements=whole, fill=st.just(0)))
    classes = data.draw(arrays.arrays(np.int16, n, elements=st.integers(0, N_CLASSES - 1)))
    same_back(integers, classes, tables(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 20_001])  # one lane, two, many
@pytest.mark.parametrize("spread", [1.0, 1e5])
def test_every_sequence_comes_back(kind, n, spread):
    generator = np.random.default_rng(n)
    integers = np.rint(spread * generator.laplace(size=n)).astype(np.int32)
    classes = generator.integers(0, N_CLASSES, n).astype(np.uint8)
    same_back(integers, classes, tables(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_comes_back(kind):
    for value in EXTREMES:
        integers = np.full(600, value, np.int32)
        same_back(integers, np.zeros(600, np.uint8), tables(kind))


def test_escapes_take_as_many_bytes_as_they_need():
    classes = np.zeros(3, np.uint8)
    small = same_back(np.array([0, 2**15 - 1, 0], np.int32), classes, tables())
    large = same_back(np.array([0, -(2**15) - 1, 0], np.int32), classes, tables())
    none = same_back(np.array([0, 1, 0], np.int32), classes, tables())
    assert small["escapes"].dtype == torch.int16 and len(small["escapes"]) == 1
    assert large["escapes"].dtype == torch.int32 and len(large["escapes"]) == 1
    assert "escapes" not in none


def test_words_that_are_no_row_of_numbers_are_refused():
    stored = rans.encode(np.ones(9, np.int32), np.zeros(9, np.uint8), tables())
    stored["words"] = stored["words"].new_zeros(())
    with pytest.raises(ValueError, match="words holds"):
        rans.decode(stored, np.zeros(9, np.uint8), tables())


def test_many_lanes_come_back(monkeypatch):
    monkeypatch.setattr(rans, "SYMBOLS_PER_LANE", 16)
    n = rans.MOST_LANES * rans.SYMBOLS_PER_LANE + 77  # the last step is not full
    generator = np.random.default_rng(0)
    integers = np.rint(2 * generator.laplace(size=n)).astype(np.int32)
    stored = same_back(integers, np.full(n, 2, np.uint8), tables())
    assert len(stored["state"]) == rans.MOST_LANES


def test_a_stream_takes_what_its_entropy_says():
    n = 60_000
    table = tables()
    generator = np.random.default_rng(1)
    classes = generator.integers(0, N_CLASSES, n).astype(np.uint8)
    share = table.frequencies / 2**14
    integers = np.zeros(n, np.int32)
    for k in range(N_CLASSES):
        here = classes == k
        p = share[k, 1:] / share[k, 1:].sum()
        drawn = generator.choice(np.arange(-rans.TOP, rans.TOP + 1), here.sum(), p=p)
        integers[here] = drawn
    stored = same_back(integers, classes, table)
    bits = -np.log2(share[classes, integers + rans.TOP + 1]).sum()
    nbytes = sum(x.numel() * x.element_size() for x in stored.values())
    assert bits / 8 < nbytes < 1.03 * bits / 8


def test_tables_that_break_the_law_are_refused():
    good = tables().frequencies
    for bad in (good[:, 1:], good + 1, np.where(np.arange(256) == 0, 0, good)):
        with pytest.raises(ValueError, match=r"tables are|frequencies are"):
            rans.Tables(bad)
