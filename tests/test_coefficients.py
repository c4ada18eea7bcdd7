"""From what layers hold to the integers that are coded, against float64."""

from dataclasses import replace

import pytest
import torch

from compression.coded import coefficients
from compression.coded.calibration import calibrate
from compression.coded.coefficients import LARGE_MEAN, integers_of
from compression.coded.transform import (
    STEPS_PER_OCTAVE,
    classes,
    magnitudes,
    read,
    rows,
)
from tests import caches
from tests.bruteforce import coded_places, dense_basis
from tests.caches import random_gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", [0.01, 0.2])
def test_of_long_texts_magnitudes_are_told_by_some_tokens_and_integers_are_those_of_all(
    step, dtype, monkeypatch
):
    """Every integer is its coefficient rounded, whichever block its token was taken in; in products
    of 16 bits coefficients are off by at most a hundredth of the largest."""
    monkeypatch.setattr(coefficients, "fast_dtype", lambda device: dtype)
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
    basis, root = dense_basis(group)
    c = basis.T @ root @ (x - group.mean.double()).T  # (columns, tokens)
    mean = c.mean(1, keepdim=True)
    rms = torch.maximum((c - mean).square().mean(1).sqrt(), mean[:, 0].abs() / LARGE_MEAN)
    exact = magnitudes(rms, step).short()
    off = (codes.short() - exact).abs() <= 4  # of eight to an octave
    least = exact - 4 - 128 + levels.max()  # of what the heaviest token has, in steps
    assert (off | ((codes == 0) & (least < -2 * STEPS_PER_OCTAVE))).all()
    assert (codes > 0).sum() > len(codes) / 2
    entry_classes = classes(codes, levels)
    columns, tokens = zip(*coded_places(codes, levels), strict=True)
    stored = torch.zeros(entry_classes.shape).bool()
    stored[columns, tokens] = True
    assert stored.any() and not stored.all()
    assert of_integers.tolist() == entry_classes[columns, tokens].tolist()
    scale = torch.exp2(levels.double() / 8) / step
    whole = torch.zeros(stored.shape).double()
    whole[columns, tokens] = torch.from_numpy(integers).double()
    coded = whole[:, :1] / scale[0]  # which large ones are rounded to, float32 may tell otherwise
    expected = torch.cat([mean, c - coded], dim=1) * scale
    relative = 2e-6 if dtype == torch.float32 else 0.01
    rounding = relative * c.abs().amax() * scale  # of a sum over columns
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
    whole = torch.zeros(len(codes), len(levels))
    columns, tokens = zip(*coded_places(codes, levels), strict=True)
    whole[columns, tokens] = torch.from_numpy(integers).float()
    mean = whole[:, :1] / torch.exp2(levels[:1] / 8)
    x = rows(layers, group.places, slice(3005, 3006)) - group.mean  # (1, width)
    off = group.products(torch.device("cpu")).coefficients(x) - step * (mean + whole[:, 3006:3007])
    assert off.abs().max() < step / 4 * 4000**0.5  # the most that a column left out can hold


def test_classes_are_the_magnitude_times_the_weight_in_quarter_octaves():
    rms = 2.0 ** torch.arange(-10, 12)  # in steps
    codes = magnitudes(rms * 0.5, 0.5)
    levels = torch.tensor([-16, 0, 24], dtype=torch.int16)  # sqrt(w) is 1/4, 1, 8
    octaves = torch.arange(-10, 12)[:, None] + levels / 8
    assert torch.equal(classes(codes, levels), ((4 * octaves).clamp(-24, 40) + 24).byte())
    assert (classes(torch.zeros(3, dtype=torch.uint8), levels) == 0).all()
