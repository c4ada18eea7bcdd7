"""Names beside points: none on another, on a point, on a line, or outside its panel."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from visualization.naming import Name, error_bars, left_out, name_points
from visualization.style import figure


def panel(log: bool = False):
    fig, ax = figure("A title", "a model", (8, 6))
    ax.set_xlim(0.1, 10)
    ax.set_ylim(0.1, 10)
    if log:
        ax.set_xscale("log")
        ax.set_yscale("log")
    return fig, ax


def boxes_of(fig, ax) -> np.ndarray:
    """(names, 4) x0 y0 x1 y1, in dots."""
    fig.canvas.draw()
    return np.array([text_box(fig, text) for text in ax.texts]).reshape(-1, 4)


def text_box(fig, text) -> tuple[float, ...]:
    box = Text.get_window_extent(text, fig.canvas.get_renderer())  # without the line to its point
    return box.x0, box.y0, box.x1, box.y1


def names_at(points) -> list[Name]:
    return [Name(f"name {i}", x, y, "black") for i, (x, y) in enumerate(points)]


def spread_out(n: int) -> np.ndarray:
    return 10 ** np.random.default_rng(n).uniform(-0.9, 0.9, (n, 2))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("n", [1, 12, 40, 90])
def test_no_name_is_on_another_on_a_point_or_outside(n, log):
    fig, ax = panel(log)
    points = spread_out(n)
    missing = name_points(ax, names_at(points))
    boxes = boxes_of(fig, ax)
    assert len(boxes) + missing == n and len(boxes) >= 0.5 * n
    for a, b in itertools.combinations(boxes, 2):
        assert (a[:2] >= b[2:]).any() or (b[:2] >= a[2:]).any()
    dots = ax.transData.transform(points)
    for box in boxes:
        assert not ((dots > box[:2]) & (dots < box[2:])).all(1).any()
    edges = ax.get_window_extent()
    assert (boxes[:, :2] >= (edges.x0, edges.y0)).all() and (
        boxes[:, 2:] <= (edges.x1, edges.y1)
    ).all()


def test_a_name_keeps_off_other_points_and_lines():
    fig, ax = panel()
    others = [(x, y) for x in (2.0, 2.3, 2.6) for y in (4.8, 5.0, 5.2)]
    line = [(1.0, 5.3), (4.0, 5.3)]
    bars = error_bars([2.0, 3.0], [5.0, 5.0], [4.0, 0.0])
    assert bars == [[(2.0, 1.0), (2.0, 9.0)]]
    assert name_points(ax, [Name("a name", 2.0, 5.0, "black")], others, [line, *bars]) == 0
    (box,) = boxes_of(fig, ax)
    on_line = [(x, 5.3) for x in np.linspace(1, 4, 200)] + [
        (2.0, y) for y in np.linspace(1, 9, 400)
    ]
    dots = ax.transData.transform([*others, *on_line])
    assert not ((dots > box[:2]) & (dots < box[2:])).all(1).any()
    free_fig, free = panel()
    name_points(free, [Name("a name", 2.0, 5.0, "black")])
    assert not np.allclose(boxes_of(free_fig, free)[0], box)  # it would have been in their way


def test_the_first_names_are_placed_first_and_the_rest_counted():
    _, ax = panel()
    missing = name_points(ax, [Name(f"one of too many {i}", 5, 5, "black") for i in range(200)])
    placed = [text.get_text() for text in ax.texts]
    assert 0 < missing < 200 and len(placed) == 200 - missing
    assert placed[0] == "one of too many 0"
    assert left_out(missing) == f"{missing} names left out for room: see the table"
    assert left_out(1).startswith("1 name left") and left_out(0) == ""


def test_a_name_that_is_away_from_its_point_has_a_line_to_it():
    _, ax = panel()
    close = [(4 + 0.2 * i, 5 + 0.2 * (i % 3)) for i in range(12)]
    assert name_points(ax, names_at(close)) == 0
    led = [text.arrow_patch is not None for text in ax.texts]
    away = [np.hypot(*text.get_position()) for text in ax.texts]  # points from the point
    assert any(led) and not led[0]
    assert min(a for a, has in zip(away, led, strict=True) if has) > 5


def test_without_names_nothing_is_written():
    _, ax = panel()
    assert name_points(ax, []) == 0 and not ax.texts
