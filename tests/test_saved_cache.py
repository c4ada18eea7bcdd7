"""A plain cache comes back from its file as it was, or not at all."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from config import UsageError
from data.cache import KINDS, KVCache
from data.plain_files import FORMAT
from data.saved_cache import load, save
from data.saved_layers import TENSORS
from tests import caches
from tests.commands import ROOT

MODEL = {"name": "random", "revision": "1", "identity": "a" * 64, "dtype": "float32"}
TEXT = {"source": "prompt", "index": "0", "title": "Of é ␣", "sha256": "b" * 64}


def same(one: KVCache, two: KVCache) -> bool:
    """Whether everything of two caches is the same, bit for bit."""
    if len(one.layers) != len(two.layers):
        return False
    for a, b in zip(one.layers, two.layers, strict=True):
        if (a.index, a.kind, a.rotary) != (b.index, b.kind, b.rotary):
            return False
        for name in TENSORS:
            x, y = getattr(a, name), getattr(b, name)
            if (x is None) != (y is None):
                return False
            if x is not None and (x.dtype != y.dtype or not torch.equal(x, y)):
                return False
    known = ("n_prompt", "model")
    alike = all(getattr(one, name) == getattr(two, name) for name in known)
    return alike and torch.equal(one.token_ids, two.token_ids)


def everything() -> KVCache:
    """Attention, evicted entries, layers of every kind, and tokens that were generated."""
    watched = caches.watched(caches.mixed())
    kept = caches.with_keep(watched, torch.arange(10) % 3 > 0)
    return replace(kept, n_prompt=7)


@pytest.fixture
def file(tmp_path):
    save(tmp_path / "a.cache", everything(), caches.words(everything()), MODEL, TEXT)
    return tmp_path / "a.cache"


def test_all_that_is_saved_comes_back(file):
    saved = load(str(file))
    assert same(saved.cache, everything().in_16_bits())
    assert saved.words == tuple(caches.words(everything()))
    assert (saved.model, saved.text, saved.assumed) == (MODEL, TEXT, ())
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", caches.SHAPES)
@pytest.mark.parametrize("as_computed", [False, True])
def test_caches_of_every_shape_come_back(name, as_computed, tmp_path):
    cache = caches.SHAPES[name]()
    save(tmp_path / "a", cache, as_computed=as_computed)
    saved = load(str(tmp_path / "a"))
    assert same(saved.cache, cache if as_computed else cache.in_16_bits())
    assert saved.words is None and saved.text == {} and saved.model == {"name": "random"}


def test_what_is_beyond_float16_is_served_as_bfloat16(tmp_path):
    cache = caches.alike()
    layers = (cache.layers[0].with_tensor("key", 1e6 * cache.layers[0].keys), *cache.layers[1:])
    save(tmp_path / "a", replace(cache, layers=layers))
    keys = [layer.keys for layer in load(str(tmp_path / "a")).cache.layers]
    assert [x.dtype for x in keys[:2]] == [torch.bfloat16, torch.float16]
    assert torch.equal(keys[0], layers[0].keys.to(torch.bfloat16))


def test_anybody_can_read_it(file):
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
        found = {name: opened.get_tensor(name) for name in names}
        assert opened.metadata()["format"] == FORMAT
    assert names == {
        "token_ids",
        "words",
        *(f"layers.{i}.{name}" for i in (0, 2, 3, 5) for name in TENSORS),
    }
    for layer in everything().in_16_bits().layers:
        for name in TENSORS:
            assert torch.equal(found[f"layers.{layer.index}.{name}"], getattr(layer, name))


def test_neither_saving_nor_loading_brings_in_transformers(file):
    code = """if True:
        import sys
        from data import saved_cache
        saved = saved_cache.load(sys.argv[1])
        saved_cache.save(sys.argv[1] + "2", saved.cache, saved.words, saved.model, saved.text)
        assert "transformers" not in sys.modules and "safetensors" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, str(file)], cwd=ROOT, check=True)
    assert (file.parent / "a.cache2").read_bytes() == file.read_bytes()


def test_what_is_made_of_a_saved_layer_is_a_layer_as_any_other(file):
    layer = load(str(file)).cache.layers[1]
    twice = layer.with_tensor("key", 2 * layer.keys)
    assert torch.equal(twice.keys, 2 * layer.keys) and twice.n_heads == 3
    assert layer.before(4).n_tokens == 4
    assert layer.n_entries == everything().layers[1].n_entries
    with pytest.raises(ValueError, match="keys and values share"):
        layer.with_tensor("key", layer.keys[:1])


def refusal(file) -> str:
    """Of a file and all that it holds, in a sentence."""
    with pytest.raises(UsageError) as refused:
        touched(load(str(file)))
    said = str(refused.value)
    assert said.isprintable() and len(said) < 500
    return said


def touched(saved):
    for layer in saved.cache.layers:
        for name in TENSORS:
            getattr(layer, name)
    return saved


def test_a_change_of_any_byte_is_refused(file):
    content = file.read_bytes()
    for at in range(0, len(content), 1 if len(content) < 3000 else 3):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        try:
            saved = touched(load(str(file)))
        except UsageError:
            continue
        raise AssertionError(f"byte {at} of {len(content)}: {saved}")


def test_a_part_of_the_file_is_refused(file):
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        refusal(file)
    file.write_bytes(content + b"\0")
    refusal(file)


def test_damage_is_found_in_the_tensor_where_it_is_and_when_it_is_touched(file):
    content = bytearray(file.read_bytes())
    at = content.index(everything().layers[2].values.half().numpy().tobytes())
    content[at] ^= 1
    file.write_bytes(content)
    cache = load(str(file)).cache
    assert cache.nbytes and cache.n_heads == 3  # sizes are of the header
    assert [layer.keys.shape[0] for layer in cache.layers] == [2, 3, 1, 1]
    assert cache.layers[1].values.numel()
    with pytest.raises(UsageError, match=r"damaged.*checksum of layers\.3\.values does not fit"):
        _ = cache.layers[2].values


def test_nothing_but_a_saved_cache_is_one(tmp_path):
    (tmp_path / "text").write_text("Once upon a time")
    assert "damaged or no saved cache" in refusal(tmp_path / "text")
    (tmp_path / "empty").touch()
    assert "damaged or no saved cache" in refusal(tmp_path / "empty")
    assert "cannot be read" in refusal(tmp_path / "nowhere")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refusal(tmp_path / "pipe")
    save_file({"a": torch.zeros(1)}, tmp_path / "tensors")
    assert "holds tensors and is no saved cache" in refusal(tmp_path / "tensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "older", metadata={"format": "plain cache 0"})
    assert "has format plain cache 0, not plain cache 1: save the cache again" in refusal(
        tmp_path / "older"
    )


def test_what_was_never_finite_is_refused(tmp_path):
    for kind in KINDS:
        cache = caches.alike(torch.bfloat16)
        cache.layers[1].tensor(kind)[0, 3, 2] = torch.nan
        save(tmp_path / "a", cache)
        assert f"layers.1.{kind}s holds NaN or Inf" in refusal(tmp_path / "a")


def test_one_tensor_is_in_memory_a_second_time_not_the_cache(tmp_path, monkeypatch):
    held, most = [], []
    cache = caches.alike()
    real = torch.Tensor.to

    def to(x, *given, **kw):
        made = real(x, *given, **kw)
        held.append(made.numel() if made is not x else 0)
        return made

    from data import tensor_files

    written = tensor_files.checksums

    def done(raw):
        most.append(sum(held))
        held.clear()
        return written(raw)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(tensor_files, "checksums", done)
    save(tmp_path / "a", cache)
    assert max(most) == cache.layers[0].keys.numel()
