"""Names beside points, placed one after the other so that none lies on another, on a point or
outside its panel; a thin line leads to a name that is not next to its point."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties

FONT_SIZE = 7.0  # points
RADIUS = 3.5  # points around each point of data that stay free
GAP = 1.0  # points between two names
DISTANCES = (5, 10, 17, 26, 37, 50, 66)  # points from a point to its name, tried in turn
ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
DIRECTIONS = np.array(  # the four beside a point first, then all around
    [(x, y) for y in (0.5, -0.5) for x in (1, -1)]
    + [(np.cos(angle), np.sin(angle)) for angle in ANGLES]
)
NEAR = 12  # points within which a name needs no line
HINTED = 1.06  # times as wide may a text be at the resolution that is saved
SPACING = 3.0  # points between two dots of a line that names keep off
NO_POINTS = np.empty((0, 2))

Points: TypeAlias = Iterable[tuple[float, float]]


@dataclass(frozen=True)
class Name:
    """Of a point (x, y) in the units of its panel."""

    text: str
    x: float
    y: float
    colour: str


def name_points(
    ax: Axes, names: Sequence[Name], points: Points = (), lines: Sequence[Points] = ()
) -> int:
    """Write each name where there is room, the first ones first; returns how many have none.

    Limits, scales and size of the panel are final. points, lines: further ones that no name may lie
    on, a line as the points that it joins.
    """
    at = _on_page(ax, [(name.x, name.y) for name in names])
    taken = np.vstack([at, _on_page(ax, points)])
    boxes = np.concatenate([taken - RADIUS, taken + RADIUS], axis=1)  # (boxes, x0 y0 x1 y1)
    dots = np.vstack([NO_POINTS, *(_dots(_on_page(ax, line)) for line in lines)])
    corners = ax.get_window_extent().get_points() * 72 / ax.figure.dpi
    n_left_out = 0
    for name, point in zip(names, at, strict=True):
        places = _places(point, _extent(ax, name.text))
        place = _first_free(places, corners, boxes, dots)
        if place is None:
            n_left_out += 1
            continue
        box, line = place
        boxes, dots = np.vstack([boxes, box]), np.vstack([dots, line])
        _write(ax, name, box[:2] - point, len(line) > 0)
    return n_left_out


def error_bars(x: Iterable[float], y: Iterable[float], error: Iterable[float]) -> list[Points]:
    """The lines of upright error bars."""
    return [[(a, b - e), (a, b + e)] for a, b, e in zip(x, y, error, strict=True) if e > 0]


def left_out(n: int) -> str:
    """What is said of names that there is no room for."""
    return f"{n} name{'s' if n > 1 else ''} left out for room: see the table" if n else ""


def _on_page(ax: Axes, points: Points) -> np.ndarray:
    """(points, 2) in points of the page; what is outside the panel, at its edge."""
    given = np.array(list(points), float).reshape(-1, 2)
    limits = np.sort([ax.get_xlim(), ax.get_ylim()], axis=1).T
    page: np.ndarray = ax.transData.transform(given.clip(*limits)) * 72 / ax.figure.dpi
    return page


def _dots(line: np.ndarray) -> np.ndarray:
    """(dots, 2) on a line that joins points, close to each other."""
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1) // SPACING + 1
    each = zip(line, line[1:], steps, strict=False)
    parts = [np.linspace(a, b, int(n), endpoint=False) for a, b, n in each]
    return np.vstack([*parts, line[-1:]])


def _extent(ax: Axes, text: str) -> np.ndarray:
    """(2,) width and height of a text, in points."""
    renderer = ax.figure.canvas.get_renderer()  # type: ignore[attr-defined]  # of Agg
    font = FontProperties(size=FONT_SIZE)
    width, height, _ = renderer.get_text_width_height_descent(text, font, False)
    return np.array([width * HINTED, height]) * 72 / ax.figure.dpi


def _places(point: np.ndarray, extent: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Boxes (4,) for a name around its point, the nearest first, each with the points (n, 2) of the
    line that leads there; none where it is next to it."""
    for distance in DISTANCES:
        for direction in DIRECTIONS:
            middle = point + direction * (distance + extent / 2)
            box = np.concatenate([middle - extent / 2 - GAP, middle + extent / 2 + GAP])
            nearest = np.clip(point, box[:2], box[2:])
            apart = np.linalg.norm(nearest - point)
            start = point + (nearest - point) * (RADIUS + 1) / max(apart, RADIUS + 1)
            yield box, _dots(np.array([start, nearest])) if apart > NEAR else NO_POINTS


def _first_free(
    places: Iterable[tuple[np.ndarray, np.ndarray]],
    corners: np.ndarray,
    boxes: np.ndarray,
    dots: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:
    """A box within the corners, that is on none of the others, nor on the dots of lines; nor is the
    line that leads to it on a box."""
    for box, line in places:
        inside = (box[:2] >= corners[0]).all() and (box[2:] <= corners[1]).all()
        if inside and not _hit(box, boxes, dots) and not _within(line[:-1], boxes).any():
            return box, line
    return None


def _hit(box: np.ndarray, boxes: np.ndarray, dots: np.ndarray) -> bool:
    apart = (box[:2] >= boxes[:, 2:]).any(1) | (box[2:] <= boxes[:, :2]).any(1)
    return bool((~apart).any() or _within(dots, box[None]).any())


def _within(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(points, boxes) whether a point is in a box."""
    one = points[:, None]
    inside: np.ndarray = ((one > boxes[:, :2]) & (one < boxes[:, 2:])).all(2)
    return inside


def _write(ax: Axes, name: Name, offset: np.ndarray, led: bool) -> None:
    arrow = {"arrowstyle": "-", "color": name.colour, "lw": 0.5, "alpha": 0.6, "shrinkA": 0}
    ax.annotate(
        name.text, (name.x, name.y), xytext=tuple(offset + GAP), textcoords="offset points",
        fontsize=FONT_SIZE, color=name.colour, ha="left", va="bottom",
        arrowprops={**arrow, "relpos": _nearest_corner(offset)} if led else None,
    )  # fmt: skip


def _nearest_corner(offset: np.ndarray) -> tuple[float, float]:
    """Where on a text, as shares of its size, a line from its point arrives."""
    return (0.0 if offset[0] > 0 else 1.0 if offset[0] < 0 else 0.5, 0.0 if offset[1] > 0 else 1.0)
