"""Panels of matrices: what is compared with what, side by side on one colour scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visualization.style import MISSING, Look, Spaces, beside, figure

NAMES = {"key": "Keys as stored", "unrotated_key": "Unrotated keys", "value": "Values"}
TICK_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
BEYOND = 0.005  # of the numbers lie beyond each end of a scale that is made for them
SLIGHT = 0.25  # of the highest: negative numbers below that need no colours of their own


@dataclass(frozen=True)
class Scale:
    """look: of an image. extend: the ends of its colour bar beyond which there are numbers."""

    look: Look
    extend: str = "neither"


def from_zero_to_most(values: pd.Series | np.ndarray) -> Scale:
    """For shares and magnitudes of pairs of two different things, nearly all of which it spans."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    top = float(np.quantile(values, 1 - BEYOND)) if len(values) else 1.0
    beyond = "max" if (values > top).any() else "neither"
    return Scale({"cmap": "viridis", "vmin": 0, "vmax": max(top, 1e-6)}, beyond)


def around_zero(values: pd.Series | np.ndarray) -> Scale:
    """For signed numbers, nearly all of which it spans: in red and blue around a white 0, but where
    few are below 0, and those slightly, from the least to the most."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, (BEYOND, 1 - BEYOND)) if len(values) else (0.0, 1.0)
    high = max(high, low + 1e-6)
    ends = ("neither", "min", "max", "both")
    extend = ends[int((values < low).any()) + 2 * int((values > high).any())]
    limits = {"vmin": float(low), "vmax": float(high)}
    if low >= -SLIGHT * high:
        return Scale({"cmap": "viridis", **limits}, extend)
    furthest = max(-low, high)
    shades = np.linspace(0.5 + 0.5 * low / furthest, 0.5 + 0.5 * high / furthest, 256)
    return Scale({"cmap": ListedColormap(colormaps["RdBu_r"](shades)), **limits}, extend)


def counted_positions(table: pd.DataFrame) -> str:
    n = table["n_positions"].iloc[0]
    return f"{n} token positions" if n != 1 else "1 token position"


def kinds_of(table: pd.DataFrame) -> list[str]:
    return [kind for kind in NAMES if (table["kind"] == kind).any()]


def panels(
    title: str,
    about: str,
    table: pd.DataFrame,
    n_rows: int,
    panel_side: float,
) -> tuple[Figure, np.ndarray, list[str]]:
    """A figure, its axes (rows, kinds), and the kinds."""
    kinds = kinds_of(table)
    return *grid_of_panels(title, about, (n_rows, len(kinds)), panel_side), kinds


def grid_of_panels(
    title: str,
    about: str,
    shape: tuple[int, int],
    panel_side: float,
    bottom: float = 0.65,
    head: float = 0.4,
) -> tuple[Figure, np.ndarray]:
    """Nearly square panels with sides of `panel_side` inches, with room for a colour bar at the end
    of each row."""
    rows, columns = shape
    gap = (0.6, 0.35 + head)
    width = max(8, 0.95 + columns * panel_side + (columns - 1) * gap[0] + 1.25)
    height = 0.6 + head + rows * panel_side + (rows - 1) * gap[1] + bottom
    spaces: Spaces = {"gap": gap, "right": 1.25, "bottom": bottom, "head": head, "squeeze": False}
    return figure(title, about, (width, height), rows, columns, **spaces)


def square(rows: pd.DataFrame, name: str, value: str) -> np.ndarray:
    """(n, n), symmetric, from pairs of the places 0, 1, ... in columns `name`_a and `name`_b."""
    a, b = rows[f"{name}_a"].to_numpy(), rows[f"{name}_b"].to_numpy()
    grid = np.full((a.max() + 1, a.max() + 1), np.nan)
    grid[a, b] = grid[b, a] = rows[value]
    return grid


def without_diagonal(grid: np.ndarray) -> np.ndarray:
    """Without what each has with itself, which would flatten the rest."""
    return np.where(np.eye(len(grid)) > 0, np.nan, grid)


def show(ax: Axes, grid: np.ndarray, look: Look, **placed: Any) -> None:
    """A matrix; grey where there is nothing to compare."""
    ax.imshow(grid, aspect="auto", **look, **placed)
    ax.set_facecolor(MISSING)
    ax.grid(False)
    if np.isnan(grid).all():
        where: Look = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "nothing to compare", **where)


def round_numbers(ax: Axes, most: int) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(most, integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))


def edges(positions: np.ndarray) -> tuple[float, float]:
    """Where cells of evenly spread positions begin and end."""
    first, last = positions[0], positions[-1]
    half = (last - first) / (len(positions) - 1) / 2 if len(positions) > 1 else 0.5
    return first - half, last + half


def name_ticks(
    ax: Axes, names: Sequence[object] | np.ndarray, most: int, turned: bool = False
) -> None:
    """Names at as many cells as can be read, at most `most` of them."""
    step = next((s for s in TICK_STEPS if len(names) <= s * most), len(names))
    places, labels = range(0, len(names), step), [str(name) for name in names[::step]]
    ax.set_xticks(places, labels, rotation=90 if turned else 0)
    ax.set_yticks(places, labels)
    if turned:
        ax.tick_params(labelsize=7 if len(labels) <= 45 else 4.5)


def shared_bar(fig: Figure, row: Sequence[Axes], label: str, extend: str = "neither") -> None:
    """The colour bar that a row of panels shares."""
    grey = any(_has_gaps(ax) for ax in row) and "grey" not in label
    label += "\n(grey: no comparison)" * grey
    beside(fig, row[-1], row[-1].images[0], extend).set_label(label)


def _has_gaps(ax: Axes) -> bool:
    shown = np.ma.asarray(ax.images[0].get_array()).filled(np.nan)
    return bool(np.isnan(shown).any())


def label_outside(axes: np.ndarray, label: str) -> None:
    """What the axes mean, at the left and at the bottom of a grid of panels."""
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    for ax in axes[-1]:
        ax.set_xlabel(label)
