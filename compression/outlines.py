"""The shape of a cache as bytes: in JSON what layers are, those that are alike once; in binary the
token ids and the frequencies of each rotary table, once."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np
import torch

from compression.packed import deflated, inflated
from compression.shapes import CacheShape, LayerShape
from compression.stored import Tensors, taken
from data.headers import fitting, shown, words
from data.rotary import Rotary

SHAPE, TOKEN_IDS, FREQUENCIES = "shape", "token_ids", "frequencies"
ID_DTYPES = ("uint8", "uint16", "int32")  # the first that holds them all
FREQUENCY_DTYPES = ("float32", "float64")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Alike:
    """What layers have in common, see `LayerShape`; rotary: the number of their table."""

    kind: str
    n_heads: int
    n_tokens: int
    key_dim: int
    value_dim: int
    start: int
    dtype: str
    rotary: int | None

    def layer(self, index: int, tables: list[Rotary]) -> LayerShape:
        if self.rotary is not None and not 0 <= self.rotary < len(tables):
            raise ValueError(f"layer {index} is turned by a table that is not there")
        named = asdict(self) | {"index": index}
        return LayerShape(
            **named | {"rotary": None if self.rotary is None else tables[self.rotary]}
        )


@dataclass(frozen=True)
class Table:
    """A `Rotary` but for its frequencies. pairs: how many these are."""

    pairs: int
    scaling: float
    interleaved: bool


@dataclass(frozen=True)
class Outline:
    """alike: kinds of layers. layers: the index of each in the model, and which of these it is.
    ids, frequencies: dtypes."""

    alike: tuple[Alike, ...]
    layers: tuple[tuple[int, int], ...]
    tables: tuple[Table, ...]
    frequencies: str
    ids: str
    n_prompt: int
    model: str


def written(shape: CacheShape) -> Tensors:
    """SHAPE, TOKEN_IDS and FREQUENCIES."""
    rotaries = _once(layer.rotary for layer in shape.layers if layer.rotary is not None)
    described = [_described(layer, rotaries) for layer in shape.layers]
    kinds = _once(described)
    frequencies = [x for rotary in rotaries for x in rotary.frequencies]
    outline = Outline(
        alike=tuple(kinds),
        layers=tuple(
            (layer.index, kinds.index(alike))
            for layer, alike in zip(shape.layers, described, strict=True)
        ),
        tables=tuple(Table(len(r.frequencies), r.scaling, r.interleaved) for r in rotaries),
        frequencies=_smallest(frequencies, FREQUENCY_DTYPES),
        ids=_smallest(shape.token_ids, ID_DTYPES),
        n_prompt=shape.n_prompt,
        model=shape.model,
    )
    return {
        SHAPE: deflated(json.dumps(asdict(outline), separators=(",", ":")).encode()),
        TOKEN_IDS: deflated(_bytes(shape.token_ids, outline.ids)),
        FREQUENCIES: deflated(_bytes(frequencies, outline.frequencies)),
    }


def read(stored: Tensors) -> CacheShape:
    """The shape that `written` was given, out of what is stored; raises ValueError for what is
    none."""
    outline: Outline = fitting(Outline, words(_inflated(stored, SHAPE).decode()), "shape")
    if outline.ids not in ID_DTYPES or outline.frequencies not in FREQUENCY_DTYPES:
        raise ValueError(
            f"its numbers are of dtypes {shown(outline.ids)} and {shown(outline.frequencies)}"
        )
    ids = _numbers(_inflated(stored, TOKEN_IDS), outline.ids)
    frequencies = _numbers(_inflated(stored, FREQUENCIES), outline.frequencies)
    tables = list(_rotaries(outline.tables, frequencies))
    for _, kind in outline.layers:
        if not 0 <= kind < len(outline.alike):
            raise ValueError("a layer is of a kind that is not there")
    layers = tuple(outline.alike[kind].layer(index, tables) for index, kind in outline.layers)
    return CacheShape(layers, tuple(ids.tolist()), outline.n_prompt, outline.model)


def _described(layer: LayerShape, rotaries: list[Rotary]) -> Alike:
    common = {name: getattr(layer, name) for name in Alike.__dataclass_fields__}
    table = None if layer.rotary is None else rotaries.index(layer.rotary)
    return Alike(**common | {"rotary": table})


def _rotaries(tables: tuple[Table, ...], frequencies: np.ndarray) -> Iterator[Rotary]:
    if not np.isfinite(frequencies).all() or any(table.pairs < 0 for table in tables):
        raise ValueError("its keys are turned by no angle")
    if sum(table.pairs for table in tables) != len(frequencies):
        raise ValueError(f"its tables are not of {len(frequencies)} frequencies")
    at = 0
    for table in tables:
        start, at = at, at + table.pairs
        own = tuple(frequencies[start:at].tolist())
        yield Rotary(own, table.scaling, table.interleaved)


def _once(each: Iterable[Value]) -> list[Value]:
    """Each value once, in the order in which they come."""
    return list(dict.fromkeys(each))


def _smallest(numbers: Iterable[float], dtypes: tuple[str, ...]) -> str:
    """The first dtype that holds the numbers as they are, or the last."""
    exact = np.array(list(numbers))
    for dtype in dtypes:
        with np.errstate(over="ignore"):
            if (exact.astype(dtype) == exact).all():
                return dtype
    raise ValueError(f"there are numbers that no {dtypes[-1]} holds")


def _bytes(numbers: Iterable[float], dtype: str) -> bytes:
    return np.array(list(numbers), np.dtype(dtype).newbyteorder("<")).tobytes()


def _numbers(data: bytes, dtype: str) -> np.ndarray:
    if len(data) % np.dtype(dtype).itemsize:
        raise ValueError(f"{len(data)} bytes are no numbers of dtype {dtype}")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def _inflated(stored: Tensors, name: str) -> bytes:
    return inflated(taken(stored, name, (torch.uint8,), None), name)
