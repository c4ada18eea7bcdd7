"""The table that a run ends with: its main numbers, chosen from all its tables. Which one it is,
and which columns of it, stands in table_choices.py."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from visualization.table_choices import CHOICES, ROWS, Choice, Column


@dataclass(frozen=True)
class MainTable:
    """rows: all of them. shown: those that a person is shown, in the same order."""

    choice: Choice
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    shown: pd.DataFrame

    @property
    def cells(self) -> list[list[str]]:
        """As they are written; what stands out has a star before its name."""
        rows: list[Mapping[str, Any]] = self.shown.to_dict("records")
        cells = [[column.cell(row) for column in self.columns] for row in rows]
        if any(self.strong):
            for row, strong in zip(cells, self.strong, strict=True):
                row[0] = f"{'*' if strong else ' '} {row[0]}"
        return cells

    @property
    def are_numbers(self) -> list[bool]:
        return [is_numeric_dtype(self.rows[column.name]) for column in self.columns]

    @property
    def strong(self) -> list[bool]:
        """Which rows are on the frontier."""
        if "frontier" not in self.shown:
            return [False] * len(self.shown)
        return [bool(x) for x in self.shown["frontier"]]

    @property
    def title(self) -> str:
        star = "; *: no other is smaller and costs less" if any(self.strong) else ""
        return self.choice.title + star

    @property
    def n_left_out(self) -> int:
        return len(self.rows) - len(self.shown)

    @property
    def facts(self) -> dict[str, Any]:
        """As data, with all rows; null where there is no number."""
        names = [name for c in self.columns for name in (c.name, c.error)] + ["frontier"]
        names = [name for name in names if name in self.rows]
        rows: list[dict[str, Any]] = json.loads(self.rows[names].to_json(orient="records"))
        return {"title": self.choice.title, "made_from": f"{self.choice.stem}.csv", "rows": rows}


def of(tables: Mapping[str, pd.DataFrame]) -> MainTable | None:
    """The first of `CHOICES` that a run has; None where it has none."""
    for choice in CHOICES:
        table = tables.get(choice.stem)
        if table is not None and len(table):
            rows = choice.rows(table).reset_index(drop=True)
            columns = tuple(
                c for c in choice.columns if c.name in rows and rows[c.name].notna().any()
            )
            return MainTable(choice, columns, rows, _shown(rows, choice.order))
    return None


def _shown(rows: pd.DataFrame, order: tuple[str, ...]) -> pd.DataFrame:
    if len(rows) <= ROWS:
        return rows
    if order:
        first = [name == "frontier" for name in order]  # where yes comes before no
        kept = rows.sort_values(list(order), ascending=[not x for x in first], kind="stable")
        return rows.loc[sorted(kept.index[:ROWS])]
    return rows.iloc[np.linspace(0, len(rows) - 1, ROWS).round().astype(int)]
