"""The tables of an analysis and their pictures, and what is asked of every picture."""

import numpy as np
import pandas as pd
import torch

from analysis.generation import generation_stages
from analysis.measures import sweep, thresholds
from analysis.tables import Subject, tables
from data.cache import KVCache
from tests import caches
from visualization.catalogue import PICTURES

MEASURED = ("tucker/", "pruning/", "similarity/", "spectrum/", "compare/", "tasks/", "models/",
            "embeddings/dimension_compression", "embeddings/bits_and_errors")  # fmt: skip
OF_THE_ANALYSIS = [stem for stem in PICTURES if not stem.startswith(MEASURED)]
ABOUT = "tiny (random) · test text #0: $a_b$ · 10 tokens"


def usual() -> KVCache:
    return caches.cache(*(caches.layer(i, 3, 30, (8, 8)) for i in range(4)), n_prompt=25)


def made(cache: KVCache, attention=None) -> dict[str, pd.DataFrame]:
    """Every table of `OF_THE_ANALYSIS`."""
    if attention is None:
        attention = [torch.rand(x.n_heads, x.n_tokens).clamp(min=1e-4) for x in cache.layers]
    words = [f"${i}" for i in range(cache.n_tokens)]
    result = tables(Subject(sweep(caches.with_attention(cache, attention), 1.0), words), "all")
    text = cache.before(cache.n_prompt)
    stages = generation_stages(text, cache, thresholds(text, 1.0))
    result["tokens/generation_stages_comparison"] = stages
    return {stem: table for stem, table in result.items() if stem in PICTURES}


def is_within(figure) -> bool:
    """Whether something is drawn, and nothing that is drawn or written leaves the figure."""
    figure.set_dpi(50)
    figure.canvas.draw()  # warnings are errors: glyphs, empty axes, limits
    renderer = figure.canvas.get_renderer()
    boxes = [ax.get_tightbbox(renderer) for ax in figure.axes]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    right, top = figure.bbox.x1 + 1, figure.bbox.y1 + 1
    return np.asarray(figure.canvas.buffer_rgba()).std() > 5 and all(
        box.x0 >= -1 and box.y0 >= -1 and box.x1 <= right and box.y1 <= top for box in boxes
    )


def texts_of(figure) -> list[str]:
    """All that is written in it."""
    found = [t.get_text() for t in figure.texts]
    for ax in figure.axes:
        found += [ax.get_title(), ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()]
        found += [t.get_text() for t in ax.texts]
        legend = ax.get_legend()
        found += [t.get_text() for t in legend.get_texts()] if legend else []
    return found
