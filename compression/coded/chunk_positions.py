"""Where in its text a chunk stands, told by its keys, for caches whose look-up keys do not say.

Turned back by the right angles, keys lie around the mean key that the calibration knows. A wrong
start costs bytes and nothing else: keys are turned again by the angles that they were turned back
by.
"""

from collections.abc import Iterable

import torch

from compression.coded.chunks import ChunkCodec, OfLayers


def likely_start(codec: ChunkCodec, keys: OfLayers, starts: Iterable[int]) -> int:
    """The one of these positions at which keys (heads, tokens, dim) of each layer, turned back from
    there on, have a mean nearest to that of all texts; the first of equals."""
    tried = torch.tensor(list(starts))
    likeness = torch.zeros(len(tried), dtype=torch.float64)
    for shape, key, learned in zip(codec.layers, keys, codec.mean_keys, strict=True):
        if shape.rotary is None:
            continue
        places = torch.arange(key.shape[1])
        mean = shape.rotary.unrotated(key.float().cpu(), places).mean(1)  # as if from 0 on
        turned = shape.rotary.unrotated(mean[:, None].expand(-1, len(tried), -1), tried)
        products = (turned * learned[:, None]).sum(dim=(0, 2))  # (starts,)
        likeness += products.double() / (mean.norm() * learned.norm()).clamp(min=1e-30).double()
    return int(tried[int(likeness.argmax())])
