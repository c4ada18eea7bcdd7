"""The same code on an accelerator: what the CPU gives is what it gives, of every kind of cache.

Skipped where there is none, but for what notices that a mode is missing here. Numbers may differ in
the last bits, so that single integers round the other way: errors and sizes are compared, and what
one device stored is decoded on the other.
"""

from dataclasses import replace

import pytest
import torch

import main
from analysis.measures import sweep
from compression.coded import coefficients
from compression.registry import METHODS
from compression.serving.compressed_cache import CompressedCache
from compression.studies.work import judge_of
from config import UsageError
from data.cache import KINDS, KVCache, LayerKV
from data.extraction import generate, prefill
from tests import families
from tests.chats import chat
from tests.commands import run
from tests.contract import (
    KINDS_OF_CACHE,
    SETTINGS,
    asks_for_attention,
    method_for,
    of_family,
)

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
there_is_one = pytest.mark.skipif(DEVICE is None, reason="there is no accelerator")
N = 40


def on(device, value):
    """A tensor, a layer or a cache there."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, LayerKV):
        own = {k: v for k, v in vars(value).items() if isinstance(v, torch.Tensor)}
        return replace(value, **{k: on(device, v) for k, v in own.items()})
    if isinstance(value, KVCache):
        return replace(value, layers=tuple(on(device, layer) for layer in value.layers))
    return value


def there(name):
    """A family's model on the accelerator."""
    loaded = families.fresh(name)
    loaded.model.to(DEVICE)
    return loaded


def distance(one, two):
    """Of two caches, relative to the first."""
    pairs = [
        (a.tensor(kind).cpu().double(), b.tensor(kind).cpu().double())
        for a, b in zip(one.layers, two.layers, strict=True)
        for kind in KINDS
    ]
    off = sum((a - b).square().sum() for a, b in pairs)
    return (off / sum(a.square().sum() for a, _ in pairs)).sqrt().item()


@there_is_one
@pytest.mark.parametrize("name", families.SETTINGS)
def test_a_model_reads_generates_and_is_scored_as_on_the_cpu(name):
    ids = families.token_ids(N + 8)
    judges = {}
    for loaded in (families.loaded(name), there(name)):
        judge = judge_of(loaded, ids, N, probe=True)
        at_half = replace(
            judge.cache,
            layers=tuple(
                replace(x, keys=x.keys / 2, values=x.values / 2) for x in judge.cache.layers
            ),
        )
        judges[loaded.device.type] = judge, judge.verdict(at_half)["kl_mean_nats"]
        grown = generate(loaded, prefill(loaded, ids[:N]), 3)
        assert grown.n_tokens == N + 3
    (cpu, costs), (device, costs_there) = judges["cpu"], judges[DEVICE.type]
    assert all(layer.keys.device.type == DEVICE.type for layer in device.cache.layers)
    assert distance(cpu.cache, device.cache) < 1e-2
    assert costs_there == pytest.approx(costs, rel=0.1, abs=1e-4)
    for a, b in zip(cpu.cache.layers, device.cache.layers, strict=True):
        assert torch.equal(a.positions, b.positions.cpu())
        assert (a.attention is None) == (b.attention is None)
        if a.attention is not None:
            assert torch.allclose(a.attention, b.attention.cpu(), rtol=0.05, atol=1e-3)


@there_is_one
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", KINDS_OF_CACHE)
def test_every_method_stores_and_restores_as_on_the_cpu(family, name, monkeypatch):
    """`coded` with products of 32 bits, which both have."""
    monkeypatch.setattr(coefficients, "fast_dtype", lambda device: torch.float32)
    cache = of_family(family)().in_16_bits()
    moved = on(DEVICE, cache)
    for number in range(len(SETTINGS[name])):
        method = method_for(name, number, of_family(family))
        if family in families.WITHOUT_PROBE and asks_for_attention(method):
            with pytest.raises(UsageError):
                method.compress(moved)
            continue
        expected, small = method.compress(cache), method.compress(moved)
        back = small.restore()
        for a, b in zip(moved.layers, back.layers, strict=True):
            assert b.keys.device == a.keys.device and b.values.device == a.values.device
            assert (b.keys.dtype, b.values.dtype) == (a.keys.dtype, a.values.dtype)
        assert small.stored_nbytes == pytest.approx(expected.stored_nbytes, rel=0.02, abs=32)
        error = distance(cache, expected.restore())
        assert distance(cache, back) == pytest.approx(error, rel=0.05, abs=1e-3)
        here = replace(small, stored={k: v.cpu() for k, v in small.stored.items()})
        assert distance(here.restore(), back) < 2e-3
        bits = small.bits_by_token
        assert bits is None or bits.sum().item() == pytest.approx(8 * small.stored_nbytes)


@there_is_one
def test_products_of_16_bits_are_off_by_what_these_hold_there_too(monkeypatch):
    cache = of_family("llama_gqa")().in_16_bits()
    method = method_for("coded", 0, of_family("llama_gqa"))
    monkeypatch.setattr(coefficients, "fast_dtype", lambda device: torch.float32)
    small = method.compress(on(DEVICE, cache))
    exact = small.restore()
    monkeypatch.setattr(coefficients, "fast_dtype", lambda device: torch.bfloat16)
    assert 0 < distance(exact, small.restore()) < 0.02


@there_is_one
@pytest.mark.parametrize("family", KINDS_OF_CACHE)
def test_sums_over_a_cache_are_those_of_the_cpu(family):
    cache = of_family(family)()
    one, two = sweep(cache, 5.0), sweep(on(DEVICE, cache), 5.0)
    assert two.thresholds == pytest.approx(one.thresholds)
    for kind in KINDS:
        for a, b in zip(one.sums[kind], two.sums[kind], strict=True):
            assert torch.allclose(a.mean_abs_head.cpu(), b.mean_abs_head.cpu(), rtol=1e-4)


@there_is_one
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "mistral"])
def test_a_conversation_that_rested_goes_on_there(family):
    loaded, codec, ids = chat(family)
    moved = there(family)
    moved.model.load_state_dict(loaded.model.state_dict())
    said = {}
    for each in (loaded, moved):
        past = CompressedCache(each.model.config, codec, 8, 5)
        with torch.no_grad():
            each.model(ids[None, :29].to(each.device), past_key_values=past)
            past.rest()
            chunks = list(past.chunks)
            after = each.model(ids[None, 29:31].to(each.device), past_key_values=past).logits
        said[each.device.type] = after.cpu().float(), len(chunks), past.layers[0].keys.device.type
    (expected, n_chunks, _), (logits, n_there, device) = said["cpu"], said[DEVICE.type]
    assert n_chunks == n_there and device == DEVICE.type
    assert torch.allclose(expected, logits, rtol=0.05, atol=0.05 * expected.abs().max().item())


SCORED = ["--context_tokens", "144", "--score_tokens", "8", "--num_samples", "2"]
MODES = {
    "analyze": ["--sequence_length", "144", "--new_tokens", "4", "--measure"],
    "analyze_generation": ["--sequence_length", "144", "--new_tokens", "4"],
    "analyze_similarity": ["--sequence_length", "144"],
    "compare": [*SCORED, "--quick"],
    "compress": SCORED,
    "prune": [*SCORED, "--trial"],
    "tucker": [*SCORED, "--energy", "0.9"],
    "tasks": ["--context_tokens", "600", "--num_samples", "1", "--methods", "kivi,coded,kvtc"],
}


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "long"
    families.save(families.model("llama_gqa", {"max_position_embeddings": 8192}), folder)
    return folder


@there_is_one
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_there(mode, long_model, tmp_path, shared_cache):
    given = ["--mode", mode, "--model", str(long_model), "--device", DEVICE.type]
    assert run(*given, "--no-use_wikitext", "--output_dir", str(tmp_path), *MODES[mode]) == 0


def test_no_mode_that_loads_a_model_is_left_out():
    assert {*MODES, "calibrate", "store"} == set(main.MODES) - {"report", "list_samples"}


@there_is_one
def test_a_model_is_calibrated_there(long_model, empty_cache):
    assert run("--mode", "calibrate", "--model", str(long_model), "--device", DEVICE.type) == 0
    assert list(empty_cache.glob("calibrations/*/*.safetensors"))


@there_is_one
@pytest.mark.parametrize("method", ["coded", "coded_chunks"])
@pytest.mark.parametrize("offload", ["none", "memory"])
def test_a_stored_prompt_is_gone_on_with(method, offload, long_model, tmp_path, shared_cache):
    file = str(tmp_path / "prompt.kv")
    given = ["--mode", "store", "--model", str(long_model), "--device", DEVICE.type]
    given += ["--cache_offload", offload]
    stored = [*given, "--methods", method, "--prompt", 9 * "some text ", "--save_compressed", file]
    assert run(*stored) == 0
    again = ["--save_compressed", file] if method == "coded_chunks" else []
    for _ in range(3):  # until chunks are full
        more = ["--prompt", 12 * "more text ", "--new_tokens", "4"]
        assert run(*given, "--load_compressed", file, *more, *again) == 0


@there_is_one
def test_a_saved_cache_is_compared_on_its_model(long_model, tmp_path, shared_cache):
    file = str(tmp_path / "saved")
    given = ["--model", str(long_model), "--device", DEVICE.type]
    read = ["--mode", "analyze", "--prompt", 30 * "some text ", "--save_cache", file]
    assert run(*given, *read, "--output_dir", str(tmp_path)) == 0
    compare = ["--mode", "compare", "--quick", "--methods", "kivi", "--load_cache", file]
    assert run(*given, *compare, "--output_dir", str(tmp_path)) == 0
