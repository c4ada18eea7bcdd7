"""TurboQuant without its second stage: vectors turned at random, so that one scalar codebook, known
beforehand, is right for every coordinate of every vector."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from compression.methods.packing import pack, take_codes
from compression.methods.place_by_place import Place, PlaceByPlace, Shape
from compression.methods.quantisers import TINY, refuse_bits
from compression.parts import Words
from compression.stored import FLOATS, Tensors, taken
from config import UsageError
from data.cache import in_16_bits

MOST_DIMS = 2048  # of a head: a rotation takes their square, and no model has so many
GRID = 2**14  # points that stand for the distribution of a coordinate
MOST_PASSES = 5000  # of the iteration of Lloyd; 4 bits take some hundred


@dataclass(frozen=True)
class RotationQuantiser(PlaceByPlace):
    """The norm of each token's vector in each head in 16 bits, and packed codes for the coordinates
    of its direction after a random rotation (Zandieh et al., TurboQuant, arXiv 2504.19874, the
    variant for the mean squared error: no QJL stage).

    The rotation follows from `seed` and the codebook, Lloyd-Max for a coordinate of a random
    direction, from dim and bits: they are computed again and cost no bytes.
    """

    name: ClassVar[str] = "rotated"
    called: ClassVar[Words] = {"codes": "integers", "norm": "norms"}
    bits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_bits(self.bits)
        if self.seed < 0:
            raise UsageError(f"A seed of {self.seed} was given", "it takes 0 or more")

    def parts(self, x: torch.Tensor, place: Place) -> Tensors:
        dim = x.shape[-1]
        norm = x.norm(dim=-1, keepdim=True)  # (heads, tokens, 1)
        direction = x / norm.clamp(min=TINY) @ rotation(dim, self.seed).T.to(x.device)
        centres = codebook(dim, self.bits).to(x.device)
        codes = torch.bucketize(direction, (centres[1:] + centres[:-1]) / 2)
        return {"codes": pack(codes.to(torch.uint8), self.bits), "norm": in_16_bits(norm)}

    def whole(self, parts: Tensors, shape: Shape, place: Place) -> torch.Tensor:
        codes, dim = take_codes(parts, "codes", self.bits, shape), shape[-1]
        norm = taken(parts, "norm", FLOATS, shape[0], shape[1], 1).float()
        direction = codebook(dim, self.bits).to(codes.device)[codes.long()]
        return direction @ rotation(dim, self.seed).to(codes.device) * norm


@lru_cache
def rotation(dim: int, seed: int) -> torch.Tensor:
    """(dim, dim) orthogonal: Hadamard's matrix after random signs where dim is a power of two, else
    the Q of a Gaussian matrix."""
    if dim > MOST_DIMS:
        raise UsageError(
            f"Heads of {dim} dimensions are too wide to be turned at random",
            f"`rotated` takes up to {MOST_DIMS}, another method more",
        )
    generator = torch.Generator().manual_seed(seed)
    if dim & (dim - 1):
        gaussian = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        turn: torch.Tensor = q * r.diagonal().sign()  # with these signs every one is as likely
        return turn.float()
    matrix = torch.ones(1, 1)
    while len(matrix) < dim:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    signs = 2.0 * torch.randint(2, (dim,), generator=generator) - 1
    return matrix * signs / math.sqrt(dim)


@lru_cache
def codebook(dim: int, bits: int) -> torch.Tensor:
    """(2^bits,) increasing: the Lloyd-Max quantiser of one coordinate of a random direction, whose
    density is (1 - x^2)^((dim - 3) / 2); times sqrt(dim) it comes near the Gaussian."""
    if dim == 1:
        return torch.linspace(-1, 1, 2**bits)  # a direction is one of the ends
    # x = cos(angle), in which the density is smooth: sin(angle)^(dim - 2); 12 deviations hold all
    reach = min(math.pi / 2, 12 / math.sqrt(dim))
    width = 2 * reach / GRID
    angles = math.pi / 2 + reach - width * (torch.arange(GRID, dtype=torch.float64) + 0.5)
    x, weights = angles.cos(), angles.sin() ** (dim - 2)
    mass, moment = (_sums(w) for w in (weights, weights * x))
    # Where many levels are best, their density goes with the cube root of that of x.
    share = _sums((weights / angles.sin()) ** (1 / 3) * angles.sin())
    levels = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    centres = x[torch.searchsorted(share, levels * share[-1]) - 1]
    for _ in range(MOST_PASSES):
        places = (math.pi / 2 + reach - ((centres[1:] + centres[:-1]) / 2).acos()) / width
        places = torch.nn.functional.pad(places, (1, 1))
        places[-1] = GRID
        means = _between(moment, places).diff() / _between(mass, places).diff()
        moved = (means - centres).abs().amax()
        centres = means
        if moved < 1e-9 * reach:
            break
    return centres.float()


def _sums(terms: torch.Tensor) -> torch.Tensor:
    """(n + 1,) the sum of the terms (n,) before each place."""
    return torch.nn.functional.pad(terms.cumsum(0), (1, 0))


def _between(sums: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The sums (n + 1,) at places between 0 and n that need not be whole: rounded ones would hold
    the iteration where it is."""
    below = places.long().clamp(0, len(sums) - 2)
    return torch.lerp(sums[below], sums[below + 1], places - below)
