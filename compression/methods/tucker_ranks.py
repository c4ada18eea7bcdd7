"""Ranks of Tucker decompositions, chosen tensor by tensor from where their energy lies."""

import heapq
import math
from typing import TypeVar

import torch

from compression.methods.place_by_place import Middles, Place
from compression.methods.tucker_math import leading_dims, leading_tokens
from config import UsageError
from data.cache import wide

Ranks = dict[Place, tuple[int, int]]  # token_rank, embedding_rank
# minus the energy gained per byte, which place, from these ranks, to these, and bytes
Offer = tuple[float, Place, tuple[int, int], tuple[int, int], int]
STEP = 4  # ranks grow by this many
BYTES = 2  # of a stored number


def choose_ranks(
    tensors: Middles, energy: float | None = None, target_ratio: float | None = None
) -> Ranks:
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
    if target_ratio is None:
        raise ValueError("ranks are chosen by an energy or by a target_ratio")
    budget = sum(BYTES * x.numel() for x in tensors.values()) / target_ratio
    return _spent(tables, {key: x.shape for key, x in tensors.items()}, budget)


Rank = TypeVar("Rank", int, torch.Tensor)  # one, or a table of them


def stored_bytes(shape: torch.Size, token_rank: Rank, embedding_rank: Rank) -> Rank:
    """Bytes of core and factors for a tensor (heads, tokens, dim)."""
    heads, tokens, dim = shape
    numbers = heads * token_rank * embedding_rank + tokens * token_rank + dim * embedding_rank
    return BYTES * numbers


def _energy_table(x: torch.Tensor) -> torch.Tensor:
    """(R_t, R_e): share of the squared norm in the leading (r_t, r_e) corner of the HOSVD's core,
    at [r_t - 1, r_e - 1]."""
    heads, tokens, dim = x.shape
    x = x.double()  # a few tokens make a Gram matrix of low rank
    rows = wide(x)  # (tokens, heads x dim)
    gram = (rows.T @ rows)[None]
    dims = leading_dims(gram, heads, min(dim, heads * tokens))[0]
    u = leading_tokens(gram, rows[None], min(tokens, heads * dim))[0]
    core = u.T @ (x @ dims)  # (heads, R_t, R_e)
    corner = core.square().sum(0).cumsum(0).cumsum(1).double().cpu()
    return corner / corner[-1, -1].clamp(min=torch.finfo(torch.float32).tiny)


def _cheapest(table: torch.Tensor, shape: torch.Size, energy: float) -> tuple[int, int]:
    r_t = torch.arange(1, table.shape[0] + 1)[:, None]
    r_e = torch.arange(1, table.shape[1] + 1)[None]
    possible = r_t <= shape[0] * r_e  # a token rank beyond heads x r_e adds nothing
    enough = (table >= min(energy, table.max().item() - 1e-7)) & possible
    cost = torch.where(enough, stored_bytes(shape, r_t, r_e).double(), torch.inf)
    best = int(cost.argmin())
    return best // table.shape[1] + 1, best % table.shape[1] + 1


def _spent(
    tables: dict[Place, torch.Tensor], shapes: dict[Place, torch.Size], budget: float
) -> Ranks:
    """Greedy: from rank 1, always the step with the most energy per byte that still fits."""
    ranks: Ranks = dict.fromkeys(tables, (1, 1))
    least = sum(stored_bytes(shapes[key], 1, 1) for key in tables)
    if least > budget:
        original = sum(BYTES * math.prod(shape) for shape in shapes.values())
        raise UsageError(
            "`target_ratio` is beyond what rank 1 stores", f"at most {original / least:.1f} here"
        )
    left = budget - least
    heap: list[Offer] = []

    def offer(key: Place) -> None:
        reached = tables[key][ranks[key][0] - 1, ranks[key][1] - 1]
        for step in _steps(*ranks[key], tables[key].shape, shapes[key][0]):
            gain = (tables[key][step[0] - 1, step[1] - 1] - reached).item()
            cost = stored_bytes(shapes[key], *step) - stored_bytes(shapes[key], *ranks[key])
            heapq.heappush(heap, (-gain / cost, key, ranks[key], step, cost))

    for key in tables:
        offer(key)
    while heap:
        gain_per_byte, key, before, step, cost = heapq.heappop(heap)
        if before == ranks[key] and cost <= left and gain_per_byte < 0:
            ranks[key] = step
            left -= cost
            offer(key)
    return ranks


def _steps(r_t: int, r_e: int, most: torch.Size, heads: int) -> list[tuple[int, int]]:
    """The next ranks in one mode or both, within the tensor's own."""
    more_t, more_e = min(r_t + STEP, most[0]), min(r_e + STEP, most[1])
    steps = {(more_t, r_e), (r_t, more_e), (more_t, more_e)} - {(r_t, r_e)}
    return [(t, e) for t, e in steps if t <= heads * e]
