"""A plain cache comes back from its file as it was, or not at all."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from analysis.measures import peaks, sweep
from config import UsageError
from data import tensor_files
from data.cache import KINDS
from data.extraction import prefill
from data.plain_files import FORMAT
from data.saved_cache import load, save
from data.saved_layers import TENSORS
from tests import caches, families
from tests.commands import PROMPT, ROOT

MODEL = {"name": "random", "revision": "1", "identity": "a" * 64, "dtype": "float32"}
TEXT = {"source": "prompt", "index": "0", "title": "Of é ␣", "sha256": "b" * 64}


@pytest.fixture
def file(tmp_path):
    save(tmp_path / "a.cache", caches.everything(), caches.words(caches.everything()), MODEL, TEXT)
    return tmp_path / "a.cache"


def test_all_that_is_saved_comes_back(file):
    saved = load(str(file))
    assert caches.same(saved.cache, caches.everything().in_16_bits())
    assert saved.words == tuple(caches.words(caches.everything()))
    assert (saved.model, saved.text, saved.assumed) == (MODEL, TEXT, ())
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("name", caches.SHAPES)
@pytest.mark.parametrize("as_computed", [False, True])
def test_the_largest_entries_are_those_of_what_is_written(name, as_computed, tmp_path):
    save(tmp_path / "a", caches.SHAPES[name](), as_computed=as_computed)
    saved = load(str(tmp_path / "a"))
    assert saved.largest == peaks(saved.cache)


@pytest.mark.parametrize("name", caches.SHAPES)
@pytest.mark.parametrize("as_computed", [False, True])
def test_caches_of_every_shape_come_back(name, as_computed, tmp_path):
    cache = caches.SHAPES[name]()
    save(tmp_path / "a", cache, as_computed=as_computed)
    saved = load(str(tmp_path / "a"))
    assert caches.same(saved.cache, cache if as_computed else cache.in_16_bits())
    assert saved.words is None and saved.text == {} and saved.model == {"name": "random"}


@pytest.mark.parametrize("name", families.SETTINGS)
def test_the_cache_of_every_kind_of_model_comes_back(name, tmp_path):
    start = prefill(families.loaded(name), families.token_ids(40), probe=True)
    save(tmp_path / "a", start.cache)
    save(tmp_path / "b", start.cache, as_computed=True)
    served = start.cache.in_16_bits()
    saved = load(str(tmp_path / "a")).cache
    assert caches.same(saved, served)
    assert caches.same(load(str(tmp_path / "b")).cache, start.cache)
    tables = sweep(saved, 1.0), sweep(served, 1.0)
    assert tables[0].thresholds == tables[1].thresholds and saved.nbytes == served.nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("as_computed", [False, True])
def test_dtypes_of_a_run_come_back(dtype, as_computed, tmp_path):
    cache = caches.alike(dtype)
    save(tmp_path / "a", cache, as_computed=as_computed)
    back = load(str(tmp_path / "a")).cache
    assert caches.same(back, cache if as_computed else cache.in_16_bits())


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
    for layer in caches.everything().in_16_bits().layers:
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
    assert layer.n_entries == caches.everything().layers[1].n_entries
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
    at = content.index(caches.everything().layers[2].values.half().numpy().tobytes())
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

    written = tensor_files.checksums

    def done(raw):
        most.append(sum(held))
        held.clear()
        return written(raw)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(tensor_files, "checksums", done)
    save(tmp_path / "a", cache)
    assert max(most) == cache.layers[0].keys.numel()


def test_a_text_that_is_analysed_is_kept_with_what_was_measured_on_it(mode, tmp_path, capsys):
    file = tmp_path / "text.cache"
    asked = ["--prompt", PROMPT, "--context_tokens", "40", "--save_cache", str(file)]
    assert mode("analyze", "--analysis_focus", "tokens", *asked) == 0
    assert f"40 tokens of prompt #0: {PROMPT[:20]}" in capsys.readouterr().out
    saved = touched(load(str(file)))
    assert "".join(saved.words).replace("␣", " ") == PROMPT[:40]
    assert all(layer.attention is not None for layer in saved.cache.layers)
    assert saved.text["sha256"] == hashlib.sha256(PROMPT.encode()).hexdigest()
    assert saved.text["source"] == "prompt" and saved.model["name"] == saved.cache.model
    assert saved.model["dtype"] == "float32" and saved.cache.layers[0].keys.dtype == torch.float16
    heads = tmp_path / "heads.cache"
    asked[-1] = str(heads)
    assert mode("analyze", "--analysis_focus", "heads", *asked) == 0
    assert load(str(heads)).cache.layers[0].attention is None


def test_store_keeps_the_same_cache_as_analyze(mode, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    text = ["--prompt", PROMPT, "--context_tokens", "40"]
    assert mode("analyze", "--analysis_focus", "tokens", *text, "--save_cache", str(one)) == 0
    assert mode("store", *text, "--save_cache", str(two)) == 0
    assert one.read_bytes() == two.read_bytes()
    assert "with the attention that its tokens receive, in" in capsys.readouterr().out


@pytest.mark.parametrize("mode_name", ["analyze", "store"])
def test_nothing_is_overwritten_but_an_earlier_saved_cache(mode_name, mode, tmp_path, capsys):
    file = tmp_path / "mine"
    file.write_text("kept")
    asked = (mode_name, "--prompt", PROMPT, "--context_tokens", "20", "--save_cache")
    assert mode(*asked, str(file)) == 2
    assert "--save_cache" in (said := capsys.readouterr().err) and "is no saved cache" in said
    assert file.read_text() == "kept"
    assert mode(*asked, str(tmp_path)) == 2
    assert "is no file: give a name such as text.cache" in capsys.readouterr().err
    assert mode(*asked, str(tmp_path / "nowhere" / "a")) == 2
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err
    save(file.with_name("earlier"), caches.everything())
    assert mode(*asked, str(file.with_name("earlier"))) == 0
    assert load(str(file.with_name("earlier"))).cache.n_tokens == 20


def test_a_full_disk_is_a_sentence_and_leaves_nothing(mode, tmp_path, monkeypatch, capsys):
    def full(raw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "checksums", full)
    file = tmp_path / "text.cache"
    assert mode("store", "--prompt", PROMPT, "--save_cache", str(file)) == 2
    assert "cannot be written (No space left on device): give a file" in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".unfinished", "text"))]
