"""Leading directions, against singular values and plain sums."""

import pytest
import torch

from compression.methods.spectra import gram_of, leading


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(30, 6), (4, 6), (1, 1)])
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_leading_directions_are_the_right_singular_vectors(shape, rank):
    x = rows(*shape)
    n = shape[1] if rank is None else min(rank, shape[1])
    vectors, values = leading(gram_of(x), None if rank is None else n)
    _, singular, right = torch.linalg.svd(x.double(), full_matrices=False)
    squares = torch.zeros(shape[1]).double()
    squares[: len(singular)] = singular.square()
    torch.testing.assert_close(values, squares[:n], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(n).double())
    n = min(n, len(singular))  # beyond, any direction has no energy
    same = (vectors[:, :n] * right.T[:, :n]).sum(0).abs()
    torch.testing.assert_close(same, torch.ones(n).double())


def test_each_of_a_batch_is_as_if_alone():
    grams = torch.stack([gram_of(rows(20, 5)), gram_of(rows(9, 5))]).unflatten(0, (2, 1))
    vectors, values = leading(grams, 2)
    assert vectors.shape == (2, 1, 5, 2) and values.shape == (2, 1, 2)
    for i in range(2):
        alone = leading(grams[i, 0], 2)
        torch.testing.assert_close(vectors[i, 0], alone[0])
        torch.testing.assert_close(values[i, 0], alone[1])


def test_a_gram_matrix_is_the_sum_over_rows_in_float64():
    x = rows(7, 3).half()
    expected = sum(torch.outer(row, row) for row in x.double())
    torch.testing.assert_close(gram_of(x), expected, atol=0, rtol=1e-12)
    assert gram_of(x).dtype == torch.float64
