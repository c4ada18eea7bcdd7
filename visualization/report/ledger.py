"""Where the bytes of each setting go, and from which length what is stored once pays."""

from typing import Any

import pandas as pd

from visualization.report.cells import column, text
from visualization.report.results import Results

TABLE = "compare/byte_ledger"
NEEDED = ("label", "layers", "kind", "part", "bytes", "once_per_model")


def ledger(results: Results) -> dict[str, Any] | None:
    """Of each setting, the smallest first, its parts; with what a plain cache takes per token."""
    table, compared = results.table(TABLE), results.table("compare/compare")
    if table is None or compared is None or not set(NEEDED) <= set(table):
        return None
    sizes = compared.sort_values("bytes_per_token", kind="stable")
    first = sizes.iloc[0]
    context = round(first["stored_bytes"] / first["bytes_per_token"])
    groups = dict(list(table.groupby("label", sort=False)))
    labels = [label for label in sizes["label"] if label in groups and label != "none"]
    return {
        "context_tokens": context,
        "plain_bytes_per_token": float(first["original_bytes"]) / context,
        "settings": [{"label": label, **_parts(groups[label])} for label in labels],
    }


def _parts(rows: pd.DataFrame) -> dict[str, list[Any]]:
    return {
        "group": [text(layers) or "no layer" for layers in rows["layers"].map(_as_text)],
        "kind": [text(kind) or "both" for kind in rows["kind"]],
        "part": [text(part) for part in rows["part"]],
        "bytes": column(int(n) for n in rows["bytes"]),
        "once": [bool(once) for once in rows["once_per_model"]],
    }


def _as_text(layers: Any) -> str:
    """A group may be one layer, which a reader of tables takes for a number."""
    if isinstance(layers, float):
        return "" if pd.isna(layers) else f"{layers:.0f}"
    return str(layers)
