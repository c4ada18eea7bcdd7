"""Caches as vLLM and LMCache leave them on disk, written here as these programs write them, against
the tensors they were made of."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config import UsageError
from data.rotary import NOT_ROTATED
from data.saved_cache import load

LAYERS, HEADS, TOKENS, DIM, ROPE = 3, 2, 32, 8, 4
SIZES = {"kv": 2, "layers": LAYERS, "heads": HEADS, "tokens": TOKENS, "dim": DIM}
PLAIN = {"head_dim": DIM, "kv_heads": HEADS}
LATENT = {"head_dim": DIM, "rope_dim": ROPE}
RAW = {"format": "lmcache", "layers": LAYERS, "dtype": "bfloat16"}
HASHES = ("f0", "0a", "77")


def truth(heads: int = HEADS, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """(kv, layers, heads, tokens, dim)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, LAYERS, heads, TOKENS, DIM, generator=generator).to(dtype)


def dumped(folder, layer_of, suffix=".self_attn.attn"):
    """As the example connector of vLLM does: one file a layer, `layer_of(i)` its tensor."""
    folder.mkdir()
    for i in range(LAYERS):
        tensors = {"kv_cache": layer_of(i).detach().cpu().contiguous()}
        save_file(tensors, folder / f"model.layers.{i}{suffix}.safetensors")
    return folder


def paged(x: torch.Tensor, block: int = 4) -> torch.Tensor:
    """(2, tokens, heads, dim) in pages of a larger buffer, and out of it by slots, as vLLM does."""
    n_pages = 3 * TOKENS // block
    pages = torch.randperm(n_pages)[: TOKENS // block]
    buffer = torch.zeros(2, n_pages, block, *x.shape[2:], dtype=x.dtype)
    buffer[:, pages] = x.unflatten(1, (-1, block))
    slots = (pages[:, None] * block + torch.arange(block)).flatten()
    return buffer.reshape(2, n_pages * block, -1)[:, slots]


def chunked(folder, chunks, name="org-SEP-model@0x01000100@0@{}.data"):
    """As LMCache does: the numbers of each chunk and nothing else."""
    folder.mkdir(exist_ok=True)
    names = [name.format(h) for h in HASHES]
    for file, chunk in zip(names, chunks, strict=False):
        (folder / file).write_bytes(chunk.contiguous().view(torch.uint8).numpy().tobytes())
    return names[: len(chunks)]


def loaded(place, **layout):
    return load(str(place), json.dumps(layout))


def is_truth(saved, x: torch.Tensor) -> bool:
    pairs = zip(saved.cache.layers, x.unbind(1), strict=True)
    return all(torch.equal(a.keys, k) and torch.equal(a.values, v) for a, (k, v) in pairs)


def test_a_folder_of_vllm_is_read_by_its_layers(tmp_path):
    x = truth()
    of_layer = [x[:, i].transpose(1, 2) for i in range(LAYERS)]  # (2, tokens, heads, dim)
    saved = loaded(dumped(tmp_path / "a", lambda i: paged(of_layer[i])), format="vllm", **PLAIN)
    assert is_truth(saved, x)
    assert [layer.index for layer in saved.cache.layers] == [0, 1, 2]
    assert {layer.kind for layer in saved.cache.layers} == {"full"}
    assert saved.cache.layers[0].positions.tolist() == list(range(TOKENS))
    assert saved.words is None and saved.model == {} and saved.text == {}
    assert set(saved.cache.token_ids.tolist()) == {-1} and len(saved.cache.token_ids) == TOKENS
    assert saved.cache.layers[0].rotary is None
    assert saved.assumed == (
        "Positions are taken to be 0 to 31.",
        "Token ids are not known.",
        "What rotated the keys is not known.",
    )


def test_newer_and_other_backends_of_vllm_sort_by_other_axes(tmp_path):
    x = truth()
    packed = dumped(tmp_path / "a", lambda i: torch.cat([x[0, i], x[1, i]], -1).transpose(0, 1))
    assert is_truth(loaded(packed, format="vllm", axes="tokens heads kv dim", **PLAIN), x)
    triton = dumped(tmp_path / "b", lambda i: x[:, i].permute(2, 0, 1, 3))
    assert is_truth(loaded(triton, format="vllm", axes="tokens kv heads dim", **PLAIN), x)
    for folder in (packed, triton):
        with pytest.raises(UsageError, match="does not fit its `cache_layout`"):
            loaded(folder, format="vllm", **PLAIN)


def test_a_layer_of_ten_comes_after_one_of_two(tmp_path):
    x = truth()
    folder = dumped(tmp_path / "a", lambda i: paged(x[:, i].transpose(1, 2)))
    first = folder / "model.layers.0.self_attn.attn.safetensors"
    first.rename(folder / "model.layers.10.self_attn.attn.safetensors")
    saved = loaded(folder, format="vllm", **PLAIN)
    assert [layer.index for layer in saved.cache.layers] == [1, 2, 10]
    assert is_truth(saved, x[:, [1, 2, 0]])


def test_latents_of_vllm_and_lmcache(tmp_path):
    x = truth()[0, :, 0]  # (layers, tokens, latent + rope)
    folder = dumped(tmp_path / "a", lambda i: x[i])
    chunked(tmp_path / "b", [x[None, :, :20], x[None, :, 20:]])
    chunks = sorted(file.name for file in (tmp_path / "b").iterdir())[::-1]
    for saved in (
        loaded(folder, format="vllm", **LATENT),
        loaded(tmp_path / "b", **RAW, **LATENT, chunks=chunks),
    ):
        for i, layer in enumerate(saved.cache.layers):
            assert layer.kind == "latent" and layer.rotary == NOT_ROTATED
            assert torch.equal(layer.keys[0], x[i, :, :-ROPE])
            assert torch.equal(layer.values[0], x[i, :, -ROPE:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "axes",
    ["kv layers tokens heads dim", "layers tokens kv heads dim", "layers kv heads tokens dim"],
)
def test_chunks_of_lmcache_are_one_text_in_the_order_that_is_given(axes, dtype, tmp_path):
    x = truth(dtype=getattr(torch, dtype))
    named = dict(zip(("kv", "layers", "heads", "tokens", "dim"), range(5), strict=True))
    sorted_ = x.permute([named[axis] for axis in axes.split()])
    names = chunked(tmp_path, sorted_.split([16, 12, 4], dim=axes.split().index("tokens")))
    layout = {**RAW, "dtype": dtype, **PLAIN, "axes": axes}
    saved = loaded(tmp_path, **layout, chunks=names)
    assert is_truth(saved, x)
    assert saved.model == {"name": "org/model"} and saved.cache.model == "org/model"
    assert not is_truth(loaded(tmp_path, **layout, chunks=names[::-1]), x)
    with pytest.raises(UsageError, match="3 files are in it, so chunks have to say their order"):
        loaded(tmp_path, **layout)
    one = loaded(tmp_path / names[0], **layout)
    assert is_truth(one, x[..., :16, :])


def test_what_is_known_of_the_text_and_the_rotation_is_told(tmp_path):
    chunked(tmp_path, [truth().transpose(2, 3)])
    turned = {"theta": 100.0, "dims": 4}
    known = {"token_ids": list(range(TOKENS)), "rotary": turned, "model": "mine"}
    saved = loaded(tmp_path, **RAW, **PLAIN, **known)
    assert saved.cache.token_ids.tolist() == list(range(TOKENS))
    assert saved.model == {"name": "mine"}
    layer = saved.cache.layers[1]
    assert layer.rotary.frequencies == (1.0, pytest.approx(0.1))
    angles = np.arange(TOKENS)[:, None] * np.array([1.0, 0.1])
    k = layer.keys.double().numpy()
    back = np.concatenate(
        [
            k[..., :2] * np.cos(angles) + k[..., 2:4] * np.sin(angles),
            k[..., 2:4] * np.cos(angles) - k[..., :2] * np.sin(angles),
            k[..., 4:],
        ],
        -1,
    )
    assert np.allclose(layer.unrotated_keys(), back, atol=1e-5)
    assert saved.assumed == ("Positions are taken to be 0 to 31.", "Layers are numbered from 0.")


def test_heads_of_one_rank_are_said_to_be_so(tmp_path):
    chunked(tmp_path, [truth().transpose(2, 3)], "m@0x04010401@0@{}.data")
    assert "KV heads are those of one of 4 ranks." in loaded(tmp_path, **RAW, **PLAIN).assumed


def test_a_layer_is_in_memory_at_a_time(tmp_path):
    chunked(tmp_path, [truth().transpose(2, 3)])
    layers = loaded(tmp_path, **RAW, **PLAIN).cache.layers
    first = layers[0].keys
    assert layers[0].keys is first and layers[0].tensor("key") is first
    assert layers[1].keys is not first
    again = layers[0].keys
    assert again is not first and torch.equal(again, first)


def test_a_mapping_may_be_a_file(tmp_path):
    chunked(tmp_path / "a", [truth().transpose(2, 3)])
    (tmp_path / "layout.json").write_text(json.dumps({**RAW, **PLAIN}))
    assert is_truth(load(str(tmp_path / "a"), str(tmp_path / "layout.json")), truth())


VLLM = {"format": "vllm", **PLAIN}
WRONG = [
    ({"head_dim": 8}, "format is not given"),
    ({"format": "sglang", "head_dim": 8}, "format is sglang, and takes vllm or lmcache"),
    ({"format": "vllm"}, "head_dim is not given"),
    (VLLM | {"heads": 8}, "there is no field heads; fields are format, head_dim"),
    (VLLM | {"head_dim": "8"}, "head_dim is 8, and takes a whole number"),
    (VLLM | {"head_dim": 0}, "head_dim is 0, and takes 1 or more"),
    (VLLM | {"kv_heads": 10**12}, "kv_heads is 1000000000000, and takes a whole number"),
    (VLLM | {"layers": 3}, "layers was given, which files of vllm say themselves"),
    (VLLM | {"axes": "heads dim"}, "axes are heads dim, and take kv, tokens, heads, dim"),
    (VLLM | {"axes": "kv kv heads dim"}, "axes are kv kv heads dim, and take"),
    (VLLM | {"rope_dim": 4}, "kv_heads of latent attention is 1"),
    ({"format": "vllm", **LATENT, "rope_dim": 8}, "rope_dim is 8, and takes 1 to head_dim - 1"),
    (VLLM | {"rotary": {"theta": 1e4}}, "rotary does not hold dims, interleaved, theta"),
    (VLLM | {"rotary": {"theta": 1e4, "dims": 10}}, "rotary dims are more than head_dim"),
    (VLLM | {"rotary": {"theta": 0, "dims": 4}}, "rotary takes theta from 1"),
    (VLLM | {"token_ids": [-1]}, "token_ids are 1 or more numbers from 0"),
    (VLLM | {"model": "\x1b[31m"}, "model cannot be printed"),
    (RAW | PLAIN | {"dtype": "float8"}, "dtype is float8, and takes one of float16"),
    ({k: v for k, v in (RAW | PLAIN).items() if k != "layers"}, "layers is not given"),
    ([], "it is no mapping"),
]


@pytest.mark.parametrize(("layout", "says"), WRONG)
def test_a_wrong_field_is_named(layout, says, tmp_path):
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(layout))
    given = [str(file)] + ([json.dumps(layout)] if layout else [])
    for each in given:
        with pytest.raises(UsageError) as refused:
            load(str(tmp_path), each)
        assert "`cache_layout`" in str(refused.value) and says in str(refused.value)
        assert "data/layouts.py says which fields there are." in str(refused.value)


@pytest.mark.parametrize("given", ["nowhere.json", "{", "{}", "", "{'format': 1}", "[" * 10000])
def test_what_is_no_mapping_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="`cache_layout`"):
        load(str(tmp_path), given)


def refusal(place, **layout) -> str:
    with pytest.raises(UsageError) as refused:
        for layer in loaded(place, **layout).cache.layers:
            assert layer.keys is not None and layer.values is not None
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_a_folder_that_is_no_dump_is_refused(tmp_path):
    assert "is no folder with a safetensors file for each layer" in refusal(tmp_path, **VLLM)
    assert "is not there" in refusal(tmp_path / "nowhere", **VLLM)
    x = truth()

    def dump(name, **change):
        folder = dumped(tmp_path / name, lambda i: paged(x[:, i].transpose(1, 2)))
        file = folder / "model.layers.1.self_attn.attn.safetensors"
        return folder, file

    folder, file = dump("other tensor")
    save_file({"kv": torch.zeros(2)}, file)
    assert "does not hold one tensor kv_cache" in refusal(folder, **VLLM)
    folder, file = dump("fewer tokens")
    save_file({"kv_cache": torch.zeros(2, 16, HEADS * DIM)}, file)
    assert "its layers are not of as many tokens each" in refusal(folder, **VLLM)
    folder, file = dump("codes")
    save_file({"kv_cache": torch.zeros(2, TOKENS, HEADS * DIM, dtype=torch.uint8)}, file)
    assert "is of dtype torch.uint8" in refusal(folder, **VLLM)
    folder, file = dump("short")
    file.write_bytes(file.read_bytes()[:-1])
    assert "does not fit its `cache_layout`" in refusal(folder, **VLLM)
    folder, file = dump("not finite")
    save_file({"kv_cache": torch.full((2, TOKENS, HEADS * DIM), torch.nan)}, file)
    assert "the keys of layer 1 hold NaN or Inf" in refusal(folder, **VLLM)
    folder, file = dump("twice")
    file.rename(folder / "model.layers.2.other.safetensors")
    assert "several of its files are of layer 2" in refusal(folder, **VLLM)
    folder, file = dump("unnamed")
    file.rename(folder / "layer1.safetensors")
    assert "does not say which layer it is" in refusal(folder, **VLLM)
    folder, file = dump("pipe")
    file.unlink()
    os.mkfifo(file)
    assert "is no regular file" in refusal(folder, **VLLM)


def test_chunks_that_do_not_belong_together_are_refused(tmp_path):
    raw = RAW | PLAIN
    names = chunked(tmp_path, truth().transpose(2, 3).split(16, dim=2))
    assert "chunks are 1 or more files, each once" in refusal(tmp_path, **raw, chunks=names[:1] * 2)
    assert "is no file in it" in refusal(tmp_path, **raw, chunks=["../a"])
    assert "is no file in it" in refusal(tmp_path, **raw, chunks=["\x1b[31m"])
    other = names[0].replace("0x01000100", "0x01010101").replace("f0", "f1")
    (tmp_path / other).write_bytes((tmp_path / names[0]).read_bytes())
    both = [names[0], other]
    assert "names of chunks differ in more than their hash" in refusal(tmp_path, **raw, chunks=both)
    assert "chunks were given, and it is one file" in refusal(
        tmp_path / names[0], **raw, chunks=names
    )
    said = refusal(tmp_path, **raw, chunks=names, token_ids=[1, 2])
    assert "2 token_ids were given for 32 tokens" in said
    (tmp_path / names[0]).write_bytes(b"")
    assert "has 0 numbers" in refusal(tmp_path, **raw, chunks=names)
    (tmp_path / names[0]).write_bytes(b"abc")
    assert "has 3 bytes" in refusal(tmp_path, **raw, chunks=names)
    (tmp_path / names[0]).write_bytes(b"abcd")
    assert "has 2 numbers, which are no multiple of the 96 of a token" in refusal(
        tmp_path, **raw, chunks=names
    )


def test_a_chunk_that_changes_meanwhile_is_refused(tmp_path):
    (name,) = chunked(tmp_path, [truth().transpose(2, 3)])
    saved = loaded(tmp_path, **RAW, **PLAIN)
    (tmp_path / name).write_bytes(b"abcd")
    with pytest.raises(UsageError, match="has changed meanwhile"):
        _ = saved.cache.layers[0].keys
