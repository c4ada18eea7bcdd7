"""KVTC (arXiv 2511.01815), rebuilt from its abstract and public descriptions, since there is no
official code: transform coding over all heads and layers.

Keys before rotary embedding, and values apart from them, of all layers that hold the same tokens
are one vector for each token. A basis of principal directions and a mean, both from calibration,
take it to coefficients; these get the bits that dynamic programming has chosen for a budget
(kvtc_plan.py), and the bytes go through DEFLATE. The 4 first and 128 recent tokens stay plain.

Where a choice is ours, the one is taken that stores less or costs less: 8-bit floats have
one scale per column and model instead of one with every token, and steps and zeros go through
DEFLATE too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from compression.base import Calibration, Compressed
from compression.deflated import deflated_tensor, inflated_tensor
from compression.methods.kvtc_plan import (
    FP8,
    INTEGERS,
    Runs,
    as_floats,
    from_min_max,
    min_max,
)
from compression.methods.packing import nbytes_of, pack, unpack
from compression.methods.place_by_place import ENDS, BetweenEnds, Middles, Place, Shapes
from compression.parts import BOTH, Part
from compression.shapes import CacheShape
from compression.stored import Tensors, taken
from config import UsageError
from data.cache import KINDS, by_head, wide

RATIOS = (4, 8, 16, 32, 64)  # that plans are made for
LEARNED = {  # what its calibration holds, by the first word of the names
    "layers": "layers of each group",
    "mean": "means",
    "basis": "basis",
    "scales": "scales",
    "plan": "bits of each column",
}


@dataclass(frozen=True)
class KVTC(BetweenEnds):
    """ratio: of the budget that bits were chosen for, before DEFLATE and without plain tokens."""

    name: ClassVar[str] = "kvtc"
    learns: ClassVar[str] = "kvtc"
    ratio: int = 16
    sink_tokens: int = field(default=4, kw_only=True)
    recent_tokens: int = field(default=128, kw_only=True)
    unrotated_keys: bool = field(default=True, kw_only=True)
    # A field here, of the class elsewhere: which it is tells who is calibrated.
    calibration: Calibration = field(kw_only=True, compare=False, repr=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio not in RATIOS:
            raise UsageError(
                f"kvtc was given a ratio of {self.ratio}",
                f"its bits are chosen for {', '.join(map(str, RATIOS))}",
            )
        object.__setattr__(self, "calibration", self._cut())

    def _cut(self) -> Calibration:
        """What this budget needs of what was learned: no plans of others, and no directions
        without bits."""
        kept: Tensors = {}
        for name, tensor in self.calibration.tensors.items():
            what, _, place = name.partition(".")
            if what == "plan":
                ratio, _, _ = place.partition(".")
                if int(ratio) == self.ratio:
                    kept[name] = tensor
            elif what in ("basis", "scales"):
                n_columns = int(self._plan(place)[:, 1].sum())
                kept[name] = tensor[..., :n_columns].contiguous()
            else:
                kept[name] = tensor
        return replace(self.calibration, tensors=kept)

    def _plan(self, place: str) -> torch.Tensor:
        """(runs, 2): bits and columns. place: group and kind, as `0.key`."""
        plan = self.calibration.tensors.get(f"plan.{self.ratio}.{place}")
        if plan is None:
            raise ValueError("this calibration was not made for kvtc")
        return plan

    def _groups(self) -> Iterator[tuple[str, list[Place]]]:
        """Of each group and kind the name, and the places whose dimensions are joined."""
        layers = (n for n in self.calibration.tensors if n.startswith("layers."))
        for name in layers:
            for kind in KINDS:
                places = [(i, kind) for i in self.calibration.tensors[name].tolist()]
                yield f"{name.removeprefix('layers.')}.{kind}", places

    def _basis(self, name: str, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean (width,) and the directions (width, columns) in float32."""
        tensors = self.calibration.tensors
        return tuple(tensors[f"{of}.{name}"].to(like.device).float() for of in ("mean", "basis"))  # type: ignore[return-value]

    def part(self, name: str, of: Compressed) -> Part:
        if name.startswith(ENDS):
            return super().part(name, of)
        group, kind = name.split(".")
        return Part("deflated coefficients", self._layers(group, of.shape), kind)

    def learned_part(self, name: str, shape: CacheShape) -> Part:
        what, *rest = name.split(".")
        if what == "layers":
            return Part(LEARNED[what], self._layers(rest[0], shape), BOTH)
        return Part(LEARNED[what], self._layers(rest[-2], shape), rest[-1])

    def _layers(self, group: str, shape: CacheShape) -> tuple[int, ...]:
        places = self.calibration.tensors[f"layers.{group}"].tolist()
        return tuple(shape.layers[place].index for place in places)

    def encode_middles(self, middles: Middles) -> Tensors:
        self._refuse_misfit({place: tuple(x.shape) for place, x in middles.items()})  # type: ignore[misc]
        stored: Tensors = {}
        for name, places in self._groups():
            held = [wide(middles[place]) for place in places if place in middles]
            if held:
                x = torch.cat(held, dim=1)
                mean, basis = self._basis(name, x)
                stored[name] = self._deflated((x - mean) @ basis, name)
        return stored

    def decode_middles(self, stored: Tensors, shapes: Shapes) -> Middles:
        self._refuse_misfit(shapes)
        middles: Middles = {}
        for name, places in self._groups():
            if places[0] not in shapes:
                continue
            coefficients = self._inflated(
                taken(stored, name, (torch.uint8,), None), shapes[places[0]][1], name
            )
            mean, basis = self._basis(name, coefficients)
            widths = [shapes[place][0] * shapes[place][2] for place in places]
            parts = (coefficients @ basis.T + mean).split(widths, dim=1)
            for place, part in zip(places, parts, strict=True):
                middles[place] = by_head(part, shapes[place][0])
        return middles

    def _deflated(self, coefficients: torch.Tensor, name: str) -> torch.Tensor:
        """(bytes,) uint8 of (tokens, columns)."""
        codes, sides = [], []
        scales = self.calibration.tensors[f"scales.{name}"].to(coefficients.device)
        for bits, columns in self._runs(name):
            x = coefficients[:, columns]
            if bits in INTEGERS:
                numbers, *side = min_max(x, bits)
                codes.append(pack(numbers.T.contiguous(), bits))
                sides += [each.flatten().view(torch.uint8) for each in side]
            elif bits:
                floats = as_floats(x, scales[columns])
                codes.append(floats.view(torch.uint8).T.flatten())
        empty = torch.empty(0, dtype=torch.uint8, device=coefficients.device)
        return deflated_tensor(torch.cat([empty, *codes, *sides]))

    def _inflated(self, stored: torch.Tensor, n_tokens: int, name: str) -> torch.Tensor:
        """(tokens, columns) in float32; raises ValueError for what is not as it was stored."""
        runs = list(self._runs(name))
        sizes = [nbytes_of(n_tokens * _width(c), bits) for bits, c in runs]
        sizes += [2 * n_tokens for bits, _ in runs if bits in INTEGERS for _ in range(2)]
        parts = inflated_tensor(stored, sum(sizes)).split(sizes)
        codes, sides = parts[: len(runs)], iter(parts[len(runs) :])
        scales = self.calibration.tensors[f"scales.{name}"].to(stored.device)
        x = torch.zeros(n_tokens, len(scales), device=stored.device)
        for (bits, columns), part in zip(runs, codes, strict=True):
            by_column = (_width(columns), n_tokens)
            if bits in INTEGERS:
                step, zero = (next(sides).clone().view(torch.bfloat16)[:, None] for _ in range(2))
                x[:, columns] = from_min_max(unpack(part, bits, by_column).T, step, zero)
            elif bits:
                x[:, columns] = part.clone().view(FP8).view(by_column).T.float() * scales[columns]
        return x

    def _runs(self, name: str) -> Iterator[tuple[int, slice]]:
        start = 0
        for bits, size in self._plan(name).tolist():
            yield bits, slice(start, start + size)
            start += size

    def _refuse_misfit(self, shapes: Shapes) -> None:
        """Raise UsageError for places of another model, or that no longer hold the same tokens."""
        for name, places in self._groups():
            here = [shapes[place] for place in places if place in shapes]
            width = len(self.calibration.tensors[f"mean.{name}"])
            if here and sum(heads * dim for heads, _, dim in here) != width:
                raise UsageError(
                    f"The calibration ({self.calibration.learned_from}) does not fit this cache",
                    "calibrate for its model",
                )
            if len({tokens for _, tokens, _ in here}) > 1:
                raise UsageError(
                    "Layers that were calibrated together hold different tokens of this text, for "
                    "their windows differ",
                    "take a shorter context or another method",
                )
        learned = {place for _, places in self._groups() for place in places}
        if not set(shapes) <= learned:
            raise UsageError(
                f"The calibration ({self.calibration.learned_from}) does not fit this cache",
                "calibrate for its model",
            )


def _width(columns: slice) -> int:
    return int(columns.stop - columns.start)


def as_tensor(plan: Runs) -> torch.Tensor:
    """(runs, 2) as it is stored."""
    return torch.tensor(plan, dtype=torch.int16).reshape(-1, 2)
