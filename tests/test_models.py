import json
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

import config
from config import UsageError
from data import default_model, hub, models, sources
from tests import families


def test_a_local_folder_is_loaded_as_it_is_in_float32_and_named_after_it(tiny_model):
    loaded = models.load(str(tiny_model), device="cpu")
    assert (loaded.name, loaded.dtype, str(loaded.device)) == ("tiny-llama", "float32", "cpu")
    assert loaded.max_positions == 256
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    original = families.model("llama_gqa").state_dict()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, original[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_that_was_asked_for_is_the_one_in_use(tiny_model, dtype):
    assert models.load(str(tiny_model), device="cpu", dtype=dtype).dtype == dtype


def test_devices_and_dtypes_of_auto():
    cpu = torch.device("cpu")
    assert models.pick_dtype("auto", cpu) == torch.float32
    assert models.pick_dtype("auto", torch.device("cuda")) == "auto"
    assert models.pick_dtype("float16", cpu) == torch.float16
    assert models.pick_device("cpu") == cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_missing_is_refused():
    with pytest.raises(UsageError, match=r"`device` cuda is not available .* it has .*cpu"):
        models.pick_device("cuda")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/folder", "does not exist"),
        ("./nowhere", "does not exist"),
        ("missing.gguf", "does not exist"),
        ("owner/no-such-model-here", "was not found in the local cache, and the hub is out of"),
        ("no-such-model-here", "was not found in the local cache, and the hub is out of"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused(name, says):
    hub.reachable.cache_clear()
    with pytest.raises(UsageError, match=says):
        models.load(name, device="cpu")


def test_a_model_is_refused_soon_when_the_hub_never_answers(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(config, "HUB_PATIENCE_S", 0.3)
    hub.reachable.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UsageError, match="the hub is out of reach"):
            models.load("owner/model", device="cpu")
    hub.reachable.cache_clear()
    assert time.monotonic() - began < 5


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"neither a \.gguf file nor a folder with a config"):
        models.load(str(tmp_path), device="cpu")


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path):
    settings = {"model_type": "t5", "vocab_size": 300, "is_encoder_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"is an encoder-decoder .* give a decoder-only"):
        models.load(str(tmp_path), device="cpu")


def test_a_model_that_continues_no_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    families.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is no causal language model"):
        models.load(str(tmp_path), device="cpu")


def test_a_model_with_code_of_its_own_needs_the_flag(tmp_path):
    settings = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "odd.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(UsageError, match="pass `trust_remote_code` if you trust it"):
        models.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("damage", ["cut", "no weights", "no tokenizer", "no json"])
def test_a_damaged_folder_is_refused_in_a_sentence(tiny_model, tmp_path, damage):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"`model` .*broken cannot be loaded \(") as refusal:
        models.load(str(folder), device="cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["dropped", "renamed", "reshaped"])
def test_weights_that_are_missing_are_not_made_up(tiny_model, tmp_path, damage):
    folder = tmp_path / "incomplete"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensor = weights.pop(name)
    if damage != "dropped":
        weights["x." + name if damage == "renamed" else name] = tensor[:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"k_proj|ignore_mismatched_sizes|cannot be loaded"):
        models.load(str(folder), device="cpu")


def test_tied_weights_are_not_missing(tmp_path):
    families.save(families.model("gemma2"), tmp_path / "tied")  # its head is its embedding
    assert models.load(str(tmp_path / "tied"), device="cpu").name == "tied"


@pytest.mark.parametrize("name", ["~nobody-here/model", "x" * 5000, "a/b/c", ""])
def test_a_name_that_is_no_path_either_is_one_sentence(name):
    with pytest.raises(UsageError, match="`model`"):
        models.load(name, device="cpu")


@pytest.mark.parametrize("settings", [{"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_nonsense_in_a_models_settings_is_one_sentence(tiny_model, tmp_path, settings):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_model, folder)
    original = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(original | settings))
    with pytest.raises(UsageError, match=r"`model` .*odd cannot be loaded"):
        models.load(str(folder), device="cpu")


class Failing(BaseHTTPRequestHandler):
    """A hub that answers every question with 503."""

    def do_GET(self):
        self.send_error(503)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_hub_that_fails_is_out_of_reach(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.reachable.cache_clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert hub.within(5, lambda: pytest.fail("asked it")) is None
    server.shutdown()
    server.server_close()
    hub.reachable.cache_clear()


def test_what_takes_too_long_or_fails_at_the_hub_is_no_answer(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: True)
    assert hub.within(0.1, lambda: time.sleep(5)) is None
    assert hub.within(5, lambda: 1 / 0) is None
    assert hub.within(5, lambda: "answer") == "answer"


def test_pickled_weights_are_not_read(tiny_model, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(families.model("llama_gqa").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"cannot be loaded .*safetensors"):
        models.load(str(folder), device="cpu")


def test_the_tokenizer_is_found_without_loading_anything(tiny_model, tmp_path, monkeypatch):
    assert sources.tokenizer_file(str(tiny_model)) == tiny_model / "tokenizer.json"
    monkeypatch.setenv("KV_CACHE_HOME", str(tmp_path))
    assert sources.tokenizer_file(default_model.NAME) is None
    assert sources.tokenizer_file("owner/not-downloaded") is None
    assert sources.tokenizer_file("not even/a/model name") is None
