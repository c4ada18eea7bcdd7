"""An orthonormal basis in few bits: it is orthonormal again, and leaks little of large columns."""

import pytest
import torch

from compression.coded import bases
from compression.coded.roots import half_of, root_of
from compression.stored import nbytes, refuse_left


def problem(width, decay, seed=0):
    """An orthonormal basis, and standard deviations that fall by so many octaves."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator).double())[0].float()
    return basis, 2.0 ** -torch.linspace(0, decay, width)


@pytest.mark.parametrize("width", [1, 2, 7, 64])
@pytest.mark.parametrize("decay", [0, 3, 12])
def test_what_is_read_is_orthonormal_and_all_that_is_stored_is_used(width, decay):
    basis, spread = problem(width, decay)
    stored = bases.kept(basis, spread)
    back = bases.orthonormal(stored, width)
    refuse_left(stored)
    assert torch.allclose(back.T @ back, torch.eye(width), atol=1e-5)


def test_columns_get_a_bit_for_each_octave_that_they_spread_wider():
    bits = bases.kept(*problem(64, 12))["bits"].tolist()
    assert bits[0] == 16 and bits[-1] == 2 and sorted(bits, reverse=True) == bits
    assert {bits.count(n) for n in range(4, 9)} <= {5, 6}  # 64 columns over 12 octaves


def test_bases_have_as_many_bits_as_there_is_room_for():
    directions = [problem(64, 6), problem(32, 3)]
    sizes = []
    for room in (float("inf"), 2700, 2200, 0):
        of_all = bases.fitting(directions, room)
        numbers = sum(nbytes({n: x for n, x in part.items() if n != "scales"}) for part in of_all)
        sizes.append(numbers - 64 - 32)  # without the bits themselves
        assert sizes[-1] <= room or room == 0
        for (basis, _), part in zip(directions, of_all, strict=True):
            assert bases.orthonormal(part, len(basis)).shape == basis.shape
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[1] > sizes[2] > sizes[3]


def test_little_of_the_large_columns_leaks_into_the_small_ones():
    basis, spread = problem(256, 8)
    stored = bases.kept(basis, spread)
    assert nbytes(stored) < 0.35 * 2 * basis.numel()
    covariance = basis @ spread.square().diag() @ basis.T
    back = bases.orthonormal(stored, 256)
    seen = (back.T @ covariance @ back).diagonal()
    octaves = 0.5 * torch.log2(seen / spread.square())
    assert 0 <= octaves.mean() < 0.15  # bits more for each number, were all coded
    alike = bases.kept(basis, torch.ones(256))
    leaking = bases.orthonormal(alike, 256)
    seen = (leaking.T @ covariance @ leaking).diagonal()
    assert (0.5 * torch.log2(seen / spread.square())).mean() > 1  # as few bits for all


@pytest.mark.parametrize(
    "change",
    [
        {"bits": torch.tensor([2, 16, 3, 2], dtype=torch.uint8)},
        {"bits": torch.tensor([16, 9, 3, 2], dtype=torch.uint8)},
        {"scales": torch.zeros(9, dtype=torch.float16)},
        {"plain": torch.zeros(4, 4, dtype=torch.float16)},
    ],
)
def test_what_was_not_kept_so_is_refused(change):
    stored = bases.kept(*problem(4, 12)) | change
    with pytest.raises(ValueError, match=r"is due|do not fall"):
        bases.parts(stored, 4)


@pytest.mark.parametrize("dim", [1, 2, 9])
def test_half_of_a_symmetric_root_is_all_of_it(dim):
    x = torch.randn(dim, dim)
    root = (x + x.T).half()
    tensors = {"roots.1.value": half_of(root), "scales": torch.tensor([1.0, 1, 1, 2])}
    assert torch.equal(root_of(tensors, 1, "value"), 2 * root.double())
