"""`coded`: the transform, the integers and the way back, on caches of every shape and family. What
holds for every method is in test_compression.py."""

import math
import tracemalloc
from dataclasses import replace
from functools import cache as once

import numpy as np
import pytest
import torch

from compression.coded import coefficients, fixed_rate, segments
from compression.coded import method as method_module
from compression.coded.calibration import calibrate
from compression.coded.coefficients import integers_of
from compression.coded.fixed import CodedFixed
from compression.coded.method import Coded
from compression.coded.transform import (
    level_of_mean,
    read,
)
from compression.costs import relative_errors
from compression.shapes import CacheShape
from config import UsageError
from data.cache import KINDS, wide
from data.extraction import prefill
from data.sensitivity import sensitivities, windows
from tests import caches, families
from tests.bruteforce import coded_places, dense_basis
from tests.caches import equal, random_gradients

STEPS = (0.3, 0.03, 0.003)
SHAPES = caches.SHAPES | {
    f"{shape}, watched": lambda make=make: caches.watched(make())
    for shape, make in caches.SHAPES.items()
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


@once
def learned(shape):
    """What is calibrated on random gradients by this cache; with no room where it is watched, so
    that each layer has a basis of its own and is turned with the others."""
    cache, room = SHAPES[shape](), 1 if "watched" in shape else math.inf
    return calibrate([random_gradients(cache, seed) for seed in range(3)], "random gradients", room)


def method(shape, **settings):
    return Coded(**settings, calibration=learned(shape))


@every_shape
@pytest.mark.parametrize("sinks", [1, 4, 1000])
def test_first_tokens_are_exact_and_the_others_finite(shape, sinks):
    cache = SHAPES[shape]().in_16_bits()
    back = method(shape, step=0.03, sink_tokens=sinks).compress(cache).restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        for kind in KINDS:
            x, y = a.tensor(kind), b.tensor(kind)
            assert torch.equal(x[:, :sinks], y[:, :sinks]) and y.isfinite().all()


def by_hand(cache, calibration, step, sinks):
    """(layer, kind) -> (tokens, dim), each coefficient quantised in plain Python."""
    transform, restored = read(calibration), {}
    for group in transform.groups:
        parts = []
        for i, kind in group.places:
            layer = cache.layers[i]
            x = layer.unrotated_keys() if kind == "key" else layer.values.float()
            parts.append(wide(x)[sinks:])
        x = torch.cat(parts, dim=1)
        basis, root = dense_basis(group)
        exact = (x.double() - group.mean.double()) @ root @ basis
        off = x - group.mean
        mean = off.mean(0)
        products = group.products(off.device)
        c, mean = (products.coefficients(y).T for y in (off - mean, mean[None]))
        mean = mean[0]
        assert torch.allclose((c + mean).double(), exact, atol=1e-5 * float(exact.abs().max()))
        levels = transform.levels(cache).numpy()
        held = cache.layers[group.layers[0]].positions[sinks:]
        of_all = level_by_hand(levels[sinks:])
        x = quantised_by_hand(c, mean, of_all, levels[held], step)
        x = x @ basis.T @ torch.linalg.inv(root) + group.mean
        restored |= dict(zip(group.places, x.split(group.widths, dim=1), strict=True))
    return restored


def level_by_hand(levels):
    """That of a token which weighs 16 times as much as all, a weight being 2^(2 level / 8)."""
    return min(127, round(4 * np.log2(16 * np.exp2(levels / 4.0).sum())))


def quantised_by_hand(c, means, of_all, levels, step):
    """(tokens, columns) in float64: the mean as coded, and what is left of each token as coded, of
    coefficients (tokens, columns) that are off their (columns,) means. Sums and products are in
    float32, in which a tie falls as it does in the coder."""
    quantised = torch.zeros(c.shape, dtype=torch.float64)
    for j in range(c.shape[1]):
        mean = means[j].item()
        rms = max(c[:, j].square().mean().sqrt().item(), abs(mean) / 4, 1e-30) / step
        code = min(255, max(1, round(8 * np.log2(rms) + 128)))

        def coded(x, level, code=code):
            scale = np.float32(2.0 ** (int(level) / 8) / step)
            kept = (code - 128 + int(level) + 1) // 2 >= -8
            return float(np.rint(np.float32(x) * scale)) / float(scale) if kept else 0.0

        mean = coded(mean, of_all)
        left = np.float32(means[j].item()) - np.float32(mean)
        for t in range(len(c)):
            quantised[t, j] = mean + coded(np.float32(c[t, j].item()) + left, levels[t])
    return quantised


@pytest.mark.parametrize("shape", ["alike", "mixed", "one entry a head", "mixed, watched"])
@pytest.mark.parametrize(("step", "sinks"), [(0.3, 0), (0.03, 1), (0.003, 0)])
def test_what_is_restored_is_the_quantised_cache(shape, step, sinks, monkeypatch):
    monkeypatch.setattr(coefficients, "fast_dtype", lambda device: torch.float32)
    cache = SHAPES[shape]()
    coder = method(shape, step=step, sink_tokens=sinks)
    back = coder.decode(coder.encode(cache), CacheShape.of(cache))  # in float32
    for (i, kind), expected in by_hand(cache, learned(shape), step, sinks).items():
        layer = back.layers[i]
        x = layer.unrotated_keys() if kind == "key" else layer.values
        assert torch.allclose(wide(x)[sinks:].double(), expected, atol=1e-4, rtol=1e-4)


@every_shape
def test_products_of_16_bits_restore_nearly_the_same(shape, monkeypatch):
    """What they store is as close to the cache; below FAST_FROM they are not taken."""
    cache = SHAPES[shape]().in_16_bits()

    def stored(dtype, step):
        monkeypatch.setattr(coefficients, "fast_dtype", lambda device: dtype)
        return method(shape, step=step).compress(cache)

    exact, fast = stored(torch.float32, 0.03).restore(), stored(torch.bfloat16, 0.03)
    errors = [relative_errors(cache, x)["squared_error"].sum() for x in (exact, fast.restore())]
    energy = sum(x.tensor(kind).float().square().sum() for x in cache.layers for kind in KINDS)
    assert errors[1] < 1.1 * errors[0] + 1e-4 * energy
    back = fast.restore()
    monkeypatch.setattr(coefficients, "fast_dtype", lambda device: torch.float32)
    for a, b in zip(fast.restore().layers, back.layers, strict=True):
        for kind in KINDS:
            x, y = a.tensor(kind).float(), b.tensor(kind).float()
            assert (x - y).norm() < 0.02 * x.norm()
    fine = [stored(dtype, 6e-5).restore() for dtype in (torch.float32, torch.bfloat16)]
    assert equal(*fine)


@pytest.mark.parametrize("shape", ["alike", "mixed", "half precision"])
def test_a_smaller_step_is_closer_and_larger(shape):
    cache = SHAPES[shape]().in_16_bits()
    small = [method(shape, step=step).compress(cache) for step in STEPS]
    errors = [relative_errors(cache, s.restore())["squared_error"].sum() for s in small]
    assert sorted(errors, reverse=True) == errors and errors[-1] < 0.1 * errors[0]
    assert sorted(s.nbytes for s in small) == [s.nbytes for s in small]


def test_a_step_far_too_small_is_still_exact_or_refused():
    cache = caches.alike().in_16_bits()
    errors = relative_errors(cache, method("alike", step=1e-6).compress(cache).restore())
    assert errors["relative_error"].max() < 2e-3  # of 16 bits: integers beyond the table
    with pytest.raises(UsageError, match="too small for this cache"):
        method("alike", step=1e-30).compress(cache)


def test_a_cache_whose_attention_was_not_measured_is_refused_and_not_coded_worse():
    with pytest.raises(UsageError, match="prefill with probe=True"):
        method("alike, watched").compress(caches.alike().in_16_bits())


def test_what_cannot_be_set_is_said_in_a_sentence():
    for settings in ({"step": 0.0}, {"step": float("nan")}, {"sink_tokens": -1}):
        with pytest.raises(UsageError):
            method("alike", **settings)
    with pytest.raises(UsageError, match="does not fit the cache of random"):
        method("alike").compress(caches.mixed().in_16_bits())
    windows_differ = caches.cache(
        caches.layer(0, 3, 10, (8, 8)), *(caches.layer(i, 3, 6, (8, 8), 10) for i in (1, 2, 3))
    )
    with pytest.raises(UsageError, match="hold different tokens of this text"):
        method("alike").compress(windows_differ.in_16_bits())


def test_a_calibration_is_the_same_each_time_and_its_content_counts_once():
    cache = caches.mixed()
    draws = [random_gradients(cache, seed) for seed in range(3)]
    one, two = (calibrate(draws, "random gradients") for _ in range(2))
    assert one.identity == two.identity
    tables = one.tensors["tables"]
    assert (tables.sum(1, dtype=torch.int64) == 2**14).all()
    other = replace(cache)  # the same content as if it were another text's
    twice = calibrate(
        [random_gradients(x, seed) for seed, x in enumerate((cache, other, other))], "as if of two"
    )
    bases = (read(x).groups[0].neighbours[0].basis for x in (one, twice))
    assert torch.equal(*bases)


def test_gradients_that_are_all_zero_are_refused():
    none = random_gradients(caches.alike())
    for pair in none.gradients:
        for gradient in pair.values():
            gradient.zero_()
    with pytest.raises(UsageError, match="cannot be calibrated"):
        calibrate([none], "nothing")
    with pytest.raises(ValueError, match="at least one draw"):
        calibrate([], "nothing")


@pytest.mark.parametrize("family", sorted(families.SETTINGS.keys() - families.UNCALIBRATED))
def test_every_family_is_calibrated_and_compressed(family):
    loaded = families.loaded(family)
    text = "".join(chr(97 + i % 26) for i in range(400))
    chosen = windows(loaded, text, contexts=(60, 24), n_scored=12)
    assert [n for _, n in chosen] == [60, 24]
    if family in families.WITHOUT_GRADIENTS:
        with pytest.raises(UsageError, match="predictions give no gradients by"):
            calibrate(sensitivities(loaded, chosen), "letters")
        return
    calibration = calibrate(sensitivities(loaded, chosen), "letters")
    cache = prefill(loaded, families.token_ids(40), probe=True).cache.in_16_bits()
    errors = []
    for step in (1e-3, 1e-8):
        back = Coded(step=step, calibration=calibration).compress(cache).restore()
        errors.append(relative_errors(cache, back)["relative_error"].max())
    assert errors[1] < 0.01 and errors[1] < errors[0]


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


@pytest.mark.parametrize("shape", ["alike, watched", "mixed, watched"])
@pytest.mark.parametrize("kind_of", [Coded, CodedFixed])
def test_parts_of_a_long_text_are_coded_as_if_each_were_alone(monkeypatch, shape, kind_of):
    cache = SHAPES[shape]().in_16_bits()
    coder = kind_of(step=0.03, sink_tokens=0, calibration=learned(shape))
    alone = [
        coder.compress(_between(cache, start, end)).restore() for start, end in ((0, 5), (5, 10))
    ]
    monkeypatch.setattr(segments, "MOST_ENTRIES", CacheShape.of(cache).n_entries // 2 + 1)
    together = coder.compress(cache)
    assert {name.split(".")[1] for name in together.stored if name.startswith("segments.")} == {
        "0",
        "1",
    }
    for layer, *parts in zip(together.restore().layers, *(x.layers for x in alone), strict=True):
        for kind in KINDS:
            joined = torch.cat([part.tensor(kind) for part in parts], dim=1)
            assert torch.equal(layer.tensor(kind), joined)


def _between(cache, start, end):
    """What its layers hold of these positions of the text."""
    layers = []
    for layer in cache.layers:
        first, last = torch.searchsorted(layer.positions, torch.tensor([start, end])).tolist()
        layers.append(layer.between(slice(first, last)))
    return replace(cache, layers=tuple(layers))


@pytest.mark.parametrize("way", ["compress", "restore", "tell"])
def test_what_it_works_with_does_not_grow_with_the_text(monkeypatch, way):
    """Memory of numpy at its peak, beyond what is stored; what torch takes is not told here."""
    monkeypatch.setattr(segments, "MOST_ENTRIES", 1 << 16)
    peaks = []
    for n_tokens in (1 << 11, 1 << 13):
        layers = (caches.layer(i, 3, n_tokens, (8, 8), dtype=torch.float16) for i in range(4))
        cache = caches.watched(caches.cache(*layers))
        coder = method("alike, watched", step=0.03)
        compressed = coder.compress(cache)
        action = {
            "compress": lambda c=cache, m=coder: m.compress(c),
            "restore": compressed.restore,
            "tell": lambda c=compressed: c.compressor.bits_by_token(c.stored, c.shape),
        }
        tracemalloc.start()
        kept = action[way]()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        if way == "compress":
            peaks[-1] -= kept.nbytes
    per_token = 64  # of levels, and of lists of token ids and positions
    assert peaks[1] < 1.1 * peaks[0] + per_token * n_tokens
