"""Tucker-2 of a stack of KV tensors: the head mode stays whole, the token and the embedding mode
get orthonormal factors. X (heads, tokens, dim) is approximated by a core (heads, r_t, r_e) with
U (tokens, r_t) and V (dim, r_e): X[h] ~ U core[h] V^T.

HOSVD start and HOOI sweeps (De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix Anal. Appl. 21(4),
2000), with one pass over the tokens before the sweeps and one after. All that a sweep asks of the
tokens is in the Gram matrix of the token mode's unfolding, G = sum_t x_t x_t^T with x_t the
heads x dim entries of one token: the best U for a V spans the leading right singular directions of
X (I x V), and U^T X follows from G as well. A tokens x tokens matrix is never formed, and a sweep
costs the same for any length of text. Everything is batched over layers.

tensorly's algebra is not used here: it works on one tensor at a time, and its solver passes over
the tokens in every sweep (`python -m benchmarks.tucker` has both side by side); tests hold ours
against it.
"""

import torch

from compression.methods.spectra import leading
from data.cache import wide


def tucker2(
    x: torch.Tensor, token_rank: int, embedding_rank: int, sweeps: int, tolerance: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Core (layers, heads, r_t, r_e), token factor U (layers, tokens, r_t), embedding factor V
    (layers, dim, r_e) of x (layers, heads, tokens, dim) in float32; U and V orthonormal.

    Stops after `sweeps`, or when no layer's captured share of the squared norm grows by more than
    `tolerance` any more.
    """
    # One layer at a time where tokens are touched: it stays in the processor's cache.
    gram = torch.stack([wide(layer).T @ wide(layer) for layer in x])
    norm = gram.diagonal(dim1=1, dim2=2).sum(-1).clamp(min=torch.finfo(x.dtype).tiny)
    dims = leading_dims(gram, x.shape[1], embedding_rank)
    before = torch.zeros_like(norm)
    for _ in range(sweeps):
        to_tokens, projected, captured = _token_step(gram, dims, token_rank)
        dims = leading(_over_heads(projected, x.shape[3]), embedding_rank)[0]
        share = captured / norm
        if (share - before).max() < tolerance:
            break
        before = share
    # QR, since the Gram matrix knows weak directions only roughly: U is orthonormal in any case.
    spanned = torch.stack([wide(layer) @ m for layer, m in zip(x, to_tokens, strict=True)])
    tokens = torch.linalg.qr(spanned)[0]
    core = torch.stack([u.T @ layer for u, layer in zip(tokens, x, strict=True)]) @ dims[:, None]
    return core, tokens, dims


def leading_dims(gram: torch.Tensor, heads: int, rank: int) -> torch.Tensor:
    """(layers, dim, rank): the HOSVD's embedding factor, from G (layers, heads x dim, same)."""
    blocks = gram.unflatten(1, (heads, -1)).unflatten(3, (heads, -1))
    return leading(blocks.diagonal(dim1=1, dim2=3).sum(-1), rank)[0]


def leading_tokens(gram: torch.Tensor, rows: torch.Tensor, rank: int) -> torch.Tensor:
    """(layers, tokens, rank): the HOSVD's token factor of rows (layers, tokens, heads x dim):
    its leading left singular vectors, by way of the right ones, which G has."""
    right, _ = leading(gram, rank)
    tokens: torch.Tensor = torch.linalg.qr(torch.bmm(rows, right))[0]
    return tokens


def _token_step(
    gram: torch.Tensor, dims: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For V = dims: M (layers, heads x dim, rank) with U = X M, U^T X (layers, rank, heads x dim),
    and the squared norm (layers,) that U and V capture."""
    heads, dim = gram.shape[1] // dims.shape[1], dims.shape[1]
    # G (I x V), as one product per layer
    right = torch.bmm(gram.view(len(gram), -1, dim), dims).view(len(gram), heads * dim, -1)
    small = (dims.transpose(1, 2)[:, None] @ right.unflatten(1, (heads, -1))).flatten(1, 2)
    vectors, values = leading(small, rank)
    limits = torch.finfo(gram.dtype)  # directions without energy must not become infinite
    scale = values.clamp(min=limits.eps * values[:, :1]).clamp(min=limits.tiny).rsqrt()
    vectors = vectors * scale[:, None]  # (layers, heads x r_e, rank)
    to_tokens = (dims[:, None] @ vectors.unflatten(1, (heads, -1))).flatten(1, 2)
    return to_tokens, torch.bmm(vectors.transpose(1, 2), right.transpose(1, 2)), values.sum(-1)


def _over_heads(projected: torch.Tensor, dim: int) -> torch.Tensor:
    """(layers, rank, heads x dim) -> (layers, dim, dim): the Gram matrix of the embedding mode."""
    rows = projected.unflatten(2, (-1, dim)).flatten(1, 2)
    return torch.bmm(rows.transpose(1, 2), rows)


def rebuilt(core: torch.Tensor, tokens: torch.Tensor, dims: torch.Tensor) -> torch.Tensor:
    """(..., heads, tokens, dim) from core (..., heads, r_t, r_e) and its factors."""
    return tokens.unsqueeze(-3) @ (core @ dims.unsqueeze(-3).transpose(-1, -2))
