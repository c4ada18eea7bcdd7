import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from config import UsageError
from data.extraction import _with_attention, generate, prefill, tokenise
from data.loaded_model import LoadedModel
from data.resume import greedy
from data.scored_texts import long_enough
from data.sensitivity import windows
from data.texts import Sample
from tests import caches, families

N, NEW = 40, 5
every_family = pytest.mark.parametrize("name", families.SETTINGS)

# (kind, kv_heads, cached tokens, key_dim, value_dim) of each layer with a cache, after N tokens
EXPECTED = {
    "gpt2": [(0, "full", 4, N, 16, 16), (1, "full", 4, N, 16, 16)],
    "llama_gqa": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "llama_mqa": [(0, "full", 1, N, 16, 16), (1, "full", 1, N, 16, 16)],
    "mistral": [(0, "sliding", 2, 15, 16, 16), (1, "sliding", 2, 15, 16, 16)],
    "gemma2": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "gemma3": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "gpt_oss": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "qwen3": [(0, "full", 2, N, 32, 32), (1, "full", 2, N, 32, 32)],
    "phi3": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "gpt_neox": [(0, "full", 4, N, 16, 16), (1, "full", 4, N, 16, 16)],
    "opt": [(0, "full", 4, N, 16, 16), (1, "full", 4, N, 16, 16)],
    "deepseek_v2": [(0, "latent", 1, N, 24, 8), (1, "latent", 1, N, 24, 8)],
    "deepseek_v3": [(0, "latent", 1, N, 24, 8), (1, "latent", 1, N, 24, 8)],
    "falcon_h1": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "qwen3_next": [(1, "full", 2, N, 16, 16)],
    "gemma4": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 32, 32)],
    "mimo": [(0, "full", 2, N, 24, 16), (1, "sliding", 4, 15, 24, 16)],
    "falcon": [(0, "full", 1, N, 16, 16), (1, "full", 1, N, 16, 16)],
    "bamba": [(1, "full", 2, N, 16, 16)],
    "zamba": [(1, "full", 4, N, 32, 32), (3, "full", 4, N, 32, 32)],
    "zamba2": [(1, "full", 4, N, 32, 32), (3, "full", 4, N, 32, 32)],
    "hrm_text": [(slot, "full", 4, N, 16, 16) for slot in range(8)],
    "smollm3": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "cohere2": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "exaone4": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "afmoe": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "flint": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "phi": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "stablelm": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "persimmon": [(0, "full", 4, N, 16, 16), (1, "full", 4, N, 16, 16)],
    "llama4": [(0, "sliding", 2, 15, 16, 16), (1, "full", 2, N, 16, 16)],
    "nanochat": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "gptj": [(0, "full", 4, N, 16, 16), (1, "full", 4, N, 16, 16)],
    "codegen": [(0, "full", 4, N, 16, 16), (1, "full", 4, N, 16, 16)],
    "granite_hybrid": [(1, "full", 2, N, 16, 16)],
    "qwen3_next_after": [(0, "full", 2, N, 16, 16), (2, "full", 2, N, 16, 16)],
    "qwen3_5": [(0, "full", 2, N, 16, 16), (2, "full", 2, N, 16, 16)],
    "olmo_hybrid": [(0, "full", 2, N, 16, 16), (2, "full", 2, N, 16, 16)],
    "kimi_linear": [(0, "latent", 1, N, 24, 8), (2, "latent", 1, N, 24, 8)],
    "bailing": [(0, "latent", 1, N, 24, 8), (2, "latent", 1, N, 24, 8)],
    **{name: [(i, "latent", 1, N, 24, 8) for i in range(2)] for name in families.INDEXED},
    "qwen4": [(0, "full", 2, N, 16, 16), (2, "full", 2, N, 16, 16)],
    "minimax_m3": [(0, "full", 2, N, 16, 16), (1, "full", 2, N, 16, 16)],
    "deepseek_v4": [(i, "sliding", 1, 15, 16, 16) for i in range(3)],
}


@every_family
def test_prefill_takes_out_every_layer_that_holds_keys_and_values(name):
    cache = prefill(families.loaded(name), families.token_ids(N)).cache
    shapes = [(x.index, x.kind, *x.keys.shape, x.values.shape[-1]) for x in cache.layers]
    assert shapes == EXPECTED[name]
    for layer in cache.layers:
        assert layer.positions.tolist() == list(range(N - layer.n_tokens, N))


@every_family
def test_generation_continues_as_the_models_own_greedy_search(name):
    loaded, ids = families.loaded(name), families.token_ids(N)
    cache = generate(loaded, prefill(loaded, ids), NEW)
    assert cache.n_tokens == N + NEW and cache.n_prompt == N
    assert torch.equal(cache.token_ids[:N], ids)
    forced = ids
    with torch.no_grad():
        for _ in range(NEW):  # no cache at all: every step anew
            logits = loaded.model(forced[None], use_cache=False).logits[0, -1]
            forced = torch.cat([forced, logits.argmax()[None]])
    assert torch.equal(cache.token_ids, forced)


@every_family
def test_a_generated_cache_is_the_one_that_a_prefill_of_the_whole_makes(name):
    loaded = families.loaded(name)
    grown = generate(loaded, prefill(loaded, families.token_ids(N)), NEW)
    at_once = prefill(families.loaded(name), grown.token_ids).cache
    for a, b in zip(grown.layers, at_once.layers, strict=True):
        assert torch.equal(a.positions, b.positions) and a.kind == b.kind
        torch.testing.assert_close(a.keys, b.keys, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(a.values, b.values, atol=1e-4, rtol=1e-3)


def test_generation_does_not_reach_into_the_prefill_before_it():
    loaded = families.loaded("llama_gqa")
    start = prefill(loaded, families.token_ids(N))
    kept = [layer.keys.clone() for layer in start.cache.layers]
    cache = generate(loaded, start, NEW)
    early = cache.before(N)
    for before, after, slice_ in zip(kept, start.cache.layers, early.layers, strict=True):
        assert torch.equal(before, after.keys)
        assert torch.equal(before, slice_.keys)  # decoding never changes past entries


def test_prefill_asks_for_the_last_logits_only():
    loaded = families.fresh("llama_gqa")
    asked = []
    forward = loaded.model.forward

    def spy(input_ids, *args, logits_to_keep=0, **kwargs):
        asked.append((input_ids.shape[1], logits_to_keep))
        return forward(input_ids, *args, logits_to_keep=logits_to_keep, **kwargs)

    loaded.model.forward = spy
    prefill(loaded, families.token_ids(N))
    assert asked[0] == (N, 1) and all(n < 16 for n, _ in asked[1:])  # of trials of the model


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("mamba", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}),
        ("rwkv", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}),
        ("kimi_linear", {**families.SETTINGS["llama_gqa"][1]}),  # linear attention alone
    ],
)
def test_a_model_without_keys_and_values_is_refused(model_type, settings):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    with pytest.raises(UsageError, match=r"keeps no keys and values.*fixed-size state"):
        prefill(LoadedModel(model, families.tokenizer(), model_type, ""), families.token_ids(8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_with_the_layer(value):
    loaded = families.fresh("llama_gqa")
    loaded.model.model.layers[1].self_attn.v_proj.weight.data[3] = value
    with pytest.raises(UsageError, match=r"values of layer 1 .* hold NaN or Inf in float32"):
        prefill(loaded, families.token_ids(8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_in_the_head_are_refused_naming_the_logits(value):
    loaded = families.fresh("llama_gqa")
    start = prefill(loaded, families.token_ids(8))
    loaded.model.lm_head.weight.data[3] = value
    for go in (
        lambda: prefill(loaded, families.token_ids(8)),
        lambda: generate(loaded, start, 2),
        lambda: greedy(loaded, start.past, 8, 5, 2),
    ):
        with pytest.raises(UsageError, match=r"logits of llama_gqa hold NaN or Inf in float32"):
            go()


def test_a_model_that_cannot_be_run_is_one_sentence_with_its_cause():
    loaded = LoadedModel(
        families.model("falcon", {"hidden_dropout": 5.0}), families.tokenizer(), "falcon", ""
    )
    with pytest.raises(UsageError, match=r"falcon cannot be run \(ValueError: dropout") as refusal:
        prefill(loaded, families.token_ids(8))
    assert isinstance(refusal.value.__cause__, ValueError)


def test_a_fault_of_ours_while_a_model_runs_is_not_called_its_own(monkeypatch):
    monkeypatch.setattr("data.probe.softmax_sums", None)
    with pytest.raises(TypeError):
        prefill(families.loaded("llama_gqa"), families.token_ids(8), probe=True)


def test_a_vocabulary_that_is_partly_masked_is_none_of_that():
    loaded = families.loaded("llama_gqa")
    logits = torch.tensor([[[1.0, -torch.inf, 3.0]]])
    assert loaded.likeliest(logits).tolist() == [[2]]


def test_token_ids_beyond_the_vocabulary_are_refused_with_both_numbers():
    loaded = families.loaded("llama_gqa")
    other = dataclasses.replace(loaded, tokenizer=lambda text, **_: {"input_ids": [1, 305]})
    says = r"Token id 305 is beyond the vocabulary of llama_gqa, ids 0 to 299"
    for read in (
        lambda: tokenise(other, sample("x")),
        lambda: long_enough(other, [sample("x")], 1, 1, 1, "continuation"),
        lambda: long_enough(other, [sample("x")], 1, 1, 1),
        lambda: windows(other, "text"),
        lambda: greedy(loaded, prefill(loaded, families.token_ids(8)).past, 8, 305, 1),
    ):
        with pytest.raises(UsageError, match=says):
            read()


def test_a_text_that_the_tokenizer_cannot_read_is_one_sentence():
    raw = Tokenizer(WordLevel({"a": 0}, unk_token="[UNK]"))  # which it does not have
    broken = PreTrainedTokenizerFast(tokenizer_object=raw)
    loaded = dataclasses.replace(families.loaded("llama_gqa"), tokenizer=broken)
    with pytest.raises(UsageError, match=r"tokenizer of llama_gqa cannot read the text"):
        tokenise(loaded, sample("x"))


def test_of_a_long_text_no_more_is_read_than_is_needed():
    loaded = families.loaded("llama_gqa")
    read = []

    def counting(text, **_):
        read.append(len(text))
        return {"input_ids": list(text.encode())}

    counted = dataclasses.replace(loaded, tokenizer=counting)
    long = sample("a long text " * 2_000_000)
    assert len(tokenise(counted, long, 64)) == 64
    with pytest.raises(UsageError, match="beyond the 256 positions"):
        tokenise(counted, long)
    with pytest.raises(UsageError, match="beyond the 256 positions"):
        tokenise(counted, long, 10**9)
    assert len(long_enough(counted, [long], 50, 5, 1)[0][1]) == 56
    assert sum(read) < 50_000


def test_attention_is_where_the_keys_are():
    """On an accelerator the probe's sums are elsewhere; `meta` stands for one here."""
    here = caches.mixed().layers
    there = tuple(
        dataclasses.replace(x, keys=x.keys.to("meta"), values=x.values.to("meta")) for x in here
    )
    full = {x.index: torch.rand(x.n_heads, 10) for x in here}
    probe = SimpleNamespace(received=lambda keys: {i: (full[i], None) for i in keys})
    for layer in _with_attention(probe, there):
        assert layer.attention.device == layer.keys.device == torch.device("meta")
        assert layer.attention.shape == layer.keys.shape[:2] and layer.recent_attention is None
    for layer in _with_attention(probe, here):
        assert torch.equal(layer.attention, full[layer.index][:, layer.positions])


def sample(text: str) -> Sample:
    return Sample(0, "title", "source", text)


def test_a_text_is_truncated_to_the_sequence_length():
    ids = tokenise(families.loaded("llama_gqa"), sample("x" * 100), 30, 5)
    assert len(ids) == 30


def test_a_shorter_text_is_used_whole_and_says_so(caplog):
    ids = tokenise(families.loaded("llama_gqa"), sample("x" * 20), 30, 5)
    assert len(ids) == 20
    assert "20 tokens, fewer than `sequence_length` 30" in caplog.text


def test_a_text_beyond_the_models_positions_is_refused_with_the_limit():
    loaded = families.loaded("llama_gqa")  # 256 positions
    assert len(tokenise(loaded, sample("x" * 251), None, 5)) == 251
    with pytest.raises(UsageError, match=r"beyond the 256 positions .* `sequence_length` 251"):
        tokenise(loaded, sample("x" * 252), None, 5)


def test_a_model_without_a_limit_takes_any_length():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bloom", vocab_size=300, hidden_size=32, n_layer=1, n_head=2)
    )
    loaded = LoadedModel(model.eval(), families.tokenizer(), "bloom", "")
    assert loaded.max_positions is None
    assert len(tokenise(loaded, sample("x" * 5000), None, 0)) == 5000


def test_a_text_without_tokens_is_refused():
    loaded = families.loaded("llama_gqa")
    silent = dataclasses.replace(loaded, tokenizer=lambda text, **_: {"input_ids": []})
    with pytest.raises(UsageError, match="has no tokens"):
        tokenise(silent, sample(" "), 10, 5)


def test_the_shortest_text_goes_through():
    loaded = families.loaded("llama_gqa")
    start = prefill(loaded, families.token_ids(1), probe=True)
    assert start.cache.layers[0].attention.tolist() == [[1.0], [1.0]]  # it can only look at itself
    assert generate(loaded, start, 1).n_tokens == 2
