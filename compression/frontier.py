"""Which settings are worth having: the frontier of bytes and loss, and what fits a budget."""

import numpy as np
import pandas as pd

SIZE, LOSS = "bits_per_value", "kl_mean_nats"


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
    fits = np.ones(len(table), dtype=bool)
    limits = {SIZE: max_bits, "bytes_per_token": max_bytes_per_token, LOSS: max_kl}
    for column, limit in limits.items():
        if limit is not None:
            fits &= (table[column] <= limit).to_numpy()
    if not fits.any():
        return None
    by = LOSS if max_bits is not None or max_bytes_per_token is not None else SIZE
    return table[fits].sort_values([by, SIZE, LOSS]).iloc[0]


def bits_at(table: pd.DataFrame, loss: float) -> float:
    """Bits per value that a family's settings need for a loss, log-linear between the two next to
    it; NaN where its settings do not reach over it."""
    rows = table[table[LOSS] > 0].sort_values(LOSS)
    if rows.empty or not rows[LOSS].iloc[0] <= loss <= rows[LOSS].iloc[-1]:
        return float("nan")
    least = rows[SIZE].cummin()  # more loss is never worse than less at more bytes
    return float(np.interp(np.log(loss), np.log(rows[LOSS]), least))
