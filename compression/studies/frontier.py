"""Which settings are worth having: the frontier of bytes and loss, and what fits a budget."""

import numpy as np
import pandas as pd

from compression.base import Compressor

SIZE, LOSS = "bits_per_value", "kl_mean_nats"


def labelled(summary: pd.DataFrame, labels: dict[Compressor, tuple[str, str]]) -> pd.DataFrame:
    """The summary with the family and the label of each row's method, and its frontier."""
    said = {(method.name, method.words()): names for method, names in labels.items()}
    names = [said[key] for key in zip(summary["method"], summary["settings"], strict=True)]
    families, own = zip(*names, strict=True)
    return with_frontier(summary.assign(family=families, label=own))


def with_frontier(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by size, with columns frontier (no other setting is at most as large and costs at
    most as much) and dominated_by (of those that are and do, the cheapest; empty on the frontier).
    """
    table = table.sort_values([SIZE, LOSS], kind="stable").reset_index(drop=True)
    size, loss = table[SIZE].to_numpy(), table[LOSS].to_numpy()
    no_larger = (size[None] <= size[:, None]) & (loss[None] <= loss[:, None])
    smaller = (size[None] < size[:, None]) | (loss[None] < loss[:, None])
    beaten = no_larger & smaller  # [i, j]: j beats i
    table["frontier"] = ~beaten.any(1)
    best = np.where(beaten, loss[None], np.inf).argmin(1)
    table["dominated_by"] = np.where(beaten.any(1), table["label"].to_numpy()[best], "")
    return table


def fitting(
    table: pd.DataFrame,
    max_bits: float | None = None,
    max_bytes_per_token: float | None = None,
    max_kl: float | None = None,
) -> pd.Series | None:
    """The setting with the least loss within the bytes, or where only the loss is limited the
    smallest within that; None where no setting fits."""
    limits = _limits(max_bits, max_bytes_per_token, max_kl)
    fits = _overshoot(table, limits) <= 1
    if not fits.any():
        return None
    by = SIZE if set(limits) == {LOSS} else LOSS
    return table[fits].sort_values([by, SIZE, LOSS]).iloc[0]


def closest(
    table: pd.DataFrame,
    max_bits: float | None = None,
    max_bytes_per_token: float | None = None,
    max_kl: float | None = None,
) -> pd.Series:
    """The setting that exceeds these limits by the least factor, each by that of the limit it
    exceeds most."""
    over = _overshoot(table, _limits(max_bits, max_bytes_per_token, max_kl))
    return table.loc[over.idxmin()]


def _limits(*given: float | None) -> dict[str, float]:
    """Those that were given of bits, bytes per token and loss, by column."""
    columns = (SIZE, "bytes_per_token", LOSS)
    return {c: limit for c, limit in zip(columns, given, strict=True) if limit is not None}


def _overshoot(table: pd.DataFrame, limits: dict[str, float]) -> pd.Series:
    """Of each setting the largest of its values, each as a multiple of its limit."""
    return (table[list(limits)] / pd.Series(limits)).max(axis=1)


def bits_at(table: pd.DataFrame, loss: float) -> float:
    """Bits per value that a family's settings need for a loss, log-linear between the two next to
    it; NaN where its settings do not reach over it."""
    rows = table[table[LOSS] > 0].sort_values(LOSS)
    if rows.empty or not rows[LOSS].iloc[0] <= loss <= rows[LOSS].iloc[-1]:
        return float("nan")
    least = rows[SIZE].cummin()  # more loss is never worse than less at more bytes
    return float(np.interp(np.log(loss), np.log(rows[LOSS]), least))


def bits_by_family(table: pd.DataFrame, loss: float) -> dict[str, float]:
    """The same of each family whose settings reach over a loss, fewest bits first."""
    needed = {str(family): bits_at(rows, loss) for family, rows in table.groupby("family")}
    reached = {family: bits for family, bits in needed.items() if not np.isnan(bits)}
    return dict(sorted(reached.items(), key=lambda each: each[1]))
