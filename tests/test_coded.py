"""`coded`: the transform, the integers and the way back, on caches of every shape and family."""

from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compression import files
from compression.calibration import calibrate, grouped
from compression.coded import Coded, CodedFixed, transformed
from compression.coded_side import classes, magnitudes, read
from compression.evaluate import relative_errors
from compression.side_files import load_model_side, save_model_side
from config import UsageError
from data.cache import KINDS, in_16_bits
from data.extraction import prefill
from data.sensitivity import sensitivities, windows
from tests import caches, families

STEPS = (0.3, 0.03, 0.003)


def draw(cache, seed=0):
    """Random gradients, larger for some directions, as a model might give."""
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for layer in cache.layers:
        pair = {}
        for kind in KINDS:
            shape = layer.tensor(kind).shape
            sizes = torch.rand(shape[2], generator=generator)
            pair[kind] = torch.randn(shape, generator=generator) * sizes
        gradients.append(pair)
    return SimpleNamespace(cache=cache, gradients=tuple(gradients), n_scored=3)


SHAPES = caches.SHAPES | {
    f"{shape}, watched": lambda make=make: caches.watched(make())
    for shape, make in caches.SHAPES.items()
}


@lru_cache
def side_for(shape):
    cache = SHAPES[shape]()
    return calibrate([draw(cache, seed) for seed in range(3)], "random gradients")


def method(shape, **settings):
    return Coded(**settings, model_side=side_for(shape))


every_shape = pytest.mark.parametrize("shape", SHAPES)
SETTINGS = [{"step": step, "sink_tokens": sinks} for step in STEPS for sinks in (0, 1, 4, 1000)]
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def equal(one, two):
    pairs = zip(one.layers, two.layers, strict=True)
    return all(torch.equal(a.tensor(k), b.tensor(k)) for a, b in pairs for k in KINDS)


@every_shape
@every_setting
def test_a_cache_keeps_its_shape_and_a_file_restores_it_bit_for_bit(shape, settings, tmp_path):
    cache = SHAPES[shape]().in_16_bits()
    small = method(shape, **settings).compress(cache)
    back = small.restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        assert torch.equal(a.positions, b.positions) and a.kind == b.kind
        n = settings["sink_tokens"]
        for kind in KINDS:
            x, y = a.tensor(kind), b.tensor(kind)
            assert x.shape == y.shape and x.dtype == y.dtype and y.isfinite().all()
            assert torch.equal(x[:, :n], y[:, :n])
    file = tmp_path / "cache.safetensors"
    files_save_and_same(small, file, back)


def files_save_and_same(small, file, back):
    from safetensors.torch import load_file, save_file

    save_file(small.stored, file)
    content = file.read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + small.nbytes
    assert equal(small.compressor.decode(load_file(file), small.shape), back)


@every_shape
def test_the_same_cache_gives_the_same_bytes_and_is_left_alone(shape):
    cache = SHAPES[shape]().in_16_bits()
    before = [layer.tensor(kind).clone() for layer in cache.layers for kind in KINDS]
    one, two = (method(shape, step=0.01).encode(cache) for _ in range(2))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    now = [layer.tensor(kind) for layer in cache.layers for kind in KINDS]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def by_hand(cache, side, step, sinks):
    """(layer, kind) -> (tokens, dim), each coefficient quantised in plain Python."""
    learned, restored = read(side), {}
    for group in learned.groups:
        parts = []
        for i, kind in group.places:
            layer = cache.layers[i]
            x = layer.unrotated_keys() if kind == "key" else layer.values.float()
            parts.append(x.permute(1, 0, 2).flatten(1)[sinks:])
        x = torch.cat(parts, dim=1)
        mean = in_16_bits(x.mean(0)).double()
        root = torch.block_diag(*(r.double() for r in group.roots))
        exact = (x.double() - mean) @ root @ group.basis.double()
        c = transformed(cache, group, sinks)[1].T
        assert torch.allclose(c.double(), exact, atol=1e-5 * float(exact.abs().max()))
        levels = learned.levels(cache)[cache.layers[group.layers[0]].positions[sinks:]]
        x = quantised_by_hand(c, levels, step) @ group.basis.double().T @ torch.linalg.inv(root)
        restored |= dict(zip(group.places, (x + mean).split(group.widths, dim=1), strict=True))
    return restored


def quantised_by_hand(c, levels, step):
    """(tokens, columns) in float64. The product is in float32: a tie may fall either way."""
    quantised = torch.zeros(c.shape, dtype=torch.float64)
    for j in range(c.shape[1]):
        rms = max(c[:, j].double().square().mean().sqrt().item(), 1e-30) / step
        code = min(255, max(1, round(8 * np.log2(rms) + 128)))
        for t in range(len(c)):
            scale = np.float32(2.0 ** (levels[t] / 8) / step)
            if (code - 128 + int(levels[t]) + 1) // 2 >= -8:
                quantised[t, j] = float(np.rint(np.float32(c[t, j].item()) * scale)) / float(scale)
    return quantised


@pytest.mark.parametrize("shape", ["alike", "mixed", "one entry a head", "mixed, watched"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("sinks", [0, 1])
def test_what_is_restored_is_the_quantised_cache(shape, step, sinks):
    cache = SHAPES[shape]()
    back = method(shape, step=step, sink_tokens=sinks).compress(cache).restore()
    for (i, kind), expected in by_hand(cache, side_for(shape), step, sinks).items():
        layer = back.layers[i]
        x = layer.unrotated_keys() if kind == "key" else layer.values
        x = x.permute(1, 0, 2).flatten(1)[sinks:]
        assert torch.allclose(x.double(), expected, atol=1e-4, rtol=1e-4)


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


def test_classes_are_the_magnitude_times_the_weight_in_quarter_octaves():
    rms = 2.0 ** torch.arange(-10, 12)  # in steps
    codes = magnitudes(rms[:, None].expand(-1, 7) * 0.5, 0.5).numpy()
    levels = np.array([-16, 0, 24], np.int16)  # sqrt(w) is 1/4, 1, 8
    octaves = np.arange(-10, 12)[:, None] + levels / 8
    assert np.array_equal(classes(codes, levels), np.clip(4 * octaves, -24, 40) + 24)
    assert (classes(np.zeros(3, np.uint8), levels) == 0).all()


def test_layers_are_grouped_by_kind():
    assert grouped(caches.mixed()) == [(0,), (1, 3), (2,)]
    assert grouped(caches.alike()) == [(0, 1, 2, 3)]
    seven = caches.cache(*(caches.layer(i, 1, 5, (4, 4)) for i in range(7)))
    assert grouped(seven) == [(0, 1, 2, 3, 4), (5, 6)]
    wide = caches.cache(*(caches.layer(i, 1, 5, (1200, 400)) for i in range(3)))
    assert grouped(wide) == [(0, 1), (2,)]


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
    draws = [draw(cache, seed) for seed in range(3)]
    one, two = (calibrate(draws, "random gradients") for _ in range(2))
    assert one.identity == two.identity
    tables = one.tensors["tables"]
    assert (tables.sum(1, dtype=torch.int64) == 2**14).all()
    other = replace(cache)  # the same content as if it were another text's
    twice = calibrate([draw(cache, 0), draw(other, 1), draw(other, 2)], "random gradients")
    assert torch.equal(one.tensors["basis.0"], twice.tensors["basis.0"])


def test_gradients_that_are_all_zero_are_refused():
    none = draw(caches.alike())
    for pair in none.gradients:
        for gradient in pair.values():
            gradient.zero_()
    with pytest.raises(UsageError, match="cannot be calibrated"):
        calibrate([none], "nothing")
    with pytest.raises(ValueError, match="at least one draw"):
        calibrate([], "nothing")


@pytest.mark.parametrize("family", families.SETTINGS)
def test_every_family_is_calibrated_and_compressed(family):
    loaded = families.loaded(family)
    text = "".join(chr(97 + i % 26) for i in range(4000))
    chosen = windows(loaded, text, contexts=(150, 40, 24), n_scored=16)
    assert [n for _, n in chosen] == [150, 40, 24]
    side = calibrate(sensitivities(loaded, chosen), "letters")
    cache = prefill(loaded, families.token_ids(100), probe=True).cache.in_16_bits()
    errors = []
    for step in (1e-3, 1e-8):
        back = Coded(step=step, model_side=side).compress(cache).restore()
        errors.append(relative_errors(cache, back)["relative_error"].max())
    assert errors[1] < 0.01 and errors[1] < errors[0]


def test_a_saved_model_side_comes_back_the_same(tmp_path):
    side, file = side_for("alike"), tmp_path / "side.safetensors"
    save_model_side(side, file, {"model": "random"})
    back, header = load_model_side(file)
    assert back.identity == side.identity and back.learned_from == side.learned_from
    assert header == {"model": "random"} and list(tmp_path.iterdir()) == [file]


def test_a_model_side_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="cannot be written"):
        save_model_side(side_for("alike"), tmp_path / "nowhere" / "side.safetensors", {})


def test_a_damaged_model_side_is_refused(tmp_path):
    file, damaged = tmp_path / "side.safetensors", tmp_path / "damaged.safetensors"
    save_model_side(side_for("alike"), file, {"model": "random"})
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for at in (3, header // 2, content.index(b"random"), header + 10, len(content) - 1):
        flipped = bytes([content[at] ^ 1])
        damaged.write_bytes(content[:at] + flipped + content[at + 1 :])
        with pytest.raises(ValueError):
            load_model_side(damaged)
    for length in (0, 5, header - 3, header + 40, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError):
            load_model_side(damaged)


def test_a_file_of_another_version_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a", metadata={"format": "coded model side 0"})
    with pytest.raises(ValueError, match="has format coded model side 0"):
        load_model_side(tmp_path / "a")


def test_the_registry_reads_its_files(tmp_path):
    from compression.methods import METHODS

    if Coded.name not in METHODS:
        pytest.skip("coded is not registered")
    small = method("alike", step=0.01).compress(caches.alike().in_16_bits())
    files.save(small, tmp_path / "cache")
    assert equal(files.load(tmp_path / "cache", side_for("alike")).restore(), small.restore())


def test_integers_of_fixed_width_restore_the_same_cache_at_more_bytes():
    cache = caches.cache(*(caches.layer(i, 2, 400, (8, 8)) for i in range(2))).in_16_bits()
    side = calibrate([draw(cache, seed) for seed in range(2)], "random gradients")
    coded, fixed = (way(0.01, model_side=side).compress(cache) for way in (Coded, CodedFixed))
    assert equal(coded.restore(), fixed.restore())
    assert coded.nbytes < fixed.nbytes
