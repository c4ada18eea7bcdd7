"""What pictures of several texts show beside their means: a standard error to both sides."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from visualization.style import Look

GREY = "#444444"


def n_texts(table: pd.DataFrame) -> int:
    """How many texts a table is the mean of."""
    return int(table["texts"].max()) if "texts" in table else 1


def errors(rows: pd.DataFrame, column: str) -> np.ndarray:
    """The standard errors of a column's means, 0 where there are none."""
    name = f"{column}_se"
    of_mean: np.ndarray = rows[name].fillna(0).to_numpy() if name in rows else np.zeros(len(rows))
    return of_mean


def highest(rows: pd.DataFrame, column: str) -> float:
    """The upper end of the highest band."""
    return float((rows[column] + errors(rows, column)).max())


def words(table: pd.DataFrame) -> str:
    return f"± standard error over {n_texts(table)} texts"


def band(ax: Axes, x: np.ndarray, mean: np.ndarray, error: np.ndarray, **look: object) -> None:
    """A band around a line; nothing for one text."""
    if error.any():
        style: Look = {"alpha": 0.25, "lw": 0, **look}
        ax.fill_between(x, mean - error, mean + error, **style)


def band_entry(ax: Axes, table: pd.DataFrame, alpha: float = 0.25) -> None:
    """What bands are, for the legend of a panel that has some."""
    if n_texts(table) > 1:
        ax.fill_between([], [], [], color=GREY, alpha=alpha, lw=0, label=words(table))


def bars_entry(ax: Axes, table: pd.DataFrame) -> None:
    """What error bars are, for the legend of a panel that has some."""
    if n_texts(table) > 1:
        look: Look = {"color": GREY, "ls": "none", "capsize": 3}
        ax.errorbar([np.nan], [np.nan], yerr=[1], label=words(table), **look)


def note(table: pd.DataFrame, what: str = "") -> str:
    """What bands or bars are, for the label of an axis."""
    return f"\n({what}{words(table)})" if n_texts(table) > 1 else ""


def spread(row: pd.Series, column: str, form: str) -> str:
    """A mean with its standard error, where there is one."""
    error = row.get(f"{column}_se")
    more = "" if error is None or pd.isna(error) else f" ± {error:{form}}"
    return f"{row[column]:z{form}}{more}"
