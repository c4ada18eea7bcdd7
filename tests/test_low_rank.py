"""Singular value decompositions of a layer and over layers, and Tucker in few bits."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from compression.methods.low_rank import SVD, CrossLayerSVD, factors
from compression.methods.tucker import QuantisedTucker, Tucker
from config import UsageError
from data.cache import KINDS, wide
from tests import caches

RANKS = {"token_rank": 6, "embedding_rank": 5}


def cache(n_layers=4, heads=2, tokens=30, dims=(8, 6)):
    layers = (caches.layer(i, heads, tokens, dims) for i in range(n_layers))
    return caches.cache(*layers).in_16_bits()


def squared_errors(method, original):
    back = method.compress(original).restore()
    return {
        (i, kind): (b.tensor(kind).double() - a.tensor(kind).double()).square().sum().item()
        for i, (a, b) in enumerate(zip(original.layers, back.layers, strict=True))
        for kind in KINDS
    }


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (1, 5), (5, 1)])
def test_all_singular_values_give_the_matrix(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, right = factors(x, 1.0, None)
    assert left.shape == (shape[0], min(shape)) and right.shape == (min(shape), shape[1])
    torch.testing.assert_close(left @ right, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.75])
def test_the_error_is_what_the_discarded_singular_values_hold(shape, keep):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, right = factors(x, keep, None)
    rank = max(1, round(keep * 12))
    assert left.shape[1] == rank
    discarded = torch.linalg.svdvals(x.double())[rank:].square().sum().item()
    assert (left @ right - x).square().sum().item() == pytest.approx(discarded, rel=1e-4)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
def test_the_smallest_rank_that_keeps_the_energy(energy):
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    squares = torch.linalg.svdvals(x.double()).square()
    rank = factors(x, None, energy)[0].shape[1]
    assert squares[:rank].sum() >= (energy - 1e-9) * squares.sum()
    assert squares[: rank - 1].sum() < energy * squares.sum()


@pytest.mark.parametrize("method", [SVD, CrossLayerSVD])
@pytest.mark.parametrize("unrotated_keys", [False, True])
def test_full_rank_is_exact_to_16_bits(method, unrotated_keys):
    original = cache()
    whole = method(1.0, unrotated_keys=unrotated_keys)
    for (i, kind), error in squared_errors(whole, original).items():
        norm = original.layers[i].tensor(kind).double().square().sum().item()
        assert error < (2**-10) ** 2 * norm


def test_svd_bytes_by_hand():
    small = SVD(0.25, sink_tokens=1, recent_tokens=3).compress(cache())
    # 26 tokens x 16 and x 12 wide: 4 and 3 singular values; 4 tokens are plain
    a_layer = 4 * (26 + 16) * 2 + 3 * (26 + 12) * 2 + 2 * 4 * (8 + 6) * 2
    assert small.nbytes == 4 * a_layer


def test_layers_alike_cost_the_rank_of_one():
    one = cache().layers[0]
    layers = tuple(replace(one, index=i) for i in range(4))
    same = replace(cache(), layers=layers)
    stored = CrossLayerSVD(keep=None, energy=1 - 1e-7).compress(same).stored
    assert {n: tuple(x.shape) for n, x in stored.items()} == {
        "0.key.tokens": (30, 16),
        "0.key.dims": (16, 4 * 16),
        "0.value.tokens": (30, 12),
        "0.value.dims": (12, 4 * 12),
    }
    for (_, kind), error in squared_errors(CrossLayerSVD(None, 1 - 1e-7), same).items():
        assert error < 1e-5 * one.tensor(kind).double().square().sum().item()


def test_a_group_shares_what_one_decomposition_of_its_layers_side_by_side_gives():
    original = cache(n_layers=5)
    method = CrossLayerSVD(0.25, group=3)
    found = squared_errors(method, original)
    for kind in KINDS:
        for layers in ((0, 1, 2), (3, 4)):
            x = torch.cat([wide(original.layers[i].tensor(kind)) for i in layers], dim=1)
            values = torch.linalg.svdvals(x.double())
            discarded = values[round(0.25 * len(values)) :].square().sum().item()
            error = sum(found[i, kind] for i in layers)
            assert error == pytest.approx(discarded, rel=1e-2)


def test_layers_that_cache_other_tokens_start_a_group():
    stored = CrossLayerSVD(0.5, group=4).compress(caches.mixed().in_16_bits()).stored
    # The first layer holds a window of 6 tokens, the others all 10.
    assert sorted(n for n in stored if n.endswith("tokens")) == [
        f"{i}.{kind}.tokens" for i in (0, 1) for kind in KINDS
    ]
    assert stored["1.key.dims"].shape[1] == 3 * 16 + 24 + 8
    assert stored["1.value.dims"].shape[1] == 3 * 16 + 8 + 8


def test_a_group_of_one_is_svd():
    one, other = (m.compress(cache()).stored for m in (SVD(0.5), CrossLayerSVD(0.5, group=1)))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_quantised_tucker_bytes_by_hand():
    small = QuantisedTucker(**RANKS, bits=3).compress(cache())
    a_layer = 0
    for dim in (8, 6):
        # core, tokens, dims: packed codes, and scales for columns (of each head in the core)
        codes = (2 * 6 * 5, 30 * 6, dim * 5)
        a_layer += sum(math.ceil(n * 3 / 8) for n in codes) + 2 * (2 * 5 + 6 + 5)
    assert small.nbytes == 4 * a_layer


def test_quantised_tucker_comes_nearer_to_tucker_with_every_bit():
    original = cache()
    plain = Tucker(**RANKS).compress(original).restore()
    apart = []
    for bits in (2, 4, 6, 8):
        back = QuantisedTucker(**RANKS, bits=bits).compress(original).restore()
        pairs = zip(plain.layers, back.layers, strict=True)
        apart.append(sum((a.keys.float() - b.keys.float()).norm().item() for a, b in pairs))
    assert all(more < 0.5 * fewer for fewer, more in pairwise(apart))
    size = sum(layer.keys.float().norm().item() for layer in plain.layers)
    assert apart[-1] < 0.02 * size


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="2 were given, give one"):
        SVD(0.5, 0.9)
    with pytest.raises(UsageError, match="0 were given, give one"):
        SVD(None)
    with pytest.raises(UsageError, match=r"A kept share of 1\.5"):
        SVD(1.5)
    with pytest.raises(UsageError, match="Groups of 0 layers"):
        CrossLayerSVD(group=0)
    with pytest.raises(UsageError, match="codes of 1 bits"):
        QuantisedTucker(bits=1)
