"""Fewer dimensions: identities at full size, optimality against brute force, bytes by hand."""

import itertools

import pytest
import torch

from compression import files
from compression.methods.dim_groups import dimension_groups, group_dims, group_directions
from compression.methods.dimensions import (
    PCA,
    CalibratedPCA,
    DroppedDims,
    EmbeddingFactor,
    MergedDims,
    fitted_bases,
)
from compression.stored import nbytes
from config import UsageError
from data.cache import KINDS
from tests import caches


def smooth_cache(tokens: int = 40):
    """Keys and values without the planted outlier, two layers of 2 heads and 6 dims."""
    layers = [caches.layer(i, 2, tokens, (6, 6)) for i in range(2)]
    for layer in layers:
        layer.keys[0, 0, 0] = 1.0
    return caches.cache(*layers).in_16_bits()


def worst(method, cache) -> float:
    back = method.compress(cache).restore()
    return max(
        (a.tensor(kind).float() - b.tensor(kind).float()).abs().max().item()
        for a, b in zip(cache.layers, back.layers, strict=True)
        for kind in KINDS
    )


@pytest.mark.parametrize("unrotated", [False, True])
@pytest.mark.parametrize("way", [MergedDims, DroppedDims, EmbeddingFactor, PCA])
def test_all_dimensions_kept_restore_within_rounding(way, unrotated):
    assert worst(way(1.0, unrotated_keys=unrotated), smooth_cache()) < 0.02


def test_a_basis_of_other_texts_is_exact_at_full_size_and_counts_once_for_the_model():
    cache = smooth_cache()
    side = fitted_bases([smooth_cache(30)], False, "another text")
    method = CalibratedPCA(1.0, calibration=side)
    assert worst(method, cache) < 0.02
    half = CalibratedPCA(0.5, calibration=side)
    assert half.compress(cache).nbytes == 2 * 2 * 40 * 6 * 2  # coefficients alone
    assert half.per_model_nbytes == 2 * 2 * 12 * 6 * 2 == nbytes(half.calibration.tensors)
    assert PCA(0.5).compress(cache).nbytes == 2 * 2 * (40 * 6 + 12 * 6) * 2


def test_a_file_asks_for_the_calibration_it_was_made_with(tmp_path):
    cache = smooth_cache()
    one, other = (fitted_bases([smooth_cache(n)], False, "text") for n in (30, 31))  # of all dims
    files.save(CalibratedPCA(0.5, calibration=one).compress(cache), tmp_path / "a")
    assert files.load(tmp_path / "a", one).nbytes == 2 * 2 * 40 * 6 * 2
    for wrong in (other, None):
        with pytest.raises(UsageError, match="compressed with another calibration: give that one"):
            files.load(tmp_path / "a", wrong)


def test_pca_errs_by_the_energy_of_the_directions_left_out():
    cache = smooth_cache()
    back = PCA(0.5).compress(cache).restore()
    for a, b in zip(cache.layers, back.layers, strict=True):
        x = a.values.float().transpose(0, 1).flatten(1)
        error = (a.values.float() - b.values.float()).square().sum()
        left_out = torch.linalg.svdvals(x)[6:].square().sum()
        assert error.item() == pytest.approx(left_out.item(), rel=0.01)


def test_the_embedding_factor_is_shared_by_the_heads():
    cache = smooth_cache()
    stored = EmbeddingFactor(0.5).compress(cache).stored
    assert stored["0.key.factor"].shape == (6, 3) and stored["0.key.core"].shape == (2, 40, 3)
    x = cache.layers[0].values.float()
    factor = stored["0.value.factor"].float()
    torch.testing.assert_close(factor.T @ factor, torch.eye(3), atol=2e-3, rtol=0)
    best = torch.linalg.svdvals(x.flatten(0, 1))[:3].square().sum()
    assert stored["0.value.core"].float().square().sum().item() == pytest.approx(
        best.item(), rel=0.01
    )


def test_sparse_dimensions_go_first_and_read_as_zero():
    cache = smooth_cache()
    cache.layers[0].values[1, :, 4] = 0
    cache.layers[0].values[1, 3:, 2] = 0
    back = DroppedDims(4 / 6, percentage=1.0).compress(cache).restore()
    dropped = (back.layers[0].values == 0).all(1)  # (heads, dim)
    assert dropped[1].nonzero().flatten().tolist() == [2, 4]
    natural = DroppedDims(1.0, sparser=0.8).compress(cache).restore()
    assert (natural.layers[0].values == 0).all(1).sum() == 2
    chance = DroppedDims(1.0, sparser=0.8, at_random=1).compress(cache)
    assert (chance.restore().layers[0].values == 0).all(1).sum() >= 2
    assert chance.nbytes == DroppedDims(1.0, sparser=0.8).compress(cache).nbytes


def grouped(x, n_kept, similarity=0.0, largest=8):
    """Brute force: complete linkage on |cosine| of one head (tokens, dim), as sets of dims."""
    unit = x / x.norm(dim=0)
    alike = (unit.T @ unit).abs()
    groups = [{i} for i in range(x.shape[1])]
    while len(groups) > n_kept:
        pairs = [
            (min(alike[i, j].item() for i in a for j in b), a, b)
            for a, b in itertools.combinations(groups, 2)
            if len(a) + len(b) <= largest
        ]
        best = max(pairs, key=lambda pair: pair[0], default=(-1, None, None))
        if best[0] < max(similarity, 0):
            break
        groups = [g for g in groups if g not in best[1:]] + [best[1] | best[2]]
    return {frozenset(g) for g in groups}


@pytest.mark.parametrize("limits", [(3, 0.0, 8), (1, 0.25, 8), (2, 0.0, 3), (6, 0.0, 8)])
def test_dimensions_are_grouped_as_brute_force_does(limits):
    x = torch.randn(4, 30, 7, generator=torch.Generator().manual_seed(3))
    x[..., 5] = -2 * x[..., 1] + 0.3 * x[..., 5]
    found = group_dims(x, *limits)
    for head in range(4):
        numbers = found[head].tolist()
        sets = {frozenset(i for i, g in enumerate(numbers) if g == k) for k in set(numbers)}
        assert sets == grouped(x[head], *limits)
        assert set(numbers) == set(range(len(sets)))


def test_the_direction_of_a_group_is_its_best_stand_in():
    x = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(4))
    x[..., 3] = -1.5 * x[..., 0] + 0.2 * x[..., 3]
    groups = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    scales = group_directions(x, groups)
    for head in range(2):
        for g in range(3):
            mine = groups[head] == g
            members, s = x[head][:, mine], scales[head][mine]
            assert s.norm().item() == pytest.approx(1, abs=1e-5)
            rest = (members - (members @ s)[:, None] * s).square().sum()
            best = torch.linalg.svdvals(members)[1:].square().sum()
            assert rest.item() == pytest.approx(best.item(), rel=0.02)


def test_multiples_of_one_dimension_are_merged_without_loss():
    cache = smooth_cache()
    for layer in cache.layers:
        layer.values[:, :, 3] = -2 * layer.values[:, :, 0]
        layer.keys[:, :, 5] = layer.keys[:, :, 1]
    method = MergedDims(1.0, similarity=0.999)
    assert worst(method, cache) < 0.02
    # 5 of 6 dimensions of each head, a group number and a scale for each of the 6
    assert method.compress(cache).nbytes == 4 * (2 * 5 * 40 * 2 + 2 * 6 * (1 + 2))
    table = dimension_groups(cache, 0.999, 8)
    sizes = table[table["kind"] == "value"].groupby("dim")["group_size"].max()
    assert sizes.tolist() == [2, 1, 1, 2, 1, 1]


def test_a_level_that_needs_larger_groups_is_refused():
    with pytest.raises(UsageError, match="groups of more than 8"):
        MergedDims(0.1)
    with pytest.raises(UsageError, match="A kept share of 0 was given"):
        PCA(0.0)
