import errno
import json
import os
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
from data import default_model, hub, model_files, models, sources
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
    with pytest.raises(UsageError, match=r"k_proj|has weights of other shapes"):
        models.load(str(folder), device="cpu")


def test_tied_weights_are_not_missing(tmp_path):
    families.save(families.model("gemma2"), tmp_path / "tied")  # its head is its embedding
    assert models.load(str(tmp_path / "tied"), device="cpu").name == "tied"


@pytest.mark.parametrize("name", ["~nobody-here/model", "x" * 5000, "a/b/c", ""])
def test_a_name_that_is_no_path_either_is_one_sentence(name):
    with pytest.raises(UsageError, match="`model`"):
        models.load(name, device="cpu")


NONSENSE = [
    {"hidden_size": "wide"},
    {"hidden_size": -64},
    {"hidden_size": 10**9},
    {"num_attention_heads": 0},
    {"num_hidden_layers": -2},
    {"num_hidden_layers": 10**9},
    {"vocab_size": 0},
    {"vocab_size": 10**12},
    {"model_type": "no such model"},
    {"model_type": ["llama"]},
    {"layer_types": ["odd"]},
    {"rope_parameters": {"rope_type": "odd"}},
    {"dtype": "float99"},
]


@pytest.mark.parametrize("settings", NONSENSE, ids=str)
def test_nonsense_in_a_models_settings_is_one_sentence(tiny_model, tmp_path, settings):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_model, folder)
    original = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(original | settings))
    with pytest.raises(
        UsageError, match=r"`model` .*odd (cannot be|has (-?\d+ layers|weights of)|lacks)"
    ):
        models.load(str(folder), device="cpu")


def _damage(folder, kind):
    weights, settings = folder / "model.safetensors", folder / "config.json"
    content = weights.read_bytes()
    if kind == "cut":
        weights.write_bytes(content[:-1000])
    elif kind == "cut header":
        weights.write_bytes(content[:100])
    elif kind == "empty weights":
        weights.write_bytes(b"")
    elif kind == "no header":
        weights.write_bytes(content[:8] + b"x" * (len(content) - 8))
    elif kind == "a folder":
        weights.unlink()
        weights.mkdir()
    elif kind == "a pipe":
        weights.unlink()
        os.mkfifo(weights)
    elif kind in ("missing shard", "no map"):
        weights.unlink()
        shards = {"weight_map": {"x": "model-1-of-1.safetensors"}} if kind != "no map" else {}
        (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    elif kind == "a list":
        settings.write_text("[1, 2]")
    elif kind == "deep":
        settings.write_text("[" * 100_000)
    elif kind == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif kind == "no tokenizer":
        (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cut", r"\(model.safetensors has \d+ bytes of weights, and its header \d+\)"),
        ("cut header", r"\(model.safetensors is cut short or no safetensors file\)"),
        ("empty weights", r"\(model.safetensors is empty\)"),
        ("no header", r"\(the header of model.safetensors is damaged\)"),
        ("a folder", r"\(model.safetensors: Is a directory\)"),
        ("a pipe", "holds model.safetensors, which is no file but a pipe"),
        ("missing shard", r"\(model-1-of-1.safetensors is missing, which model.safetensors.index"),
        ("no map", r"\(model.safetensors.index.json has no weight_map\)"),
        ("a list", r"\(config.json holds no JSON object\)"),
        ("deep", r"\(config.json is not JSON\)"),
        ("tokenizer", r"\(tokenizer.json is not JSON\)"),
        ("no tokenizer", r"\(it holds no tokenizer, such as tokenizer.json\)"),
    ],
)
def test_what_is_wrong_with_which_file_is_said(tiny_model, tmp_path, kind, says):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    _damage(folder, kind)
    with pytest.raises(UsageError, match=says) as refusal:
        models.load(str(folder), device="cpu")
    assert "found" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_files_that_may_not_be_read_are_not_missing(tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "closed"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"

    opened = type(weights).open

    def closed(self, *args, **kw):  # who runs the tests may read everything
        if self == weights:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *args, **kw)

    monkeypatch.setattr(type(weights), "open", closed)
    says = model_files.what_is_wrong(folder)
    assert says == "model.safetensors: Permission denied"


@pytest.mark.parametrize(
    "content", [b"", b"no GGUF at all", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 90]
)
def test_a_damaged_gguf_file_is_one_sentence(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UsageError, match=r"`model` .*model.gguf cannot be loaded \("):
        models.load(str(tmp_path / "model.gguf"), device="cpu")


@pytest.mark.parametrize(
    "lack",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        KeyboardInterrupt(),
        KeyError("of ours"),
    ],
    ids=["memory", "accelerator", "cpu", "Ctrl-C", "ours"],
)
def test_what_is_not_the_models_fault_passes_as_it_is(tiny_model, monkeypatch, lack):
    def failing(**_):
        raise lack

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", failing)
    with pytest.raises(type(lack)) as raised:
        models.load(str(tiny_model), device="cpu")
    assert raised.value is lack


def test_what_was_raised_is_kept_as_the_cause(tiny_model, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_model, folder)
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(UsageError) as refusal:
        models.load(str(folder), device="cpu")
    cause = refusal.value.__cause__
    assert cause is not None and type(cause).__name__ in str(refusal.value)


def test_the_name_of_a_model_cannot_leave_its_line_or_move_the_cursor(tiny_model, tmp_path):
    folder = tmp_path / "a b\x1b[2J\n\u202e"
    shutil.copytree(tiny_model, folder)
    assert models.load(str(folder), device="cpu").name == "a b\\x1b[2J\\n\\u202e"


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
    with pytest.raises(UsageError, match="`model` not even/a/model name does not exist"):
        sources.tokenizer_file("not even/a/model name")
