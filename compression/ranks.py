"""Ranks of Tucker decompositions, chosen tensor by tensor from where their energy lies."""

import heapq
import math

import torch

from compression.tucker_math import leading_dims, leading_tokens
from config import UsageError

STEP = 4  # ranks grow by this many
BYTES = 2  # of a stored number


def choose_ranks(
    tensors: dict, energy: float | None = None, target_ratio: float | None = None
) -> dict:
    """(token_rank, embedding_rank) for each tensor (heads, tokens, dim).

    energy: the fewest bytes that keep this share of each tensor's squared norm.
    target_ratio: bytes for all tensors together, original over stored; every next step goes to the
        tensor and mode where the squared error, relative to the tensor's own norm, falls fastest
        per byte.
    Energies are those of the HOSVD's core, which sweeps can only better.
    """
    tables = {key: _energy_table(x) for key, x in tensors.items()}
    if energy is not None:
        return {key: _cheapest(tables[key], x.shape, energy) for key, x in tensors.items()}
    budget = sum(BYTES * x.numel() for x in tensors.values()) / target_ratio
    return _spent(tables, {key: x.shape for key, x in tensors.items()}, budget)


def stored_bytes(shape: torch.Size, token_rank, embedding_rank):
    """Bytes of core and factors for a tensor (heads, tokens, dim)."""
    heads, tokens, dim = shape
    numbers = heads * token_rank * embedding_rank + tokens * token_rank + dim * embedding_rank
    return BYTES * numbers


def _energy_table(x: torch.Tensor) -> torch.Tensor:
    """(R_t, R_e): share of the squared norm in the leading (r_t, r_e) corner of the HOSVD's core,
    at [r_t - 1, r_e - 1]."""
    heads, tokens, dim = x.shape
    x = x.double()  # a few tokens make a Gram matrix of low rank
    wide = x.transpose(0, 1).flatten(1)  # (tokens, heads x dim)
    gram = (wide.T @ wide)[None]
    dims = leading_dims(gram, heads, min(dim, heads * tokens))[0]
    u = leading_tokens(gram, wide[None], min(tokens, heads * dim))[0]
    core = u.T @ (x @ dims)  # (heads, R_t, R_e)
    corner = core.square().sum(0).cumsum(0).cumsum(1).double()
    return corner / corner[-1, -1].clamp(min=torch.finfo(torch.float32).tiny)


def _cheapest(table: torch.Tensor, shape: torch.Size, energy: float) -> tuple[int, int]:
    r_t = torch.arange(1, table.shape[0] + 1)[:, None]
    r_e = torch.arange(1, table.shape[1] + 1)[None]
    possible = r_t <= shape[0] * r_e  # a token rank beyond heads x r_e adds nothing
    enough = (table >= min(energy, table.max().item() - 1e-7)) & possible
    cost = torch.where(enough, stored_bytes(shape, r_t, r_e).double(), torch.inf)
    best = int(cost.argmin())
    return best // table.shape[1] + 1, best % table.shape[1] + 1


def _spent(tables: dict, shapes: dict, budget: float) -> dict:
    """Greedy: from rank 1, always the step with the most energy per byte that still fits."""
    ranks = dict.fromkeys(tables, (1, 1))
    least = sum(stored_bytes(shapes[key], 1, 1) for key in tables)
    if least > budget:
        original = sum(BYTES * math.prod(shape) for shape in shapes.values())
        raise UsageError(
            f"--target_ratio is beyond what rank 1 stores: at most {original / least:.1f} here."
        )
    left = budget - least
    heap = []

    def offer(key) -> None:
        here = tables[key][ranks[key][0] - 1, ranks[key][1] - 1]
        for step in _steps(*ranks[key], tables[key].shape, shapes[key][0]):
            gain = (tables[key][step[0] - 1, step[1] - 1] - here).item()
            cost = stored_bytes(shapes[key], *step) - stored_bytes(shapes[key], *ranks[key])
            heapq.heappush(heap, (-gain / cost, key, ranks[key], step, cost))

    for key in tables:
        offer(key)
    while heap:
        gain_per_byte, key, at, step, cost = heapq.heappop(heap)
        if at == ranks[key] and cost <= left and gain_per_byte < 0:
            ranks[key] = step
            left -= cost
            offer(key)
    return ranks


def _steps(r_t: int, r_e: int, most: torch.Size, heads: int) -> list[tuple[int, int]]:
    """The next ranks in one mode or both, within the tensor's own."""
    more_t, more_e = min(r_t + STEP, most[0]), min(r_e + STEP, most[1])
    steps = {(more_t, r_e), (r_t, more_e), (more_t, more_e)} - {(r_t, r_e)}
    return [(t, e) for t, e in steps if t <= heads * e]
