"""Files whose checksum fits and whose content does not: a sentence, or a cache of the shape that is
claimed; never another error, and never memory out of proportion to the file."""

import json
import os
import time
from functools import cache as once

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from compression import files, sealed
from compression.coded.calibration import calibrate
from compression.methods import kvtc_fit
from compression.methods.dimensions import fitted_bases
from compression.methods.evictions import EVICTIONS
from compression.registry import METHODS, make, needs_calibration
from compression.shapes import CacheShape, LayerShape
from config import UsageError
from data.cache import KINDS
from tests import caches, opened
from tests.mutations import mutated

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "20"))  # of each method
SETTINGS = {
    "coded": {"step": 0.03},
    "coded_fixed": {"step": 0.3, "sink_tokens": 0},
    "coded_chunks": {"step": 0.3, "chunk_tokens": 4, "recent_tokens": 1},
    "fp8": {"sink_tokens": 1, "recent_tokens": 2},
    "kivi": {"bits": 3, "group": 4, "recent_tokens": 2},
    "rotated": {"bits": 3, "unrotated_keys": True},
    "tucker": {"token_rank": 2, "embedding_rank": 3, "sink_tokens": 1},
    "tucker_quantised": {"token_rank": 2, "embedding_rank": 3, "bits": 4},
    "merged_tokens": {"similarity": 0.2},
    "recent": {"recent_tokens": 2},
    "evict": {"layers": (3,), "heads": ((0, 1), (2, 0))},
    "merged_heads": {
        "key_groups": (((2, 0), (2, 1)), ((0, 1),)),
        "value_groups": (((2, 0), (2, 2)),),
    },
    "composed": {"eviction": {"name": "recent"}, "then": {"name": "int8", "unrotated_keys": True}},
}


STATES = {"layers.1.recurrent_states.0": torch.ones(1, 2, 3)}


@once
def original():
    """A cache of a few kinds of layers, small enough for thousands of tries."""
    small = (
        caches.layer(0, 2, 6, (8, 8), n_tokens=10, kind="sliding"),
        caches.layer(2, 3, 10, (8, 8)),
        caches.layer(3, 1, 10, (6, 4), kind="latent"),
    )
    return caches.watched(caches.cache(*small))


@once
def learned(name):
    if not needs_calibration(name):
        return None
    if name.startswith("coded"):
        return calibrate([caches.random_gradients(original())], "random gradients")
    if name == "kvtc":
        return kvtc_fit.fitted([original()], "another text")
    return fitted_bases([original()], False, "another text")


@once
def honest(name):
    """What a file of a method holds, laid open: tensors and header."""
    settings = SETTINGS.get(name, {})
    with pytest.MonkeyPatch.context() as patch:
        kept = {}
        patch.setattr(
            sealed, "write", lambda file, tensors, header: kept.update(a=(tensors, header))
        )
        compressed = make(name, settings, learned(name)).compress(original())
        files.save(compressed, "nowhere", STATES, last="7")
    return opened.opened(*kept["a"])


def restored(file, calibration):
    """The shape that is claimed and what is restored; None where it is refused in a sentence."""
    try:
        compressed = files.load(file, calibration)
        return compressed.shape, compressed.restore()
    except UsageError as refusal:
        assert str(file) in str(refusal) and len(str(refusal)) < 1000
        assert str(refusal).isprintable()
        return None


@pytest.mark.parametrize("name", METHODS)
def test_an_honest_file_comes_back(name, tmp_path):
    file = tmp_path / "a.kv"
    opened.write(file, *honest(name))
    shape, back = restored(file, learned(name))
    assert shape == CacheShape.of(original().in_16_bits())
    assert back.token_ids.tolist() == list(range(10))
    states = files.load(file, learned(name)).states
    assert states.keys() == STATES.keys()
    assert all(torch.equal(states[path], x) for path, x in STATES.items())


# Evictions of tokens differ in what they choose and are restored alike.
@pytest.mark.parametrize(
    "name", [n for n in METHODS if n == "recent" or METHODS[n] not in EVICTIONS]
)
def test_whatever_is_changed_is_refused_or_is_a_cache_of_its_shape(name, tmp_path, little_memory):
    file = tmp_path / "a.kv"
    honest(name)

    @settings(
        max_examples=EXAMPLES,
        derandomize=EXAMPLES <= 100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(honest, name))
    def holds(mutation):
        opened.write(file, mutation.tensors, mutation.header)
        began = time.perf_counter()
        came = restored(file, learned(name))
        assert time.perf_counter() - began < 5
        if came is not None:
            shape, cache = came
            assert tuple(LayerShape.of(layer) for layer in cache.layers) == shape.layers
            assert cache.token_ids.tolist() == list(shape.token_ids)
            assert all(x.tensor(kind).isfinite().all() for x in cache.layers for kind in KINDS)
            states = files.load(file, learned(name)).states
            assert all(x.isfinite().all() for x in states.values())

    holds()


HUGE = 10**9


def changed(file, name, part, change):
    """The file of a method with one part of its header changed."""
    tensors, header = honest(name)
    tree = json.loads(header[part])
    change(tree)
    opened.write(file, tensors, header | {part: json.dumps(tree)})
    return file


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("kivi", "bits", "4"),
        ("kivi", "bits", 4.5),
        ("kivi", "bits", True),
        ("kivi", "group", [4]),
        ("kivi", "recent_tokens", 10**12),
        ("kivi", "recent_tokens", 10**400),
        ("kivi", "unrotated_keys", 1),
        ("svd", "keep", float("nan")),
        ("pca", "keep", "half"),
        ("coded", "step", -1),
        ("coded", "step", 1e-300),
        ("coded", "step", float("inf")),
        ("rotated", "seed", -1),
        ("evict", "layers", 3),
        ("evict", "heads", [3]),
        ("merged_heads", "key_groups", [[["a", 0]]]),
        ("composed", "then", 3),
        ("composed", "then", {"name": ["int8"]}),
        ("composed", "then", {"name": "composed", "then": {"name": "int8"}}),
    ],
)
def test_a_setting_of_another_type_or_range_is_refused(tmp_path, name, setting, value):
    file = changed(tmp_path / "a.kv", name, "settings", lambda tree: tree.update({setting: value}))
    assert restored(file, learned(name)) is None


@pytest.mark.parametrize("name", ["recent", "svd", "rotated", "tucker", "none", "coded", "evict"])
@pytest.mark.parametrize("size", ["n_heads", "n_tokens", "key_dim", "value_dim"])
def test_a_size_that_is_only_claimed_takes_no_memory(tmp_path, little_memory, name, size):
    for claimed in (HUGE, 10**6, 5000):
        file = changed(
            tmp_path / "a.kv",
            name,
            "shape",
            lambda tree, n=claimed: tree["alike"][1].update({size: n}),
        )
        assert restored(file, learned(name)) is None


def test_tokens_that_are_there_one_by_one_are_still_held_against_what_is_stored(tmp_path):
    tensors, header = honest("none")
    tree = json.loads(header["shape"])
    tree["alike"][1] |= {"n_tokens": 100_000}
    ids = {"token_ids": torch.zeros(100_000, dtype=torch.int32)}
    file = tmp_path / "a.kv"
    opened.write(file, tensors | ids, header | {"shape": json.dumps(tree)})
    with pytest.raises(UsageError, match=r"claims a cache of [\d,]+ bytes in "):
        files.load(file)


def test_what_cannot_be_read_as_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="is no regular file"):
            files.load(file)


def test_a_codec_that_runs_out_is_refused(tmp_path):
    tensors, header = honest("coded")
    for name, change in (
        ("words", lambda x: x[:-1]),
        ("words", lambda x: torch.cat([x, x[:1]])),
        ("state", lambda x: x + 1),
        ("words", lambda x: x ^ 1),
    ):
        opened.write(tmp_path / "a.kv", tensors | {name: change(tensors[name])}, header)
        assert restored(tmp_path / "a.kv", learned("coded")) is None
