"""The linear part of `coded`: from what layers hold to coefficients, and back.

In two steps, for one basis of all layers would be as large as the square of what they hold:
neighbouring layers share a basis, and then the first columns of all neighbours are turned once
more, since what they have in common is common to layers far from each other too.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from compression.coded import bases
from compression.coded.products import Products
from compression.coded.rans import Tables
from compression.coded.roots import root_of
from compression.methods.place_by_place import Place
from compression.stored import Tensors, taken, under
from data.cache import KINDS


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Layers that share a basis.

    places: (layer, kind) in the order in which their dimensions are joined.
    basis: (width, columns) float32. roots, inverses: (dim, dim) float32 of each place. mean:
    (width,) float32.
    """

    places: tuple[Place, ...]
    basis: torch.Tensor
    roots: tuple[torch.Tensor, ...]
    inverses: tuple[torch.Tensor, ...]
    mean: torch.Tensor

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(i for i, kind in self.places if kind == KINDS[0])

    @property
    def widths(self) -> list[int]:
        return [len(root) for root in self.roots]

    @property
    def analysis(self) -> torch.Tensor:
        """(columns, width): U^T A, which takes what was cached to coefficients."""
        return self._after(self.roots)

    @property
    def synthesis(self) -> torch.Tensor:
        """(columns, width): (A^-1 U)^T, which takes coefficients back."""
        return self._after(self.inverses)

    def _after(self, factors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        rows = self.basis.split(self.widths)  # (dim, columns) each
        return torch.cat([b.T @ f for b, f in zip(rows, factors, strict=True)], dim=1)


@dataclass(frozen=True, eq=False)
class Group:
    """The layers of one kind that hold the same tokens.

    firsts: how many of the first columns of each of the neighbours are turned together. turn:
    (firsts, columns) float32, orthonormal.

    Columns come in bands, in each of which they hold less and less: those of `turn`, then what is
    left of each of the neighbours.
    """

    neighbours: tuple[Neighbours, ...]
    firsts: tuple[int, ...]
    turn: torch.Tensor

    @cached_property
    def places(self) -> tuple[Place, ...]:
        return tuple(place for each in self.neighbours for place in each.places)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        return tuple(i for i, kind in self.places if kind == KINDS[0])

    @cached_property
    def widths(self) -> list[int]:
        return [width for each in self.neighbours for width in each.widths]

    @cached_property
    def mean(self) -> torch.Tensor:
        """(width,) of all places, over all texts."""
        return torch.cat([each.mean for each in self.neighbours])

    @cached_property
    def bands(self) -> list[int]:
        """The columns of each."""
        left = (
            len(each.mean) - first for each, first in zip(self.neighbours, self.firsts, strict=True)
        )
        return [len(self.turn), *left]

    @property
    def columns(self) -> int:
        return sum(self.bands)

    def products(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Products:
        """What takes them to coefficients and back there, and kept there: it is large."""
        if (device, dtype) not in self._products:
            self._products[device, dtype] = Products(
                tuple(each.analysis.to(device, dtype) for each in self.neighbours),
                tuple(each.synthesis.to(device, dtype) for each in self.neighbours),
                self.firsts,
                self.turn.to(device, dtype),
                self.bands,
                self.mean.to(device),
            )
        return self._products[device, dtype]

    @cached_property
    def _products(self) -> dict[tuple[torch.device, torch.dtype], Products]:
        return {}


def read_neighbours(tensors: Tensors, n: int, coder: Tables) -> Neighbours:
    """Out of the tensors of a calibration. Raises ValueError for what cannot be inverted."""
    places = tuple((i, kind) for i in tensors[f"layers.{n}"].tolist() for kind in KINDS)
    roots = [root_of(tensors, *place) for place in places]
    return Neighbours(
        places,
        bases.orthonormal(under(dict(tensors), f"basis.{n}."), list(map(len, roots)), coder),
        tuple(root.float() for root in roots),
        tuple(_inverse(root).float() for root in roots),
        tensors[f"means.{n}"],
    )


def read_group(tensors: Tensors, g: int, coder: Tables) -> Group:
    """The same, with its neighbours."""
    numbers, firsts = tensors[f"joined.{g}"].T.tolist()
    of_turn = under(dict(tensors), f"turn.{g}.")
    turn = bases.orthonormal(of_turn, firsts, coder) if sum(firsts) else torch.zeros(0, 0)
    return Group(tuple(read_neighbours(tensors, n, coder) for n in numbers), tuple(firsts), turn)


def refuse_misfit(left: Tensors, widths: dict[Place, int]) -> None:
    """Take out what is of neighbours and groups; raise ValueError where it is not all that is
    learned of a model whose cached places have these widths, heads x dim."""
    places: list[Place] = []
    of_neighbours = []
    for n in range(sum(name.startswith("layers.") for name in left)):
        layers = taken(left, f"layers.{n}", (torch.int32,), None).tolist()
        held = [(i, kind) for i in layers for kind in KINDS if (i, kind) in widths]
        of_neighbours.append(sum(widths[place] for place in held))
        bases.refuse_misfit(under(left, f"basis.{n}."), of_neighbours[-1])
        taken(left, f"means.{n}", (torch.float32,), of_neighbours[-1])
        for i, kind in held:
            dim = widths[i, kind]
            taken(left, f"roots.{i}.{kind}", (torch.float16,), dim * (dim + 1) // 2)
        places += held
    if sorted(places) != sorted(widths):
        raise ValueError("it is not of all layers")
    joined: list[int] = []
    for g in range(sum(name.startswith("joined.") for name in left)):
        pairs = taken(left, f"joined.{g}", (torch.int32,), None, 2).tolist()
        for n, first in pairs:
            if not (0 <= n < len(of_neighbours) and 0 <= first <= of_neighbours[n]):
                raise ValueError("its layers are joined to others than it has")
            joined.append(n)
        bases.refuse_misfit(under(left, f"turn.{g}."), sum(first for _, first in pairs))
    if sorted(joined) != list(range(len(of_neighbours))):
        raise ValueError("not each of its layers is joined once")


def _inverse(root: torch.Tensor) -> torch.Tensor:
    inverse: torch.Tensor
    inverse, failed = torch.linalg.inv_ex(root)
    if failed:
        raise ValueError("a root cannot be inverted")
    return inverse
