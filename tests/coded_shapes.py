"""Caches that `coded` is tried on, and what is learned of them."""

import math
from functools import cache as once

import pytest

from compression.coded.calibration import calibrate
from compression.coded.method import Coded
from tests import caches
from tests.caches import random_gradients

SHAPES = caches.SHAPES | {
    f"{shape}, watched": lambda make=make: caches.watched(make())
    for shape, make in caches.SHAPES.items()
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


@once
def learned(shape):
    """What is calibrated on random gradients by this cache; with no room where it is watched, so
    that each layer has a basis of its own and is turned with the others."""
    cache, room = SHAPES[shape](), 1 if "watched" in shape else math.inf
    return calibrate([random_gradients(cache, seed) for seed in range(3)], "random gradients", room)


def method(shape, **settings):
    return Coded(**settings, calibration=learned(shape))
