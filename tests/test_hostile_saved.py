"""Files of caches that were altered: the same tensors or a sentence; and where whoever altered them
made the checksums fit, a sentence or a cache that is whole. Never another error, and never memory
out of proportion to the file."""

import json
import os
import time
from functools import cache as once
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import UsageError
from data.cache import KINDS
from data.saved_cache import SavedCache, load, save
from data.saved_layers import TENSORS
from tests import caches
from tests.mutations import change_place, places
from tests.saved_mutations import altered, altered_bytes, put_together, taken_apart

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "60"))
few = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES <= 100,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@once
def honest(folder: Path) -> bytes:
    """A file with everything that one may hold."""
    cache = caches.everything()
    save(folder / "honest", cache, caches.words(cache), {"revision": "1"}, {"title": "t"})
    return (folder / "honest").read_bytes()


def read(place: Path, layout: str | None = None) -> SavedCache | None:
    """What is there, all of it touched; None where it is refused in a sentence."""
    began = time.perf_counter()
    try:
        saved = load(str(place), layout)
        for layer in saved.cache.layers:
            for name in TENSORS:
                getattr(layer, name)
    except UsageError as refusal:
        assert len(str(refusal)) < 1000 and str(refusal).isprintable(), refusal
        saved = None
    assert time.perf_counter() - began < 5
    return saved


def refuse_broken(saved: SavedCache) -> None:
    """Fail where a cache is not as its words say."""
    cache = saved.cache
    assert saved.words is None or len(saved.words) == cache.n_tokens
    assert [x.index for x in cache.layers] == sorted({x.index for x in cache.layers})
    for layer in cache.layers:
        assert layer.keys.shape == (layer.n_heads, layer.n_tokens, layer.keys.shape[2])
        assert all(layer.tensor(kind).isfinite().all() for kind in KINDS)
        places = layer.positions.tolist()
        assert places == sorted(set(places)) and places[0] > -1 and places[-1] < cache.n_tokens
        if layer.rotary is not None:
            assert layer.unrotated_keys().shape == layer.keys.shape
        if layer.keep is not None:
            assert layer.keep.dtype == torch.bool and set(layer.keep.flatten().tolist()) <= {0, 1}


def test_taking_a_file_apart_and_putting_it_together_changes_nothing(tmp_path):
    content = honest(tmp_path)
    header, data = taken_apart(content)
    assert put_together(header, bytes(data), sealed=True) == content
    assert put_together(header, bytes(data), sealed=False) == content


def test_an_altered_file_is_refused_or_gives_the_same(tmp_path, little_memory):
    content = honest(tmp_path)
    wanted = caches.everything().in_16_bits()

    @few
    @given(altered(content, sealed=False))
    def holds(alteration):
        (tmp_path / "a").write_bytes(alteration[0])
        saved = read(tmp_path / "a")
        if saved is not None:
            assert caches.same(saved.cache, wanted)
            assert saved.words == tuple(caches.words(wanted))
            assert saved.text == {"title": "t"} and saved.model["revision"] == "1"

    holds()


def test_a_file_with_checksums_of_a_stranger_is_refused_or_a_whole_cache(tmp_path, little_memory):
    content = honest(tmp_path)

    @few
    @given(altered(content, sealed=True))
    def holds(alteration):
        (tmp_path / "a").write_bytes(alteration[0])
        saved = read(tmp_path / "a")
        if saved is not None:
            refuse_broken(saved)

    holds()


@given(st.binary(max_size=300))
@few
def test_any_bytes_are_refused(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "bytes"
    for begun in (content, len(content).to_bytes(8, "little") + content):
        file.write_bytes(begun)
        assert read(file) is None


HEADS, TOKENS, DIM = 2, 12, 4
LMCACHE = {"format": "lmcache", "head_dim": DIM, "kv_heads": HEADS, "layers": 2, "dtype": "float16"}
LMCACHE |= {"chunks": ["m@0x01000100@0@f0.data", "m@0x01000100@0@a1.data"], "token_ids": [1] * 24}
LMCACHE |= {"rotary": {"theta": 100.0, "dims": 4, "interleaved": True}, "model": "m"}
VLLM = {"format": "vllm", "head_dim": DIM, "kv_heads": HEADS, "axes": "kv tokens heads dim"}


@once
def raw() -> bytes:
    """A chunk of LMCache, (2, 2 layers, tokens, heads x dim)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, TOKENS, HEADS * DIM, generator=generator).half()
    return x.view(torch.uint8).numpy().tobytes()


def of_layers(folder: Path) -> bytes:
    """A file of vLLM, in `folder`."""
    from safetensors.torch import save_file

    x = torch.frombuffer(bytearray(raw()), dtype=torch.float16).view(2, 2 * TOKENS, HEADS * DIM)
    files = [folder / f"model.layers.{i}.self_attn.attn.safetensors" for i in (0, 1)]
    for file in files:
        save_file({"kv_cache": x}, file, metadata={"format": "pt"})
    return files[0].read_bytes()


@pytest.mark.parametrize("layout", [LMCACHE, VLLM], ids=["lmcache", "vllm"])
def test_other_layouts_altered_are_refused_or_a_whole_cache(layout, tmp_path, little_memory):
    if layout is VLLM:
        file, content = tmp_path / "model.layers.0.self_attn.attn.safetensors", of_layers(tmp_path)
    else:
        file, content = tmp_path / LMCACHE["chunks"][0], raw()
        (tmp_path / LMCACHE["chunks"][1]).write_bytes(content)

    @few
    @given(st.data())
    def holds(data):
        file.write_bytes(data.draw(st.one_of(st.just(content), altered_bytes(content))))
        said = json.loads(json.dumps(layout))
        for _ in range(data.draw(st.integers(0, 2))):
            found = list(places(said))
            if found:
                change_place(data.draw, *data.draw(st.sampled_from(found)))
        saved = read(tmp_path, json.dumps(said))
        if saved is not None:
            refuse_broken(saved)

    file.write_bytes(content)
    assert read(tmp_path, json.dumps(layout)).cache.n_tokens == 2 * TOKENS
    holds()


def test_a_size_that_is_only_claimed_takes_no_memory(tmp_path, little_memory):
    (tmp_path / LMCACHE["chunks"][0]).write_bytes(raw())
    one = str(tmp_path / LMCACHE["chunks"][0])
    for name in ("head_dim", "kv_heads", "layers"):
        said = {k: v for k, v in LMCACHE.items() if k not in ("chunks", "rotary", "token_ids")}
        assert read(Path(one), json.dumps(said)) is not None
        assert read(Path(one), json.dumps(said | {name: 2**31 - 1})) is None
    header, data = taken_apart(honest(tmp_path))
    for shape in ([2**40, 2**40], [2**40] * 8, [0, 2**40, 1], [2**63], [10**5] * 100):
        header["layers.0.keys"]["shape"] = shape
        (tmp_path / "a").write_bytes(put_together(header, bytes(data), sealed=True))
        assert read(tmp_path / "a") is None
