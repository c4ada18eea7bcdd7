"""An orthonormal basis in few bits: it is orthonormal again, and leaks little of large columns."""

import math

import numpy as np
import pytest
import torch

from compression.coded import bases, rans, tables
from compression.coded.rans import Tables
from compression.coded.roots import half_of, root_of
from compression.deflated import deflated_tensor
from compression.stored import nbytes, refuse_left


def problem(width, decay, seed=0):
    """An orthonormal basis, and standard deviations that fall by so many octaves."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator).double())[0].float()
    return basis, 2.0 ** -torch.linspace(0, decay, width)


def kept(basis, spread, sizes=None, room=0.0):
    """What is stored, with what reads it; with no room, in as few bits as there are."""
    sizes = sizes or [len(basis)]
    (stored,), frequencies = bases.fitting([(basis, spread, sizes)], room)
    return stored, sizes, Tables(frequencies)


@pytest.mark.parametrize("width", [1, 2, 7, 64])
@pytest.mark.parametrize("decay", [0, 3, 12])
@pytest.mark.parametrize("room", [0.0, math.inf])
def test_what_is_read_is_orthonormal_and_all_that_is_stored_is_used(width, decay, room):
    stored, *how = kept(*problem(width, decay), [width // 2, width - width // 2], room)
    back = bases.orthonormal(stored, *how)
    refuse_left(stored)
    assert torch.allclose(back.T @ back, torch.eye(width), atol=1e-5)


def test_reflections_make_the_basis_up_but_for_signs():
    basis, _ = problem(64, 0)
    back = bases._product(bases._reflections(basis))
    assert torch.allclose((back * basis).sum(0).abs(), torch.ones(64), atol=1e-5)


def test_columns_that_spread_wider_have_shorter_steps():
    stored, *_ = kept(*problem(64, 12))
    steps = stored["steps"].double()
    octaves = torch.log2(steps[:-1] / steps[1:])
    assert (octaves <= 0.01).all()  # never shorter again
    assert torch.allclose(octaves[:40], torch.full((40,), -12 / 63).double(), atol=0.01)


def test_bases_have_as_short_steps_as_there_is_room_for():
    directions = [(*problem(64, 6), [32, 32]), (*problem(32, 3), [32])]
    sizes, steps = [], []
    for room in (math.inf, 1800, 1500, 0):
        of_all, frequencies = bases.fitting(directions, room)
        sizes.append(sum(nbytes(part) for part in of_all))
        steps.append(float(of_all[0]["steps"][-1]))
        assert sizes[-1] <= room or room == 0
        for (basis, *_), part in zip(directions, of_all, strict=True):
            back = bases.orthonormal(part, directions[len(basis) == 32][2], Tables(frequencies))
            assert back.shape == basis.shape
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert steps == sorted(steps) and len(set(steps)) == 4


def test_the_table_of_others_may_be_given():
    basis, spread = problem(48, 5)
    _, frequencies = bases.fitting([(*problem(48, 5, seed=1), [48])], 0)
    (stored,), same = bases.fitting([(basis, spread, [48])], 0, frequencies)
    assert same is frequencies
    back = bases.orthonormal(stored, [48], Tables(frequencies))
    assert ((back * basis).sum(0).abs()[:12] > 0.98).all()


def test_what_a_basis_takes_is_told_before_it_is_coded():
    """To a hundredth, and the ends of the coder's lanes."""
    generator = np.random.default_rng(0)
    of_integers = generator.integers(20, 50, 40_000).astype(np.uint8)
    spread = 2.0 ** ((of_integers.astype(float) - 24) / 4)
    integers = np.rint(generator.laplace(0, spread / 2**0.5)).astype(np.int32)
    counts = tables.counted(integers, of_integers)
    frequencies = tables.frequencies(counts)
    stored = rans.encode(integers, of_integers, Tables(frequencies))
    told = tables.n_bytes(counts, frequencies)
    assert abs(nbytes(stored) - told) < 0.01 * told + 8 * len(stored["state"])


def test_little_of_the_large_columns_leaks_into_the_small_ones():
    basis, spread = problem(256, 8)
    stored, *how = kept(basis, spread, room=0.2 * 2 * basis.numel())
    assert nbytes(stored) < 0.2 * 2 * basis.numel()
    covariance = basis @ spread.square().diag() @ basis.T
    back = bases.orthonormal(stored, *how)
    seen = (back.T @ covariance @ back).diagonal()
    octaves = 0.5 * torch.log2(seen / spread.square())
    assert 0 <= octaves.mean() < 0.1  # bits more for each number, were all coded
    alike, *how = kept(basis, torch.ones(256), room=0.2 * 2 * basis.numel())
    leaking = bases.orthonormal(alike, *how)
    seen = (leaking.T @ covariance @ leaking).diagonal()
    assert (0.5 * torch.log2(seen / spread.square())).mean() > 1  # as few bits for all


@pytest.mark.parametrize(
    "change",
    [
        {"steps": torch.zeros(4, dtype=torch.float16)},
        {"steps": torch.ones(3, dtype=torch.float16)},
        {"steps": torch.full((4,), torch.inf, dtype=torch.float16)},
        {"classes": deflated_tensor(torch.tensor([200, 0, 0, 0], dtype=torch.uint8))},
        {"classes": deflated_tensor(torch.zeros(5, dtype=torch.uint8))},
        {"classes": torch.zeros(4, dtype=torch.uint8)},
        {"words": torch.zeros(9, dtype=torch.int16)},
        {"more": torch.zeros(1)},
    ],
)
def test_what_was_not_kept_so_is_refused(change):
    stored, *how = kept(*problem(4, 12))
    message = r"is due|above 0|no class|bytes|inflated|do not end|belongs to nothing"
    with pytest.raises(ValueError, match=message):
        bases.refuse_misfit(stored | change, 4)
        bases.orthonormal(stored | change, *how)


@pytest.mark.parametrize("dim", [1, 2, 9])
def test_half_of_a_symmetric_root_is_all_of_it(dim):
    x = torch.randn(dim, dim)
    root = (x + x.T).half()
    tensors = {"roots.1.value": half_of(root), "scales": torch.tensor([1.0, 1, 1, 2])}
    assert torch.equal(root_of(tensors, 1, "value"), 2 * root.double())
