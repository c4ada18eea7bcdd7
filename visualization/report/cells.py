"""Numbers and tables as a page takes them: columns of JSON, escaped for a script element, and words
for a person."""

import base64
import gzip
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

DIGITS = 5  # of a number in the page; the tables beside it have all of them
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
LOWEST_CODE = 2  # 0 stands for what was not measured, 1 for zero


def as_json(value: Any) -> Markup:
    """For a script element of JSON: no character of it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in ESCAPED.items():
        text = text.replace(character, escape)
    return Markup(text)


def column(values: Iterable[Any]) -> list[Any]:
    """Plain values: None where nothing was measured, numbers to five digits."""
    return [_plain(value) for value in values]


def columns(table: pd.DataFrame, names: Iterable[str] | None = None) -> dict[str, list[Any]]:
    """name -> values, of the columns that are named or of all."""
    return {name: column(table[name].tolist()) for name in names or table.columns}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return column(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value if isinstance(value, str | int) or value is None else str(value)


def packed_logs(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Positive numbers in a byte each, on a logarithmic scale between the smallest and the largest:
    code 0 stands for NaN, 1 for zero. `off_by`: how far a value may be from what is read, as a
    share of it."""
    numbers = values.astype(np.float32)
    positive = numbers > 0
    low, high = (
        (float(numbers[positive].min()), float(numbers[positive].max()))
        if positive.any()
        else (1.0, 1.0)
    )
    step = math.log(high / low) / (255 - LOWEST_CODE) if high > low else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(np.log(numbers / low) / step) + LOWEST_CODE
    codes = np.where(positive, codes, np.where(np.isnan(numbers), 0, 1)).astype(np.uint8)
    return {"bytes": packed(codes), "low": low, "step": step, "off_by": math.exp(step / 2) - 1}


def packed(array: np.ndarray[Any, Any]) -> str:
    """The bytes of an array, little-endian, as the page unpacks them: base64 of gzip."""
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(gzip.compress(little.tobytes(), 4, mtime=0)).decode()


def number(value: float) -> str:
    """Three digits, and no more noughts than one can read."""
    if not math.isfinite(value):
        return "not a finite number"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def nbytes(value: float) -> str:
    """12,345 -> 12.1 KiB"""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError("GiB is the last unit")


def text(value: Any) -> str:
    """A cell of text, empty where there is none."""
    return value if isinstance(value, str) else ""
