"""Long texts, whose parts `coded` codes apart."""

import tracemalloc
from dataclasses import replace

import pytest
import torch

from compression.coded import segments
from compression.coded.fixed import CodedFixed
from compression.coded.method import Coded
from compression.shapes import CacheShape
from data.cache import KINDS
from tests import caches
from tests.coded_shapes import SHAPES, learned, method


@pytest.mark.parametrize("shape", ["alike, watched", "mixed, watched"])
@pytest.mark.parametrize("kind_of", [Coded, CodedFixed])
def test_parts_of_a_long_text_are_coded_as_if_each_were_alone(monkeypatch, shape, kind_of):
    cache = SHAPES[shape]().in_16_bits()
    coder = kind_of(step=0.03, sink_tokens=0, calibration=learned(shape))
    alone = [
        coder.compress(_between(cache, start, end)).restore() for start, end in ((0, 5), (5, 10))
    ]
    monkeypatch.setattr(segments, "MOST_ENTRIES", CacheShape.of(cache).n_entries // 2 + 1)
    together = coder.compress(cache)
    assert {name.split(".")[1] for name in together.stored if name.startswith("segments.")} == {
        "0",
        "1",
    }
    for layer, *parts in zip(together.restore().layers, *(x.layers for x in alone), strict=True):
        for kind in KINDS:
            joined = torch.cat([part.tensor(kind) for part in parts], dim=1)
            assert torch.equal(layer.tensor(kind), joined)


def _between(cache, start, end):
    """What its layers hold of these positions of the text."""
    layers = []
    for layer in cache.layers:
        first, last = torch.searchsorted(layer.positions, torch.tensor([start, end])).tolist()
        layers.append(layer.between(slice(first, last)))
    return replace(cache, layers=tuple(layers))


@pytest.mark.parametrize("way", ["compress", "restore", "tell"])
def test_what_it_works_with_does_not_grow_with_the_text(monkeypatch, way):
    """Memory of numpy at its peak, beyond what is stored; what torch takes is not told here."""
    monkeypatch.setattr(segments, "MOST_ENTRIES", 1 << 16)
    peaks = []
    for n_tokens in (1 << 11, 1 << 13):
        layers = (caches.layer(i, 3, n_tokens, (8, 8), dtype=torch.float16) for i in range(4))
        cache = caches.watched(caches.cache(*layers))
        coder = method("alike, watched", step=0.03)
        compressed = coder.compress(cache)
        action = {
            "compress": lambda c=cache, m=coder: m.compress(c),
            "restore": compressed.restore,
            "tell": lambda c=compressed: c.compressor.bits_by_token(c.stored, c.shape),
        }
        tracemalloc.start()
        kept = action[way]()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        if way == "compress":
            peaks[-1] -= kept.nbytes
    per_token = 64  # of levels, and of lists of token ids and positions
    assert peaks[1] < 1.1 * peaks[0] + per_token * n_tokens
