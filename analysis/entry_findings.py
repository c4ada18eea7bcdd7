"""What the entries of one layer and KV head say, in sentences: which dimensions are large at every
token, and which single entry is the largest."""

from typing import Any

import numpy as np
import pandas as pd

OUTLIER = 3  # times the usual magnitude that make a dimension an outlier channel
NAMED = 3  # dimensions
NAMES = {"key": "Keys as stored", "value": "Values"}


def said(keys: pd.DataFrame, values: pd.DataFrame, whose: str = "") -> list[str]:
    """keys, values: as `cached_entries` makes them. whose: of which text they are, where there are
    several."""
    of_kinds = {"key": keys[keys["kind"] == "key"], "value": values}
    return [
        f"{whose}{NAMES[kind]} of layer {rows['layer'].iloc[0]}, KV head {rows['head'].iloc[0]}: "
        f"{_dims(np.abs(entries), int(rows['tokens'].max()))}; {_largest(rows, entries)}."
        for kind, rows in of_kinds.items()
        if len(entries := _entries(rows))
    ]


def outliers(usual: np.ndarray) -> list[int]:
    """Dimensions more than OUTLIER times as large as the median of all, the largest first. usual:
    of each its median magnitude over tokens."""
    order = np.argsort(-usual, kind="stable")
    return [int(i) for i in order if usual[i] > OUTLIER * np.median(usual)]


def _entries(rows: pd.DataFrame) -> np.ndarray:
    """(rows, dim) without rows that were evicted."""
    entries: np.ndarray = rows.filter(regex=r"^dim_\d+$").to_numpy(dtype=float)
    held: np.ndarray = entries[~np.isnan(entries).all(axis=1)]
    return held


def _dims(magnitudes: np.ndarray, size: int) -> str:
    """size: tokens to a row, which holds the entries of them that are farthest from 0."""
    usual = np.median(magnitudes, axis=0)
    middle, many = float(np.median(usual)), outliers(usual)
    if middle == 0:
        return "in half of the dimensions or more, half of the entries or more are 0"
    named = many or [int(np.argmax(usual))]
    listed = ", ".join(f"{i} ({usual[i] / middle:.1f} times)" for i in named[:NAMED])
    each = f" (of each {size} tokens the entry farthest from 0)" if size > 1 else ""
    counted = f"{len(many) or 'none'} of {len(usual)} dimensions"
    return (
        f"{counted} {'is' if len(many) == 1 else 'are'} more than {OUTLIER} times as large as the "
        f"median one, by median magnitude{each}; largest {listed}"
    )


def _largest(rows: pd.DataFrame, entries: np.ndarray) -> str:
    """The entry that is farthest from 0. A row of several tokens holds the farthest of each."""
    held = rows[rows.filter(regex=r"^dim_\d+$").notna().any(axis=1)]
    row, dim = np.unravel_index(int(np.argmax(np.abs(entries))), entries.shape)
    at = held.iloc[int(row)]
    return f"the largest entry is {entries[row, dim]:.3g}, in dimension {dim}, {_place(at)}"


def _place(row: "pd.Series[Any]") -> str:
    first, n = int(row["position"]), int(row["tokens"])
    return f"position {first}" if n == 1 else f"one of positions {first} to {first + n - 1}"
