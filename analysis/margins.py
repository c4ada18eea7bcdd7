"""How sure a mean over texts is, in words: one is called larger than another only where the two
intervals of a standard error to both sides part.

What rounds to 0 is written without a minus: the z of a format, here and wherever what may be below
0 is told."""

from collections.abc import Iterable, Sequence

import pandas as pd


def error(rows: pd.DataFrame, column: str) -> pd.Series:
    """The standard error of a column's means; 0 where it is of one text."""
    name = f"{column}_se"
    return rows[name].fillna(0) if name in rows else pd.Series(0.0, index=rows.index)


def spread(row: pd.Series, column: str, form: str) -> str:
    """A mean and its standard error, where there is one: 12.3% ± 0.4%."""
    name = f"{column}_se"
    more = f" ± {row[name]:z{form}}" if name in row and pd.notna(row[name]) else ""
    return f"{row[column]:z{form}}{more}"


def not_apart(others: pd.DataFrame, column: str, best: pd.Series, least: bool = False) -> int:
    """How many of the others are not surely below the `best`, or with `least`, above it; none where
    means are of one text."""
    own = best.get(f"{column}_se")
    if own is None:
        return 0
    sign = -1 if least else 1
    lowest = sign * best[column] - (0 if pd.isna(own) else own)
    return int((sign * others[column] + error(others, column) >= lowest).sum())


def tied(n: int) -> str:
    """What is said of those that are not apart."""
    if n == 0:
        return ""
    return f" (within the errors, {n} other{'s' if n > 1 else ''} too)"


def runner_up(said: Sequence[str]) -> str:
    """What comes first, and what comes next, where anything does."""
    return "; next ".join(said[:2])


def told_apart(numbers: Sequence[float], digits: int, most: int = 4) -> int:
    """How many digits after the point make the first two numbers read differently: `digits` or up
    to `most`; `digits` where even those do not."""
    two = numbers[:2]
    enough = (n for n in range(digits, most + 1) if len({f"{x:z.{n}f}" for x in two}) == len(two))
    return next(enough, digits)


def span(numbers: Iterable[float], form: str) -> str:
    """From the least to the largest, as 1.0 to 2.0; one number where both read the same."""
    numbers = list(numbers)
    low, high = f"{min(numbers):z{form}}", f"{max(numbers):z{form}}"
    return low if low == high else f"{low} to {high}"


def first_of(said: Sequence[str], most: int) -> str:
    """The first of a list, and how many more there are."""
    more = f" and {len(said) - most} more" if len(said) > most else ""
    return ", ".join(said[:most]) + more
