"""Leading directions: what low-rank methods are made of."""

import torch


def leading(gram: torch.Tensor, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors (..., n, rank) and eigenvalues (..., rank) of symmetric (..., n, n), the
    largest first; all of them without a rank."""
    values, vectors = torch.linalg.eigh(gram)
    first = 0 if rank is None else gram.shape[-1] - rank
    return vectors[..., first:].flip(-1), values[..., first:].flip(-1)


def gram_of(rows: torch.Tensor) -> torch.Tensor:
    """(dim, dim) in float64 from (n, dim): it squares what it is made of."""
    return rows.T.double() @ rows.double()
