"""Tables as tensors and words, and exactly back: numbers with their bits and dtype, words each once
with the places where they stand, and what is neither as it is written in JSON."""

import math
from types import NoneType
from typing import Any

import pandas as pd
import torch

from compression.stored import Tensors, taken
from data.headers import LARGEST

NUMBERS = (torch.float64, torch.float32, torch.int64, torch.bool)
LISTED = ("Int64", "object")  # dtypes of columns that may mix numbers, words and nothing
SINGLE = (bool, int, float, str, NoneType)


def stored(table: pd.DataFrame, name: str) -> tuple[dict[str, Any], Tensors]:
    """What `restored` makes the table of: words that JSON can hold, and tensors whose names begin
    with `name`. Raises ValueError for a table that it could not give back."""
    if not table.index.equals(pd.RangeIndex(len(table))):
        raise ValueError(f"the rows of {name} have names")
    columns, tensors = {}, {}
    for column in table:
        values, dtype = table[column], str(table[column].dtype)
        if dtype in LISTED:
            columns[column] = {"dtype": dtype, "values": _listed(values, name)}
        elif dtype == "str":
            places, words = pd.factorize(values)  # -1 where there is none
            columns[column] = {"dtype": dtype, "values": list(words)}
            tensors[f"{name}.{column}"] = torch.tensor(places, dtype=torch.int64)
        else:
            columns[column] = {}
            tensors[f"{name}.{column}"] = torch.tensor(values.to_numpy())
            if tensors[f"{name}.{column}"].dtype not in NUMBERS:
                raise ValueError(f"{name}.{column} is of {dtype}")
    return {"rows": len(table), "columns": columns}, tensors


def _listed(values: pd.Series, name: str) -> list[Any]:
    listed = [None if x is pd.NA else x for x in values.tolist()]
    if not all(type(x) in SINGLE for x in listed):
        raise ValueError(f"{name}.{values.name} holds more than numbers and words")
    return listed


def restored(words: Any, tensors: Tensors, name: str) -> pd.DataFrame:
    """The table, whose tensors are taken out of `tensors`; raises ValueError for what is none."""
    match words:
        case {"rows": int(n), "columns": dict(columns)} if _are([n], int) and 0 <= n < LARGEST:
            made = {c: _column(spec, tensors, f"{name}.{c}", n) for c, spec in columns.items()}
            return pd.DataFrame(made, index=pd.RangeIndex(n))
    raise ValueError(f"{name} is no table")


def _column(spec: Any, tensors: Tensors, name: str, n: int) -> pd.Series:
    match spec:
        case {"dtype": "str", "values": list(words)} if _are(words, str):
            places = taken(tensors, name, (torch.int64,), n).numpy()
            if n and not -1 <= places.min() <= places.max() < len(words):
                raise ValueError(f"{name} points beyond its words")
            each = [*words, math.nan]  # -1 is the last
            return pd.Series([each[place] for place in places], dtype="str")
        case {"dtype": "Int64", "values": list(values)} if _are_whole(values):
            of_dtype = pd.Series(values, dtype="Int64")
        case {"dtype": "object", "values": list(values)} if _are(values, *SINGLE):
            of_dtype = pd.Series(values, dtype=object)
        case {} if not spec:
            return pd.Series(taken(tensors, name, NUMBERS, n).numpy())
        case _:
            raise ValueError(f"{name} is no column")
    if len(of_dtype) != n:
        raise ValueError(f"{name} has {len(of_dtype)} rows of {n}")
    return of_dtype


def _are_whole(values: list[Any]) -> bool:
    return _are(values, int, NoneType) and all(x is None or abs(x) < 2**63 for x in values)


def _are(values: list[Any], *types: type) -> bool:
    return all(type(x) in types for x in values)
