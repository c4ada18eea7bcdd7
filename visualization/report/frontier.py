"""What every setting of `compare` stores and costs, for the chart with limits."""

import math
from typing import Any

import pandas as pd

from visualization.report.cells import columns, nbytes, number
from visualization.report.results import Results

TABLE = "compare/compare"
NEEDED = ("label", "bytes_per_token", "kl_mean_nats", "ratio", "per_model_bytes", "frontier")


def frontier(results: Results) -> dict[str, Any] | None:
    """A row for each setting, the smallest first; None where no costs were measured."""
    table = results.table(TABLE)
    if table is None or not set(NEEDED) <= set(table):
        return None
    table = table.sort_values("bytes_per_token", kind="stable").reset_index(drop=True)
    kl = table["kl_mean_nats"]
    floor = float(kl[kl > 0].min() / 2) if (kl > 0).any() else 1e-9
    error = _given(table, "kl_mean_nats_se", 0.0).fillna(0)
    engine = _given(table, "engine", "").astype(object).fillna("")
    rows = table[["label", "bytes_per_token", "ratio", "per_model_bytes", "frontier"]].assign(
        family=_given(table, "family", ""),
        kl=kl,
        kl_shown=kl.clip(lower=floor),
        kl_low=(kl - error).clip(lower=floor),
        kl_high=(kl + error).clip(lower=floor),
        kl_said=[_with_error(k, e) for k, e in zip(kl, error, strict=True)],
        perplexity_said=[f"{p:+z.2f} %" for p in _given(table, "delta_perplexity_percent", 0.0)],
        per_model_said=[nbytes(n) if n else "nothing" for n in table["per_model_bytes"]],
        tasks_said=[_tasks(results, label) for label in table["label"]],
        engine=engine,
        engines=[engines_of(said) for said in engine],
        engine_said=engine.where(engine != "", "none"),
        named=_names(table["frontier"] | (engine != ""), table["bytes_per_token"]),
        restore_s=_given(table, "restore_s", float("nan")),
        dominated_by=_given(table, "dominated_by", "").astype(object).fillna(""),
    )
    first = table.iloc[0]
    return {
        "rows": columns(rows),
        "floor": floor,
        "context_tokens": round(first["stored_bytes"] / first["bytes_per_token"]),
        "texts": int(_given(table, "texts", 1).iloc[0]),
    }


def engines_of(said: str) -> list[list[str]]:
    """vLLM --x y, or llama.cpp -z -> [[vLLM, --x y], [llama.cpp, -z]]: what is copied is what an
    engine is given."""
    return [list(one.partition(" ")[::2]) for one in said.split(", or ") if one]


def _with_error(value: float, error: float) -> str:
    """As many decimals as one digit of the error takes, eight at most."""
    if not error:
        return number(value)
    decimals = min(8, max(0, -math.floor(math.log10(error))))
    return f"{value:z.{decimals}f} ± {error:.{decimals}f}"


def _names(named: pd.Series, sizes: pd.Series) -> list[str]:
    """On which side of its point a name stands: on the left where the point is far right."""
    far = sizes > (sizes.min() * sizes.max() ** 3) ** 0.25
    sides = ["left" if is_far else "right" for is_far in far]
    return [side if name else "" for side, name in zip(sides, named, strict=True)]


def _tasks(results: Results, label: str) -> str:
    """What was asked of the model on this setting's cache, and how much of it was right."""
    said = []
    needles, exams = results.table("compare/needle"), results.table("tasks/accuracy")
    if needles is not None and {"label", "right"} <= set(needles):
        right = needles.loc[needles["label"] == label, "right"]
        said += [f"{right.sum()} of {len(right)} needles"] if len(right) else []
    if exams is not None and {"label", "accuracy", "accuracy_full", "counted"} <= set(exams):
        own = exams[(exams["label"] == label) & exams["counted"].astype(bool)]
        means = own[["accuracy", "accuracy_full"]].mean()
        tasks = f"{means['accuracy']:.0%} of tasks right, {means['accuracy_full']:.0%} untouched"
        said += [tasks] if len(own) else []
    return "; ".join(said) or "not tried"


def _given(table: pd.DataFrame, name: str, otherwise: Any) -> pd.Series:
    """A column, or the same value in every row of a table without it."""
    return table[name] if name in table else pd.Series(otherwise, index=table.index)
