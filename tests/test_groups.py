"""Which layers share a basis, and the linear part of `coded` against one dense matrix."""

import pytest
import torch

from compression.coded.calibration import BITS_OF_BASIS, grouped
from compression.coded.groups import Group, Neighbours
from data.cache import KINDS
from tests import caches
from tests.bruteforce import dense_basis


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
    assert grouped(wide, work=1600**2) == [[((i,), 400) for i in range(4)]]


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
    basis, root = dense_basis(group)
    products = group.products(torch.device("cpu"))
    x = torch.randn(9, 20, generator=generator)
    coefficients = products.coefficients(x)
    exact = basis.T @ root @ x.double().T
    assert torch.allclose(coefficients.double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.allclose(products.content(coefficients, group.bands), x, atol=1e-4)
    most = [n // 2 for n in group.bands]
    few = products.coefficients(x, most)
    whole = torch.zeros_like(coefficients)
    for band, of_whole, of_few, n in zip(
        coefficients.split(group.bands),
        whole.split(group.bands),
        few.split(most),
        most,
        strict=True,
    ):
        assert torch.allclose(of_few, band[:n], atol=1e-5)
        of_whole[:n] = of_few
    expected = products.content(whole, group.bands)
    assert torch.allclose(products.content(few, most), expected, atol=1e-4)
    rough = group.products(torch.device("cpu"), torch.bfloat16)
    off = (rough.coefficients(x) - coefficients).norm() / coefficients.norm()
    assert 0 < off < 2**-6
    off = (rough.content(few, most) - expected).norm() / expected.norm()
    assert 0 < off < 2**-6
