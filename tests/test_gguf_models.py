"""GGUF files: what is converted once is what would be read each time."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import gguf_models, models
from tests import families

DIM, HEADS, KV_HEADS, HIDDEN, LAYERS = 32, 4, 2, 64, 2


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiny Llama in a GGUF file, its norms in numbers that bfloat16 holds."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    vocabulary = families.tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokens.append(tokens[0] + tokens[1])  # of a merge, without which it is no BPE
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)

    def tensor(name, *shape):
        writer.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))

    tensor("token_embd.weight", len(tokens), DIM)
    tensor("output.weight", len(tokens), DIM)
    writer.add_tensor("output_norm.weight", np.ones(DIM, np.float32))
    kv = DIM * KV_HEADS // HEADS
    for i in range(LAYERS):
        for name, *shape in (
            ("attn_q", DIM, DIM), ("attn_k", kv, DIM), ("attn_v", kv, DIM),
            ("attn_output", DIM, DIM), ("ffn_gate", HIDDEN, DIM), ("ffn_up", HIDDEN, DIM),
            ("ffn_down", DIM, HIDDEN),
        ):  # fmt: skip
            tensor(f"blk.{i}.{name}.weight", *shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.full(DIM, 1.5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def directly(file):
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    return AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32), source


def test_what_is_kept_is_what_would_be_read(file, empty_cache, caplog):
    loaded = models.load(str(file), device="cpu")
    assert loaded.name == "tiny (GGUF, dequantised)" and "Converting tiny.gguf" in caplog.text
    read, source = directly(file)
    weights = loaded.model.state_dict()
    assert weights.keys() == read.state_dict().keys()
    assert all(torch.equal(weights[name], x) for name, x in read.state_dict().items())
    ids = families.token_ids(20)[None]
    assert torch.equal(loaded.model(ids).logits, read.eval()(ids).logits)
    text = "A text, read by both."
    assert (
        loaded.ids_of(text).tolist() == AutoTokenizer.from_pretrained(**source)(text)["input_ids"]
    )


def test_a_file_is_converted_once_whatever_it_is_called(file, empty_cache, caplog, tmp_path):
    first = models.load(str(file), device="cpu")
    caplog.clear()
    copy = tmp_path / "other.gguf"
    copy.write_bytes(file.read_bytes())
    again = models.load(str(copy), device="cpu")
    assert again.identity == first.identity and not caplog.text
    assert again.name == "other (GGUF, dequantised)" and len(list(empty_cache.rglob("*.json"))) >= 1
    copy.write_bytes(file.read_bytes() + b"\0")
    assert gguf_models.folder_of(copy) != gguf_models.folder_of(file)


def test_bfloat16_is_taken_where_it_loses_nothing(file, empty_cache):
    from safetensors import safe_open

    made = gguf_models.kept(file)
    with safe_open(made / "model.safetensors", framework="pt") as opened:
        dtypes = {name: opened.get_tensor(name).dtype for name in opened.keys()}  # noqa: SIM118
    norms = {name for name in dtypes if "norm" in name}
    assert len(norms) == 2 * LAYERS + 1
    assert all((dtypes[n] == torch.bfloat16) == (n in norms) for n in dtypes)


def test_a_damaged_folder_is_made_anew(file, empty_cache, caplog):
    made = gguf_models.kept(file)
    weights = made / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    caplog.clear()
    assert gguf_models.kept(file) == made and "Converting" in caplog.text
    assert weights.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_only_time(file, empty_cache, caplog):
    empty_cache.write_text("a file stands where the folder is due")
    loaded = models.load(str(file), device="cpu")
    assert "is not kept" in caplog.text
    ids = families.token_ids(20)[None]
    assert torch.equal(loaded.model(ids).logits, directly(file)[0].eval()(ids).logits)
