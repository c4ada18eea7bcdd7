"""The codec where caches live. LMCache's part is tested where LMCache is installed."""

import os
import select
from dataclasses import replace
from functools import cache as once
from types import SimpleNamespace

import pytest
import torch

from compression import prompts, turns
from compression.coded import codec_files
from compression.coded.calibration import calibrate
from compression.coded.chunk_positions import likely_start
from compression.coded.chunked import CodedChunks
from compression.coded.chunks import ChunkCodec
from compression.serving.compressed_cache import CompressedCache, RestingLayer
from compression.shapes import LayerShape
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV
from data.extraction import prefill
from data.resume import as_past, greedy
from data.rotary import Rotary
from data.texts import Sample, printable
from tests import caches
from tests.chats import MODEL, chat

TEXT = "The cache of a model holds keys and values. "
TURNS = (30, 9, 14)


def empty(family, chunk_tokens=8, recent_tokens=5):
    loaded, codec, _ = chat(family)
    return CompressedCache(loaded.model.config, codec, chunk_tokens, recent_tokens)


def said(loaded, ids, past, n=12):
    """What `generate` says after all of these ids, those in `past` not read again."""
    usual = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        whole = loaded.model.generate(ids[None], past_key_values=past, max_new_tokens=n, **usual)
    return whole[0]


@pytest.mark.parametrize("family", ["llama_gqa", "mistral", "gpt2", "gemma2", "deepseek_v3"])
def test_a_cache_that_never_rests_is_the_models_own(family):
    loaded, _, ids = chat(family)
    from transformers import DynamicCache

    own = said(loaded, ids[:30], DynamicCache(config=loaded.model.config))
    assert torch.equal(said(loaded, ids[:30], empty(family)), own)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "deepseek_v3"])
def test_what_it_says_after_a_rest_is_what_store_and_load_say(family):
    loaded, codec, ids = chat(family)
    past = empty(family)
    with torch.no_grad():
        loaded.model(ids[None, :29], past_key_values=past)
    past.rest()
    method = CodedChunks(codec.step, 8, 5, calibration=codec.calibration)
    small = method.compress(prefill(loaded, ids[:29]).cache)
    alone = ChunkCodec(codec.layers, MODEL, codec.calibration, codec.step)
    for k, chunk in enumerate(past.chunks):  # the same but for the model that they name
        parts = zip(alone.decode_layers(chunk), small.restore().layers, strict=True)
        for a, b in parts:
            assert all(torch.equal(a.tensor(n), b.tensor(n)[:, 8 * k : 8 * k + 8]) for n in KINDS)
    loads = as_past(loaded, small.restore())
    expected = greedy(loaded, loads, 29, int(ids[29]), 12)
    assert said(loaded, ids[:30], past)[30:].tolist() == expected


def test_a_cache_of_windows_alone_stays_as_it_is():
    loaded, _, ids = chat("mistral")
    past = empty("mistral")
    with torch.no_grad():
        loaded.model(ids[None, :30], past_key_values=past)
    before = past.nbytes
    past.rest()
    assert past.chunks == [] and past.nbytes == before and past.get_seq_length() == 30


def test_the_mode_that_stores_prompts_says_the_same_from_chunks(tmp_path, monkeypatch):
    loaded, codec, _ = chat("llama_gqa")
    ids = loaded.ids_of(TEXT)
    monkeypatch.setattr(prompts, "calibration_of", lambda *_: codec.calibration)
    monkeypatch.setattr(turns, "earlier_calibration", lambda *_: codec.calibration)
    file, sample = str(tmp_path / "prompt.kv"), Sample(0, "a text", "a test", TEXT)
    prompts.save(loaded, sample, save_compressed=file, methods=["coded_chunks 1.4e-04"])
    finer = replace(codec, step=1.4e-4)
    past = CompressedCache(loaded.model.config, finer, len(ids) - 1, recent_tokens=0)
    with torch.no_grad():
        loaded.model(ids[None, :-1], past_key_values=past)
    past.rest()
    assert all(x.keys.shape[2] == 0 for x in past.layers)
    goes_on = printable(loaded.tokenizer.decode(said(loaded, ids, past)[len(ids) :]))
    assert turns.go_on(loaded, file, 12) == (goes_on, [])


@pytest.mark.parametrize("family", ["llama_gqa", "gemma2"])
def test_between_turns_it_holds_chunks_and_a_window_and_chunks_are_coded_once(family):
    loaded, codec, ids = chat(family)
    past, n, before = empty(family), 0, []
    plain = CompressedCache(loaded.model.config, codec, 8, 10**6)
    for turn in TURNS:
        with torch.no_grad():
            for each in (past, plain):
                loaded.model(ids[None, n : n + turn], past_key_values=each)
        n += turn
        awake = past.nbytes
        past.rest()
        assert past.chunks[: len(before)] == before
        before = list(past.chunks)
        assert past.get_seq_length() == n and len(past.chunks) == (n - 5) // 8
        resting = [x for x in past.layers if isinstance(x, RestingLayer)]
        assert resting and all(x.keys.shape[2] == n - 8 * len(before) for x in resting)
        held = sum(x.keys.nbytes + x.values.nbytes for x in resting)
        assert past.nbytes < awake and held < past.nbytes
        past.rest()  # once more changes nothing
        assert past.chunks == before
    past.wake()
    for a, b in zip(past.layers, plain.layers, strict=True):
        assert a.keys.shape == b.keys.shape and a.keys.dtype == b.keys.dtype
        assert (a.keys - b.keys).norm() < 0.1 * b.keys.norm()


def test_what_is_cut_off_is_forgotten_and_coded_anew():
    loaded, _, ids = chat("llama_gqa")
    past = empty("llama_gqa")
    with torch.no_grad():
        loaded.model(ids[None, :30], past_key_values=past)
    past.rest()
    first = past.chunks[0]
    past.crop(-20)
    assert past.get_seq_length() == 10 and past.chunks == [first]
    past.reset()
    assert past.get_seq_length() == 0 and past.chunks == []
    with torch.no_grad():
        loaded.model(ids[None, :30], past_key_values=past)
    past.rest()
    assert past.chunks[0] == first


def test_a_cache_of_several_texts_is_refused():
    loaded, _, ids = chat("llama_gqa")
    past = empty("llama_gqa")
    past.rest()  # of nothing is nothing
    with torch.no_grad():
        loaded.model(ids[:60].view(2, 30), past_key_values=past)
    with pytest.raises(UsageError, match="holds 2 sequences"):
        past.rest()


def test_a_codec_in_a_file_decodes_what_the_one_that_was_saved_has_coded(tmp_path):
    loaded, codec, ids = chat("llama_gqa")
    codec_files.save(codec, tmp_path / "a.codec")
    back = codec_files.load(tmp_path / "a.codec")
    cache = prefill(loaded, ids[:20]).cache
    chunk = codec.encode_layers(cache.layers, 0, 20)
    assert back == codec and back.encode_layers(cache.layers, 0, 20) == chunk
    assert all(map(torch.equal, back.decode(chunk)[0], codec.decode(chunk)[0]))
    damaged = bytearray((tmp_path / "a.codec").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "b.codec").write_bytes(damaged)
    for name in ("b.codec", "none.codec"):
        with pytest.raises(UsageError, match="is no chunk codec"):
            codec_files.load(tmp_path / name)


@once
def biased(n_heads=2, dim=8):
    """A codec of a model whose keys have a mean, as those of models do, and a maker of chunks."""
    rotary = Rotary((1.0, 0.3, 0.1, 0.01))
    generator = torch.Generator().manual_seed(3)
    bias = 3 * torch.randn(3, n_heads, 1, dim, generator=generator)

    def layers(start, n_tokens):
        made = []
        for i in range(3):
            positions = torch.arange(start, start + n_tokens)
            noise = torch.randn(2, n_heads, n_tokens, dim, generator=generator)
            keys = rotary.rotated(bias[i] + noise[0], positions)
            made.append(LayerKV(keys, noise[1], positions, i, rotary=rotary).in_16_bits())
        return made

    cache = KVCache(tuple(layers(0, 64)), torch.arange(64), 64, "biased")
    calibration = calibrate([caches.random_gradients(cache)], "random gradients")
    shapes = tuple(LayerShape.of(layer) for layer in cache.layers)
    return ChunkCodec(shapes, MODEL, calibration, 0.003), layers


@pytest.mark.parametrize("start", [0, 16, 160, 496])
def test_keys_tell_where_a_chunk_stands(start):
    codec, layers = biased()
    keys = [layer.keys for layer in layers(start, 16)]
    assert likely_start(codec, keys, range(0, 512, 16)) == start


@pytest.fixture(scope="module")
def lmcache():
    if os.environ.get("CI") != "true":  # there the set-up has brought it
        pytest.importorskip("lmcache.v1.distributed.serde.async_processor", exc_type=ImportError)
    from compression.serving import lmcache_serde

    return lmcache_serde


class Memory:
    """A memory object as LMCache hands them over."""

    def __init__(self, tensor):
        self.tensor = tensor

    def set_used_size(self, n):
        self.tensor = self.tensor[:n]


def done(processor, way, src, dst):
    """Whether LMCache's processor says that it has done this."""
    from lmcache.v1.platform import consume_fd

    task = getattr(processor, f"submit_{way}")([src], [dst], [None])
    event = getattr(processor, f"get_{way}_event_fd")()
    assert select.select([event], [], [], 60)[0]
    consume_fd(event)
    return getattr(processor, f"query_{way}_result")(task)


def as_lmcache(layers):
    """[2, layers, tokens, heads x dim]"""
    kinds = ([layer.tensor(kind).transpose(0, 1).flatten(1) for layer in layers] for kind in KINDS)
    return torch.stack([torch.stack(kind) for kind in kinds])


def test_lmcaches_own_processor_stores_chunks_and_gives_them_back(lmcache, tmp_path):
    from lmcache.v1.distributed.serde.base import SerdeConfig
    from lmcache.v1.distributed.serde.factory import create_serde_processor

    codec, layers = biased()
    codec_files.save(codec, tmp_path / "a.codec")
    settings = {"codec": str(tmp_path / "a.codec"), "chunk_tokens": 16, "longest_text": 512}
    processor = create_serde_processor(SerdeConfig("coded", settings))
    given = layers(48, 16)
    src = as_lmcache(given)
    size = processor.estimate_serialized_size(
        SimpleNamespace(shapes=[src.shape], dtypes=[src.dtype])
    )
    buffer, back = Memory(torch.zeros(size, dtype=torch.uint8)), Memory(torch.zeros_like(src))
    assert done(processor, "serialize", Memory(src.clone()), buffer) is True
    alone = codec.encode_layers(given, 48, 16)
    assert buffer.tensor.numpy().tobytes() == alone
    padded = Memory(torch.cat([buffer.tensor, torch.zeros(99, dtype=torch.uint8)]))
    assert done(processor, "deserialize", padded, back) is True
    assert torch.equal(back.tensor, as_lmcache(codec.decode_layers(alone)))
    assert (back.tensor - src).norm() < 0.02 * src.norm()
    buffer.tensor[100] ^= 1
    untouched = Memory(torch.zeros_like(src))
    assert done(processor, "deserialize", buffer, untouched) is False
    assert not untouched.tensor.any()
    processor.close()


def test_the_serde_refuses_other_models_lengths_and_settings(lmcache, tmp_path):
    codec, layers = biased()
    one = lmcache.ChunkSerializer(codec, 16, 512)
    with pytest.raises(UsageError, match="hands over a tensor of"):
        one.serialize(Memory(torch.zeros(2, 3, 16, 8)), Memory(torch.zeros(9)), None)
    src = Memory(as_lmcache(layers(0, 16)))
    with pytest.raises(UsageError, match="bytes where 9 are free"):
        one.serialize(src, Memory(torch.zeros(9, dtype=torch.uint8)), None)
    data = torch.frombuffer(bytearray(codec.encode_layers(layers(0, 16), 0, 16)), dtype=torch.uint8)
    with pytest.raises(UsageError, match="is asked for"):
        lmcache.ChunkDeserializer(codec).deserialize(
            Memory(data), Memory(torch.zeros(2, 3, 8, 16)), None
        )
    with pytest.raises(UsageError, match="was given no codec"):
        lmcache.processor({})
    with pytest.raises(UsageError, match="has no setting speed"):
        lmcache.processor({"speed": 3})
