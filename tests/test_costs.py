"""Bytes and errors of a method: the same in parts as at once, and in parts in little memory."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from compression import costs
from compression.costs import COSTS, costs_on, relative_errors, tried, tried_in_parts
from compression.registry import make
from data.cache import KINDS
from tests import caches
from tests.commands import ROOT

EXACT = [name for name in COSTS if not name.endswith("_s")]
BY_LAYER = ("none", "int8", "kivi", "svd", "merged_tokens", "key_norm", "random")


def reference(cache, method):
    """COSTS as they are defined, from the whole cache at once, in numpy."""
    small = method.compress(cache)
    back, served = small.restore(), cache.in_16_bits()
    found = {
        "original_bytes": cache.nbytes,
        "stored_bytes": small.stored_nbytes,
        "per_model_bytes": 0,
    }
    found |= {"bits_per_value": 8 * small.stored_nbytes / cache.n_entries, "ratio": small.ratio}
    for kind in KINDS:
        pairs = zip(served.layers, back.layers, strict=True)
        error = norm = 0.0
        for one, two in pairs:
            kept = 1.0 if two.keep is None else two.keep[..., None].double().numpy()
            x, y = (each.tensor(kind).double().numpy() for each in (one, two))
            error += np.square(x - kept * y).sum()
            norm += np.square(x).sum()
        found[f"{kind}_error"] = (error / norm) ** 0.5
    return found


@pytest.mark.parametrize("shape", ["alike", "mixed", "half precision"])
@pytest.mark.parametrize("name", [*BY_LAYER, "zero_small", "cross_layer_svd"])
def test_costs_are_what_they_are_defined_as_whichever_way_a_cache_is_taken(name, shape):
    cache, method = caches.SHAPES[shape](), make(name)
    row = costs_on(cache, method)
    assert {k: row[k] for k in EXACT} == pytest.approx(reference(cache, method), rel=1e-12)
    whole = costs.costs(method, [tried(method, cache)])
    assert {k: row[k] for k in EXACT} == {k: whole[k] for k in EXACT}
    parts = [len(each.cache.layers) for each in tried_in_parts(method, cache)]
    assert parts == ([1] * cache.n_layers if name in BY_LAYER else [cache.n_layers])


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_errors_do_not_depend_on_the_blocks_in_which_tokens_are_taken(block, monkeypatch):
    cache = caches.mixed()
    other = caches.with_keep(cache, torch.arange(10) % 2 > 0)
    expected = relative_errors(cache, other)
    monkeypatch.setattr(costs, "BLOCK", block)
    found = relative_errors(cache, other)
    assert found["relative_error"].tolist() == pytest.approx(
        expected["relative_error"].tolist(), rel=1e-14
    )


def test_what_is_broken_in_one_layer_shows():
    cache = caches.alike()
    layer = replace(cache.layers[2], keys=cache.layers[2].keys * 2)
    found = relative_errors(
        cache, replace(cache, layers=(*cache.layers[:2], layer, cache.layers[3]))
    )
    errors = found.set_index(["layer", "kind"])["relative_error"]
    assert errors[2, "key"] == 1 and (errors.drop((2, "key")) == 0).all()


IN_LITTLE = """if True:
    import resource, sys, torch
    from compression.costs import costs, costs_on, tried
    from compression.registry import make
    from data.cache import KVCache, LayerKV

    heads, tokens, dim, layers = 4, 16384, 64, 16
    n = heads * tokens * dim
    path, way = sys.argv[1:]
    def mapped(i):
        x = torch.from_file(path, shared=True, size=2 * layers * n, dtype=torch.float16)
        return x[i * n : (i + 1) * n].view(heads, tokens, dim)
    places = torch.arange(tokens)
    cache = KVCache(
        tuple(LayerKV(mapped(2 * i), mapped(2 * i + 1), places, i) for i in range(layers)),
        places, tokens, "synthetic",
    )
    method = make("int8")
    costs_on(KVCache(cache.layers[:1], places, tokens, ""), method)  # all is brought in
    with open("/proc/self/statm") as file:
        data = 4096 * int(file.read().split()[5])
    most = data + 200 * 2**20  # of anonymous memory; the cache alone has 256 MiB
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    row = costs_on(cache, method) if way == "parts" else costs(method, [tried(method, cache)])
    print(row["key_error"], row["stored_bytes"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
def test_a_mapped_cache_larger_than_memory_is_scored_layer_by_layer(tmp_path):
    file = tmp_path / "cache"
    x = torch.randn(2**20).half().numpy().tobytes()
    with file.open("wb") as out:
        for _ in range(128):  # 256 MiB
            out.write(x)

    def scored(way):
        command = [sys.executable, "-c", IN_LITTLE, str(file), way]
        given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed no longer counts
        env = {**os.environ, **given_back}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)

    in_parts = scored("parts")
    assert in_parts.returncode == 0, in_parts.stderr
    error, stored = in_parts.stdout.split()
    assert 0.001 < float(error) < 0.02
    assert 0 < int(stored) - 128 * 2**20 * 66 // 64 < 2 * 16384 + 4096  # the header, with token ids
    whole = scored("whole")
    assert whole.returncode and "allocate memory" in whole.stderr  # the limit does bind
