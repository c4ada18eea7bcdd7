"""Pictures as files: PNG, PDF or SVG."""

from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from PIL import Image

import config

MOST_PARTS = 2000  # of a part of a picture that is still made of shapes in PDF and SVG
VECTOR: dict[Any, object] = {
    "svg.fonttype": "path",  # looks the same where the font is not at hand
    "svg.hashsalt": "kv-cache-visualization",  # names of parts that are not drawn by chance
    "pdf.fonttype": 42,  # text that can be searched
}
UNDATED = {".svg": "Date", ".pdf": "CreationDate"}


def save(fig: Figure, path: str | Path | IO[bytes]) -> None:
    """Write a picture in the format that the path's ending says, PNG where it has none; the same
    picture is the same bytes each time."""
    ending = Path(path).suffix if isinstance(path, str | Path) else ".png"
    if ending == ".png":  # compressed quickly: the best compression takes as long as all drawing
        _pixels(fig).save(path, "png", dpi=(config.FIGURE_DPI,) * 2, compress_level=2)
        return
    for artist in fig.findobj(Collection):
        if _n_parts(artist) > MOST_PARTS:
            artist.set_rasterized(True)
    with matplotlib.rc_context(VECTOR):
        fig.savefig(path, dpi=config.FIGURE_DPI, metadata={UNDATED[ending]: None})


def _pixels(fig: Figure) -> Image.Image:
    """A picture as it is seen: opaque, a fourth channel would say nothing."""
    fig.set_dpi(config.FIGURE_DPI)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _n_parts(artist: Collection) -> int:
    """Cells, points or lines that each would be a shape of its own in a file."""
    values = artist.get_array()
    return max(0 if values is None else values.size, len(np.asarray(artist.get_offsets())))
