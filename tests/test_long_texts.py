"""Compressors on long texts: nothing of tokens x tokens, and no step for each token."""

import pytest
import torch

from tests import caches
from tests.made import Made
from tests.test_compression import every_case, method_for

SHORT, LONG = 1 << 9, 1 << 11


def cache_of(n_tokens):
    layers = (caches.layer(i, 3, n_tokens, (8, 8), dtype=torch.float16) for i in range(4))
    return caches.watched(caches.cache(*layers))


def short():
    return cache_of(SHORT)


@every_case
@pytest.mark.parametrize("way", ["compress", "restore"])
def test_no_tensor_is_of_tokens_by_tokens_and_no_step_of_one_token(name, number, way):
    method = method_for(name, number, short)
    operations = []
    for cache in (short(), cache_of(LONG)):
        compressed = method.compress(cache)
        with Made() as made:
            method.compress(cache) if way == "compress" else compressed.restore()
        operations.append(made.operations)
    assert made.largest <= 4 * cache.n_entries  # a head's tokens x tokens are ten times as many
    assert operations[1] - operations[0] < (LONG - SHORT) / 2  # some methods take blocks
