"""What is said of settings of which bytes and errors are known and no model's verdict: each
sentence from the table of scored settings alone.

No setting is called best: less error of keys may cost more than the same of values, and which
that is only the model can tell.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.margins import span
from compression.studies.base import errors
from data.cache import KINDS

CLEARLY = 1.1  # times as much
MEASURES = ("bits_per_value", "key_error", "value_error")
UNKNOWN = (
    "What any of this costs the model's predictions cannot be known without the model: settings of "
    "equal error may differ there many times over."
)


def with_frontier(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by size, with a column frontier: no other setting that evicts as little stores at
    most as much and errs at most as much on keys and on values, and less on one of them."""
    table = table.sort_values(list(MEASURES), kind="stable").reset_index(drop=True)
    each = table[list(MEASURES)].to_numpy()  # (settings, 3)
    no_more = (each[None] <= each[:, None]).all(2)
    less = (each[None] < each[:, None]).any(2)
    evicts = table["evicts"].to_numpy()
    beaten = no_more & less & (evicts[None] == evicts[:, None])  # [i, j]: j beats i
    return table.assign(frontier=~beaten.any(1))


def of_all(table: pd.DataFrame) -> list[str]:
    """What holds in every mode: the frontiers, and what errors do not say."""
    shown = table[table["frontier"] & (table["ratio"] > 1)]
    lines = []
    for evicts, rows in shown.groupby("evicts"):
        listed = "; ".join(_said(row) for _, row in rows.iterrows())
        line = f"Smallest first, settings that no other beats in bytes and both errors: {listed}."
        if evicts:
            line = (
                "Of those that evict entries, which their errors count as zeros though nothing "
                f"attends to them, so that they compare with each other alone: {listed}."
            )
        lines.append(line)
    return [*lines, UNKNOWN]


def _said(row: pd.Series) -> str:
    return f"{row['label']} ({row['bits_per_value']:.2f} bits per value, errors {errors(row)})"


def of_tucker(layers: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """layers: the relative error of each layer's keys and values."""
    lines = [
        f"Stored, {row['label']}: {row['stored_bytes'] / 2**20:.2f} MiB, "
        f"{row['bits_per_value']:.2f} bits per value, {row['ratio']:.2f} x smaller than 16 bits; "
        f"relative errors {errors(row)}."
        for _, row in rows[rows["family"] != "other ranks"].iterrows()
        if row["method"] != "none"
    ]
    most = layers.nlargest(3, "relative_error")
    named = [f"layer {r.layer} {r.kind}s ({r.relative_error:.3f})" for r in most.itertuples()]
    return [*lines, f"Largest errors: {', '.join(named)}."]


def of_levels(levels: Sequence[float], rows: pd.DataFrame) -> list[str]:
    """For each kept share of the dimensions, which way errs least."""
    lines = []
    for keep in levels:
        share = f"{keep:.0%}"
        of_level = rows[rows["label"] == rows["family"] + f" {share}"]
        if len(of_level):
            parts = [_least(of_level.set_index("family")[f"{kind}_error"], kind) for kind in KINDS]
            lines.append(f"{share} of the dimensions: {'; '.join(parts)}.")
    return lines


def _least(found: pd.Series, kind: str) -> str:
    """Which setting errs least on keys or on values, where one does clearly."""
    ordered = found.sort_values(kind="stable")
    listed = ", ".join(f"{name} {error:.3f}" for name, error in ordered.items())
    if len(ordered) < 2 or CLEARLY * ordered.iloc[0] > ordered.iloc[1]:
        return f"on {kind}s none errs clearly less than all others ({listed})"
    return f"on {kind}s {ordered.index[0]} errs least ({listed})"


def of_choices(impact: pd.DataFrame) -> list[str]:
    """For each choice what it saves, and what as much at random loses. impact: see `PrunePlan`."""
    return [_choice(group) for _, group in impact.groupby("choice", sort=False)]


def _choice(rows: pd.DataFrame) -> str:
    row, controls = rows[rows["role"] == "chosen"].iloc[0], rows[rows["role"] == "control"]
    saved = 1 - 1 / row["ratio"]
    what = row["choice"][0].upper() + row["choice"][1:]
    line = f"{what}: saves {saved:.1%} of the bytes" if saved > 0 else f"{what}: saves nothing"
    line += f", relative errors {errors(row)}"
    if len(controls) and saved > 0:
        spans = [f"{span(controls[f'{kind}_error'], '.3f')} of {kind}s" for kind in KINDS]
        line += f"; as much at random {' and '.join(spans)}"
    return f"{line}."


def of_budget(budget: Mapping[str, float], rows: pd.DataFrame) -> list[str]:
    """What fits a budget of bytes."""
    if not budget:
        return []
    fits = within(budget, rows)
    asked = " and ".join(f"`{name}` {value:g}" for name, value in budget.items())
    listed = ", ".join(
        f"{row['label']} ({row['bits_per_value']:.2f})" for _, row in fits.iterrows()
    )
    return [f"Within {asked}, by bits per value: {listed}."] if len(fits) else []


def within(budget: Mapping[str, float], rows: pd.DataFrame) -> pd.DataFrame:
    """The compressed settings that store no more than a budget allows."""
    columns = {"max_bits": "bits_per_value", "max_bytes_per_token": "bytes_per_token"}
    fits = np.logical_and.reduce([rows[columns[name]] <= most for name, most in budget.items()])
    return rows[fits & (rows["method"] != "none")]
