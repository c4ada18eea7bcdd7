"""Fewer bits: packing, 8-bit floats and integers, KIVI, and rotated vectors."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from compression.methods import packing
from compression.methods.quantisers import (
    KIVI,
    FloatQuantiser,
    IntegerQuantiser,
    grouped,
    symmetric,
    ungrouped,
)
from compression.methods.rotation_quantiser import RotationQuantiser, codebook, rotation
from config import UsageError
from data.cache import KINDS
from tests import caches

KEYS, VALUES = (0, "key"), (0, "value")
# What a Lloyd-Max quantiser leaves of the variance of a Gaussian (Max, 1960)
GAUSSIAN = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cache(heads=2, tokens=40, dims=(16, 8)):
    return caches.cache(*(caches.layer(i, heads, tokens, dims) for i in range(2))).in_16_bits()


def errors(method, original):
    """Per layer and kind, |restored - original| in float32."""
    back = method.compress(original).restore()
    return {
        (i, kind): (b.tensor(kind).float() - a.tensor(kind).float()).abs()
        for i, (a, b) in enumerate(zip(original.layers, back.layers, strict=True))
        for kind in KINDS
    }


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_packed_codes_come_back_and_take_no_more_bytes_than_bits(bits, n):
    codes = torch.randint(2**bits, (n,), generator=torch.Generator().manual_seed(n))
    codes = codes.to(torch.uint8)
    packed = packing.pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (math.ceil(n * bits / 8),)
    assert torch.equal(packing.unpack(packed, bits, (n,)), codes)


def test_packing_keeps_any_shape_and_the_highest_codes():
    for bits in range(1, 9):
        codes = torch.full((3, 1, 5), 2**bits - 1, dtype=torch.uint8)
        assert torch.equal(packing.unpack(packing.pack(codes, bits), bits, (3, 1, 5)), codes)


def test_packed_bytes_by_hand():
    codes = torch.tensor([1, 2, 7], dtype=torch.uint8)  # 111 010 001 from the right
    assert packing.pack(codes, 3).tolist() == [0b11010001, 0b1]
    assert packing.pack(codes, 4).tolist() == [0x21, 0x07]
    assert packing.pack(codes, 8).tolist() == [1, 2, 7]


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="a code of 4 does not fit into 2 bits"):
        packing.pack(torch.tensor([4], dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="codes of 9 bits"):
        packing.pack(torch.zeros(1, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="9 codes of 3 bits are not in 3 bytes"):
        packing.unpack(torch.zeros(3, dtype=torch.uint8), 3, (9,))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_symmetric_codes_are_off_by_half_a_scale_at_most(bits):
    x = random(3, 20, 8) * torch.logspace(-3, 3, 20)[:, None]
    codes, scale = symmetric(x, bits, -1)
    assert scale.shape == (3, 20, 1) and scale.dtype == torch.float16
    assert codes.abs().amax() == 2 ** (bits - 1) - 1
    error = (codes.float() * scale.float() - x).abs()
    # The scale in 16 bits may be lower by 2^-11 of itself, and the largest codes miss that.
    assert (error <= scale.float() * (0.5 + 2**bits * 2**-11)).all()


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("n", [1, 5, 6, 8, 24, 25])
def test_grouped_codes_are_off_by_half_a_step_at_most(bits, n):
    x = (random(2, 3, n) * 5 + 20).half().float()  # as it is cached: the zero is exact
    codes, step, zero = grouped(x, bits, 6)
    assert codes.shape == x.shape and step.shape == zero.shape == (2, 3, math.ceil(n / 6))
    for g in range(step.shape[-1]):
        some = x[..., 6 * g : 6 * g + 6]
        half = (some.amax(-1) - some.amin(-1)) / (2**bits - 1) / 2
        error = (ungrouped(codes, step, zero, 6)[..., 6 * g : 6 * g + 6] - some).abs().amax(-1)
        assert (error <= half * 1.02 + 1e-6).all()


def test_kivi_groups_keys_along_tokens_and_values_along_channels():
    original = cache()
    layer = original.layers[0]
    channel, token = torch.rand(16) * 50, torch.rand(40, 1) * 50
    # Each channel of the keys, and each token of the values, is constant: one group holds it.
    keys = channel.expand(2, 40, 16).half()
    values = token.expand(2, 40, 8).half()
    flat = replace(original, layers=(replace(layer, keys=keys, values=values),))
    assert all(x.amax() == 0 for x in errors(KIVI(2, 32, recent_tokens=0), flat).values())
    swapped = replace(layer, keys=token.expand(2, 40, 16).half(), values=values)
    swapped = replace(original, layers=(swapped,))
    assert errors(KIVI(2, 32, recent_tokens=0), swapped)[0, "key"].mean() > 1


def test_kivi_bytes_by_hand():
    small = KIVI(3, 16, recent_tokens=5, sink_tokens=2).compress(cache())
    # 2 heads; 40 - 7 = 33 tokens are coded: 3 groups of them for each of 16 channels of the keys,
    # and 1 group of the 8 channels of each token for the values; 7 tokens are plain.
    key = math.ceil(2 * 33 * 16 * 3 / 8) + 2 * 16 * 3 * 4
    value = math.ceil(2 * 33 * 8 * 3 / 8) + 2 * 33 * 4
    assert small.nbytes == 2 * (key + value + 2 * 7 * (16 + 8) * 2)


@pytest.mark.parametrize("sinks", [2, 1000])
def test_a_token_takes_16_bits_for_each_plain_entry_and_the_others_are_alike(sinks):
    original = caches.mixed().in_16_bits()
    method = KIVI(3, 16, recent_tokens=1, sink_tokens=sinks)
    small = method.compress(original)
    plain, coded = [0] * 10, [0] * 10  # entries of each token
    for layer in original.layers:
        held = layer.positions.tolist()
        of_token = sum(layer.tensor(kind)[:, 0].numel() for kind in KINDS)
        for position in held:
            ends = {*held[:sinks], held[-1]}
            (plain if position in ends else coded)[position] += of_token
    left = 8 * small.nbytes - 16 * sum(plain)
    each = left / sum(coded) if sum(coded) else 0
    expected = [16 * a + each * b for a, b in zip(plain, coded, strict=True)]
    bits = method.bits_by_token(small.stored, small.shape)
    assert bits.tolist() == pytest.approx(expected)
    assert KIVI(3, 16, recent_tokens=0).compress(original).bits_by_token is None


def test_bytes_of_8_bits_by_hand():
    entries = 2 * 2 * 40 * (16 + 8)
    assert FloatQuantiser().compress(cache()).nbytes == entries + 2 * 2 * 2 * 4
    assert IntegerQuantiser().compress(cache()).nbytes == entries + 2 * 2 * 2 * 40 * 2


def test_rotated_bytes_by_hand():
    small = RotationQuantiser(3, recent_tokens=5).compress(cache())
    coded = 2 * 35 * (16 + 8) * 3 // 8 + 2 * 2 * 35 * 2
    assert small.nbytes == 2 * (coded + 2 * 5 * (16 + 8) * 2)


def test_8_bit_floats_keep_three_bits_of_mantissa():
    original = cache()
    for (i, kind), error in errors(FloatQuantiser(), original).items():
        x = original.layers[i].tensor(kind).float().abs()
        scale = x.amax((1, 2), keepdim=True) / 448
        # Half of 2^-3 of the entry, or of the smallest step, 2^-9; and the rounding of the cache.
        assert (error <= (x * 2**-4).clamp(min=2**-10 * scale) * 1.02 + x * 2**-10).all()
        assert (error.flatten(1) > 0).any(1).all()


@pytest.mark.parametrize("method", [KIVI, RotationQuantiser])
def test_more_bits_leave_less_error(method):
    sizes = []
    for bits in (2, 3, 4, 5):
        found = errors(method(bits, recent_tokens=0), cache())
        sizes.append(sum(x.square().sum().item() for x in found.values()))
    assert all(more < 0.4 * fewer for fewer, more in pairwise(sizes))


@pytest.mark.parametrize("method", [KIVI(2), RotationQuantiser(2), FloatQuantiser()])
def test_zeros_stay_zero(method):
    layer = cache().layers[0]
    zeros = {kind: torch.zeros_like(layer.tensor(kind)) for kind in KINDS}
    still = replace(cache(), layers=(replace(layer, keys=zeros["key"], values=zeros["value"]),))
    method = replace(method, recent_tokens=0)
    assert all(x.amax() == 0 for x in errors(method, still).values())


@pytest.mark.parametrize("dim", [1, 2, 12, 64, 80])
def test_a_rotation_is_orthogonal_and_follows_from_its_seed(dim):
    matrix = rotation(dim, 3)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(dim), atol=1e-5, rtol=0)
    assert torch.equal(matrix, rotation.__wrapped__(dim, 3))
    assert dim <= 2 or not torch.equal(matrix, rotation(dim, 4))


@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_codebook_stands_at_the_means_of_what_it_codes(dim, bits):
    unit = torch.nn.functional.normalize(random(40_000, dim), dim=1).flatten()
    centres = codebook(dim, bits)
    codes = torch.bucketize(unit, (centres[1:] + centres[:-1]) / 2)
    counts = codes.bincount(minlength=2**bits)
    means = torch.zeros(2**bits).index_add_(0, codes, unit) / counts
    # Four standard errors of a mean, whose deviation is below that of all coordinates
    assert ((means - centres).abs() <= 4 / math.sqrt(dim) / counts.sqrt()).all()
    torch.testing.assert_close(centres, -centres.flip(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_a_codebook_of_many_dimensions_is_that_of_the_gaussian(bits):
    centres = codebook(4096, bits) * 64
    x = random(1_000_000)
    codes = torch.bucketize(x, (centres[1:] + centres[:-1]) / 2)
    assert (centres[codes] - x).square().mean().item() == pytest.approx(GAUSSIAN[bits], rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rotated_vectors_are_off_by_what_is_known_of_the_gaussian(bits):
    x = random(2, 500, 128) * torch.logspace(-2, 2, 500)[:, None]  # norms do not matter
    method = RotationQuantiser(bits)
    back = method.whole(method.parts(x, KEYS), x.shape, KEYS)
    share = (back - x).square().sum(-1) / x.square().sum(-1)
    assert share.mean().item() == pytest.approx(GAUSSIAN[bits], rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dim", [64, 80])
def test_outlier_channels_are_spread(bits, dim):
    x = random(2, 500, dim)
    x[:, :, 5] *= 10
    method = RotationQuantiser(bits)
    back = method.whole(method.parts(x, KEYS), x.shape, KEYS)
    share = ((back - x).square().sum() / x.square().sum()).item()
    assert share == pytest.approx(GAUSSIAN[bits], rel=0.2)
    unit = x / x.norm(dim=-1, keepdim=True)
    centres = codebook(dim, bits)
    straight = centres[torch.bucketize(unit, (centres[1:] + centres[:-1]) / 2)]
    assert share < 0.7 * (straight - unit).square().sum().item() / unit[..., 0].numel()


def test_rotated_vectors_keep_their_norms_and_directions_at_5_bits():
    x = random(2, 50, 64) * torch.logspace(-1, 2, 50)[:, None]
    method = RotationQuantiser(5)
    back = method.whole(method.parts(x, VALUES), x.shape, VALUES)
    torch.testing.assert_close(back.norm(dim=-1), x.norm(dim=-1), rtol=5e-2, atol=0)
    assert torch.nn.functional.cosine_similarity(back, x, dim=-1).mean() > 0.998


def test_what_cannot_be_is_refused():
    for method in (KIVI, RotationQuantiser):
        with pytest.raises(UsageError, match="9 bits"):
            method(9)
    with pytest.raises(UsageError, match="groups of 0"):
        KIVI(4, 0)
    with pytest.raises(UsageError, match="`recent_tokens` is -1: it takes 0 or more tokens"):
        KIVI(recent_tokens=-1)
