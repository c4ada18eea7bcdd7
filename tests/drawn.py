"""What is asked of every picture, whatever it shows."""


def is_within(figure) -> bool:
    """Whether nothing that is drawn or written leaves the figure."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [ax.get_tightbbox(renderer) for ax in figure.axes]
    right, top = figure.bbox.x1 + 1, figure.bbox.y1 + 1
    return bool(boxes) and all(
        box.x0 >= -1 and box.y0 >= -1 and box.x1 <= right and box.y1 <= top for box in boxes
    )
