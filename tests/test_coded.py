"""`coded`: the transform, the integers and the way back, on caches of every shape and family. What
holds for every method is in test_compression.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from compression.coded import coefficients
from compression.coded.calibration import calibrate
from compression.coded.method import Coded
from compression.coded.transform import read
from compression.costs import relative_errors
from compression.shapes import CacheShape
from config import UsageError
from data.cache import KINDS, wide
from data.extraction import prefill
from data.sensitivity import sensitivities, windows
from tests import caches, families
from tests.bruteforce import dense_basis
from tests.caches import equal, random_gradients
from tests.coded_shapes import SHAPES, every_shape, learned, method

STEPS = (0.3, 0.03, 0.003)


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
