"""`coded`: the transform, the integers and the way back, on caches of every shape and family. What
holds for every method is in test_compression.py."""

import math
import tracemalloc
from dataclasses import replace
from functools import cache as once

import numpy as np
import pytest
import torch

from compression.coded import fixed_rate
from compression.coded import method as method_module
from compression.coded.calibration import BITS_OF_BASIS, calibrate, grouped
from compression.coded.coefficients import LARGE_MEAN, integers_of
from compression.coded.fixed import CodedFixed
from compression.coded.groups import Group, Neighbours
from compression.coded.method import Coded
from compression.coded.transform import (
    STEPS_PER_OCTAVE,
    classes,
    is_stored,
    level_of_mean,
    magnitudes,
    read,
    rows,
)
from compression.costs import relative_errors
from compression.shapes import CacheShape
from config import UsageError
from data.cache import KINDS, wide
from data.extraction import prefill
from data.sensitivity import sensitivities, windows
from tests import caches, families
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
        basis, root = dense(group)
        exact = (x.double() - group.mean.double()) @ root @ basis
        off = x - group.mean
        mean = off.mean(0)
        c, mean = (torch.cat(group.coefficients(y)).T for y in (off - mean, mean[None]))
        mean = mean[0]
        assert torch.allclose((c + mean).double(), exact, atol=1e-5 * float(exact.abs().max()))
        levels = transform.levels(cache).numpy()
        held = cache.layers[group.layers[0]].positions[sinks:]
        of_all = level_by_hand(levels[sinks:])
        x = quantised_by_hand(c, mean, of_all, levels[held], step)
        x = x @ basis.T @ torch.linalg.inv(root) + group.mean
        restored |= dict(zip(group.places, x.split(group.widths, dim=1), strict=True))
    return restored


def dense(group):
    """(width, columns) float64, the basis of a whole group in one, and (width, width) its root."""
    basis = torch.block_diag(*(each.basis.double() for each in group.neighbours))
    columns = torch.arange(len(basis)).split([len(each.mean) for each in group.neighbours])
    firsts = torch.cat([c[:n] for c, n in zip(columns, group.firsts, strict=True)])
    left = torch.cat([c[n:] for c, n in zip(columns, group.firsts, strict=True)])
    basis = torch.cat([basis[:, firsts] @ group.turn.double(), basis[:, left]], dim=1)
    roots = (root.double() for each in group.neighbours for root in each.roots)
    return basis, torch.block_diag(*roots)


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
def test_what_is_restored_is_the_quantised_cache(shape, step, sinks):
    cache = SHAPES[shape]()
    coder = method(shape, step=step, sink_tokens=sinks)
    back = coder.decode(coder.encode(cache), CacheShape.of(cache))  # in float32
    for (i, kind), expected in by_hand(cache, learned(shape), step, sinks).items():
        layer = back.layers[i]
        x = layer.unrotated_keys() if kind == "key" else layer.values
        assert torch.allclose(wide(x)[sinks:].double(), expected, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("step", [0.01, 0.2])
def test_of_long_texts_magnitudes_are_told_by_some_tokens_and_integers_are_those_of_all(step):
    """Every integer is its coefficient rounded, whichever block its token was taken in."""
    layers = [caches.layer(i, 2, 700, (6, 6)) for i in range(2)]
    for layer in layers:
        layer.keys[0, 0, 0] = 1.0  # where a cache made here has its outlier
    generator = torch.Generator().manual_seed(3)
    loud = 1 + 3 * torch.rand(700, generator=generator)[None, :, None] ** 4  # tokens differ
    layers = [replace(x, keys=x.keys * loud, values=x.values * loud) for x in layers]
    transform = read(calibrate([random_gradients(caches.cache(*layers))], "random gradients"))
    (group,) = transform.groups
    levels = torch.randint(-90, 40, (701,), generator=generator).to(torch.int16)
    levels[0] = 120
    codes, integers, of_integers = integers_of(layers, group, slice(None), levels, step)

    x = rows(layers, group.places, slice(None)).double()
    basis, root = dense(group)
    c = basis.T @ root @ (x - group.mean.double()).T  # (columns, tokens)
    mean = c.mean(1, keepdim=True)
    rms = torch.maximum((c - mean).square().mean(1).sqrt(), mean[:, 0].abs() / LARGE_MEAN)
    exact = magnitudes(rms, step).short()
    off = (codes.short() - exact).abs() <= 4  # of eight to an octave
    least = exact - 4 - 128 + levels.max()  # of what the heaviest token has, in steps
    assert (off | ((codes == 0) & (least < -2 * STEPS_PER_OCTAVE))).all()
    assert (codes > 0).sum() > len(codes) / 2
    entry_classes = classes(codes, levels)
    stored = is_stored(entry_classes)
    assert stored.any() and not stored.all()
    assert of_integers.tolist() == entry_classes[stored].tolist()
    scale = torch.exp2(levels.double() / 8) / step
    whole = torch.zeros(stored.shape).double()
    whole[stored] = torch.from_numpy(integers).double()
    coded = whole[:, :1] / scale[0]  # which large ones are rounded to, float32 may tell otherwise
    expected = torch.cat([mean, c - coded], dim=1) * scale
    rounding = 2e-6 * c.abs().amax() * scale  # in float32, of a sum over columns
    assert ((expected - whole).abs() < 0.501 + rounding)[stored].all()


def test_a_column_in_which_one_token_is_loud_is_stored():
    """Of 4000 tokens of like weight one has what no other has, where no sample is taken."""
    layers = [caches.layer(i, 2, 4000, (6, 6), seed=1) for i in range(2)]
    for layer in layers:
        layer.keys[0, 0, 0] = 1.0
    transform = read(calibrate([random_gradients(caches.cache(*layers))], "random gradients"))
    (group,) = transform.groups
    layers[1].values[1, 3005, 3] = 200.0
    levels = torch.zeros(4001, dtype=torch.int16)
    step = 2.0  # all else is below a quarter of it
    codes, integers, _ = integers_of(layers, group, slice(None), levels, step)
    entry_classes = classes(codes, levels)
    whole = torch.zeros(entry_classes.shape)
    whole[is_stored(entry_classes)] = torch.from_numpy(integers).float()
    mean = whole[:, :1] / torch.exp2(levels[:1] / 8)
    x = rows(layers, group.places, slice(3005, 3006)) - group.mean  # (1, width)
    off = torch.cat(group.coefficients(x)) - step * (mean + whole[:, 3006:3007])
    assert off.abs().max() < step / 4 * 4000**0.5  # the most that a column left out can hold


def test_classes_are_the_magnitude_times_the_weight_in_quarter_octaves():
    rms = 2.0 ** torch.arange(-10, 12)  # in steps
    codes = magnitudes(rms * 0.5, 0.5)
    levels = torch.tensor([-16, 0, 24], dtype=torch.int16)  # sqrt(w) is 1/4, 1, 8
    octaves = torch.arange(-10, 12)[:, None] + levels / 8
    assert torch.equal(classes(codes, levels), ((4 * octaves).clamp(-24, 40) + 24).byte())
    assert (classes(torch.zeros(3, dtype=torch.uint8), levels) == 0).all()


def test_layers_are_grouped_by_kind():
    assert grouped(caches.mixed()) == [[((0,), 0)], [((1, 3), 0)], [((2,), 0)]]
    assert grouped(caches.alike()) == [[((0, 1, 2, 3), 0)]]
    seven = caches.cache(*(caches.layer(i, 1, 5, (4, 4)) for i in range(7)))
    assert grouped(seven) == [[((0, 1, 2, 3, 4, 5, 6), 0)]]
    roots = 2 * 7 * 4**2  # half of them in 16 bits
    assert grouped(seven, roots + BITS_OF_BASIS * 56**2 / 8) == [[((0, 1, 2, 3, 4, 5, 6), 0)]]
    # A third of 56 columns is turned, as far as neighbours have equal shares of it.
    two = [((0, 1, 2, 3), 32 * 18 // 56), ((4, 5, 6), 24 * 18 // 56)]
    assert grouped(seven, roots + BITS_OF_BASIS * 56**2 / 8 - 1) == [two]
    assert grouped(seven, 1) == [[((i,), 8 * 18 // 56) for i in range(7)]]
    broad = caches.cache(*(caches.layer(i, 1, 5, (2000, 600)) for i in range(3)))
    assert grouped(broad) == [[((i,), 866) for i in range(3)]]  # 2600 of 7800
    wide = caches.cache(*(caches.layer(i, 1, 5, (2000, 1000)) for i in range(4)))
    assert grouped(wide) == [[((i,), 768) for i in range(4)]]  # never more than 3072


@pytest.mark.parametrize("firsts", [(3, 2), (8, 12), (0, 0), (1, 0)])
def test_a_group_takes_what_it_holds_to_coefficients_and_back(firsts):
    """In all columns, and in the first ones of each band alone, as its basis in one does."""
    generator = torch.Generator().manual_seed(5)

    def orthonormal(n):
        return torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0].float()

    def neighbours(layers, widths):
        roots = [torch.randn(w, w, generator=generator).double() for w in widths]
        roots = [root @ root.T + torch.eye(len(root)) for root in roots]
        places = tuple((i, kind) for i in layers for kind in KINDS)
        inverses = tuple(torch.linalg.inv(root).float() for root in roots)
        mean = torch.randn(sum(widths), generator=generator)
        return Neighbours(
            places, orthonormal(sum(widths)), tuple(r.float() for r in roots), inverses, mean
        )

    group = Group(
        (neighbours((0, 1), (3, 1, 2, 2)), neighbours((2,), (5, 7))),
        firsts,
        orthonormal(sum(firsts)) if sum(firsts) else torch.zeros(0, 0),
    )
    basis, root = dense(group)
    x = torch.randn(9, 20, generator=generator)
    coefficients = group.coefficients(x)
    assert [len(band) for band in coefficients] == group.bands
    exact = basis.T @ root @ x.double().T
    assert torch.allclose(torch.cat(coefficients).double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.allclose(group.content(coefficients), x, atol=1e-4)
    most = [n // 2 for n in group.bands]
    few = group.coefficients(x, most)
    for band, of_few, n in zip(coefficients, few, most, strict=True):
        assert torch.allclose(of_few, band[:n], atol=1e-5)
    zeros = [
        torch.cat([b, b.new_zeros(n - len(b), 9)]) for b, n in zip(few, group.bands, strict=True)
    ]
    assert torch.allclose(group.content(few), group.content(zeros), atol=1e-4)


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
        places = is_stored(classes(codes, with_mean)).nonzero()[:, 1].tolist()
        for q, of_q, place in zip(integers, of_integers, places, strict=True):
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
    monkeypatch.setattr(method_module, "MOST_ENTRIES", 400 * 3 * 16 * 4)
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
    monkeypatch.setattr(method_module, "MOST_ENTRIES", CacheShape.of(cache).n_entries // 2 + 1)
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
    """Memory of numpy at its peak, beyond what is stored; what torch takes is of one group."""
    monkeypatch.setattr(method_module, "MOST_ENTRIES", 1 << 16)
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
