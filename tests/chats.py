"""Conversations on tiny models, and the codec that their caches rest in."""

from functools import cache as once

from compression.coded.calibration import calibrate
from compression.coded.chunks import ChunkCodec
from compression.shapes import LayerShape
from data.extraction import prefill
from tests import caches, families

MODEL = 64 * "a"


@once
def chat(family, step=0.003):
    """A model, a codec that is calibrated on another text of it, and token ids of a chat."""
    loaded = families.sharp(family)
    learned = prefill(loaded, families.token_ids(40, seed=9)).cache
    calibration = calibrate([caches.random_gradients(learned)], "random gradients")
    shapes = tuple(LayerShape.of(layer) for layer in learned.layers)
    return loaded, ChunkCodec(shapes, MODEL, calibration, step), families.token_ids(60)
