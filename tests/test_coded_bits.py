"""Integers of `coded`: what of each token they take, and those of `coded_fixed`."""

import numpy as np
import pytest
import torch

from compression.coded import fixed_rate, segments
from compression.coded import method as method_module
from compression.coded.calibration import calibrate
from compression.coded.coefficients import integers_of
from compression.coded.fixed import CodedFixed
from compression.coded.method import Coded
from compression.coded.transform import level_of_mean, read
from compression.shapes import CacheShape
from data.cache import KINDS
from tests import caches
from tests.bruteforce import coded_places
from tests.caches import equal, random_gradients
from tests.coded_shapes import SHAPES, learned, method


def test_integers_of_fixed_width_restore_the_same_cache_at_more_bytes():
    cache = caches.cache(*(caches.layer(i, 2, 400, (8, 8)) for i in range(2))).in_16_bits()
    calibration = calibrate([random_gradients(cache, seed) for seed in range(2)], "gradients")
    coded, fixed = (way(0.01, calibration=calibration) for way in (Coded, CodedFixed))
    coded, fixed = coded.compress(cache), fixed.compress(cache)
    assert equal(coded.restore(), fixed.restore())
    assert coded.nbytes < fixed.nbytes


def test_integers_of_fixed_width_are_decoded_by_tensor_operations_alone(monkeypatch):
    cache = caches.mixed().in_16_bits()
    small = CodedFixed(step=0.01, calibration=learned("mixed")).compress(cache)
    expected = small.restore()

    def out_of_torch(*_):
        raise AssertionError("a tensor went to numpy")

    for name in ("numpy", "__array__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, out_of_torch)
    assert equal(small.restore(), expected)


def bits_by_hand(coder, cache, cost):
    """Of each token: 16 for each entry of the first ones, of the others what `cost` gives for each
    integer, by its number, itself and its class; and its share of the others."""
    transform, spent, n_integers = read(coder.calibration), [0.0] * cache.n_tokens, 0
    levels = transform.levels(cache)
    for layer in cache.layers:
        for position in layer.positions.tolist()[: coder.sink_tokens]:
            spent[position] += 16 * sum(layer.tensor(kind)[:, 0].numel() for kind in KINDS)
    first = min(int(layer.positions[0]) for layer in cache.layers) + coder.sink_tokens
    of_mean = level_of_mean(levels[first:])
    for group in transform.groups:
        held = cache.layers[group.layers[0]].positions[coder.sink_tokens :]
        with_mean = torch.cat([of_mean, levels[held]])
        places = slice(coder.sink_tokens, None)
        codes, integers, of_integers = integers_of(
            cache.layers, group, places, with_mean, coder.step
        )
        coded = coded_places(codes, with_mean)
        for q, of_q, (_, place) in zip(integers, of_integers, coded, strict=True):
            bits = cost(n_integers, int(q), int(of_q))
            n_integers += 1
            if place:
                spent[int(held[place - 1])] += bits
    rest = 8 * coder.compress(cache).nbytes - sum(spent)
    return [each + rest / cache.n_tokens for each in spent]


@pytest.mark.parametrize("shape", ["alike, watched", "mixed, watched"])
@pytest.mark.parametrize(("step", "sinks", "kept"), [(0.3, 1, 0), (0.003, 0, 16), (1e-5, 2, 32)])
def test_bits_of_a_token_are_those_of_its_integers(shape, step, sinks, kept):
    cache = SHAPES[shape]().in_16_bits()
    coder = method(shape, step=step, sink_tokens=sinks)
    stored = coder.encode(cache)
    assert kept == (8 * stored["escapes"].element_size() if "escapes" in stored else 0)

    def cost(k, q, of_q):
        row = read(coder.calibration).tables.frequencies[of_q].tolist()
        alone = row[q + 128] if abs(q) <= 127 else 0
        return 14 - np.log2(alone) if alone else 14 - np.log2(row[0]) + kept

    expected = bits_by_hand(coder, cache, cost)
    bits = coder.bits_by_token(stored, CacheShape.of(cache))
    np.testing.assert_allclose(bits, expected, rtol=1e-5)


@pytest.mark.parametrize("n_tokens", [400, 800])
def test_what_integers_take_are_the_bytes_of_their_stream(n_tokens, monkeypatch):
    """Beside the states of the entropy coder, of which each begins with 16 bits of nothing, and for
    each token a byte of precision. Parts of a long text are told as they are coded."""
    layers = (caches.layer(i, 3, n_tokens, (8, 8)) for i in range(4))
    cache = caches.watched(caches.cache(*layers)).in_16_bits()
    coder = method("alike, watched", step=0.003, sink_tokens=0)
    monkeypatch.setattr(segments, "MOST_ENTRIES", 400 * 3 * 16 * 4)
    stored = coder.encode(cache)
    bits = coder.bits_by_token(stored, CacheShape.of(cache))
    assert any(name.startswith("segments.1.") for name in stored) == (n_tokens == 800)

    def nbytes(*words):
        return sum(x.numel() * x.element_size() for n, x in stored.items() if n.endswith(words))

    integers = nbytes("words", "escapes") + nbytes("state") / 2
    monkeypatch.setattr(method_module, "shared_out", lambda bits, stored: bits)
    alone = coder.bits_by_token(stored, CacheShape.of(cache))
    assert alone.sum() == pytest.approx(8 * integers, rel=0.01)
    assert bits.max() > 1.2 * bits.min()


def test_bits_of_a_token_in_blocks_of_one_width_are_those_of_its_blocks():
    cache = SHAPES["mixed, watched"]().in_16_bits()
    coder = CodedFixed(step=0.003, calibration=learned("mixed, watched"))
    every = []
    bits_by_hand(coder, cache, lambda k, q, _: every.append(2 * q if q >= 0 else -2 * q - 1) or 0)
    blocks = [every[start : start + 64] for start in range(0, len(every), 64)]
    widths = [max(block).bit_length() for block in blocks]
    expected = bits_by_hand(coder, cache, lambda k, q, _: widths[k // 64])
    bits = coder.bits_by_token(coder.encode(cache), CacheShape.of(cache))
    np.testing.assert_allclose(bits, expected, rtol=1e-5)
    assert len(set(widths)) > 1


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("bits", [0, 1, 8, 9, 24, 31])
def test_integers_of_any_width_come_back_from_blocks_of_one(n, bits):
    integers = torch.randint(-(2**bits), 2**bits, (n,)).clamp(max=2**31 - 2).int()
    integers[-1] = -(2**bits) + 1
    stored = fixed_rate.encode(integers.numpy())
    assert torch.equal(fixed_rate.decode(stored, n), integers)
