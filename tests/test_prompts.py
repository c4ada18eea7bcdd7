"""Prompts whose compressed cache is kept in a file, and gone on from."""

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from compression import files, prompts, sealed
from compression.stored import nbytes
from config import UsageError
from data import extraction, self_test
from data.models import load
from data.own_cache import states_of
from data.resume import as_past, greedy
from data.scoring import filled
from data.texts import Sample, printable
from tests import families

TEXT = "The cache of a model holds keys and values. "


def generated(folder, text: str, n: int) -> str:
    """What the model itself says after a text."""
    loaded = load(str(folder), device="cpu")
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    usual = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        found = loaded.model.generate(ids, max_new_tokens=n, **usual)[0, ids.shape[1] :]
    return printable(loaded.tokenizer.decode(found))


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "mistral", "gemma4"])
@pytest.mark.parametrize("text", [TEXT * 2, "Quite another text, of other words."])
def test_a_stored_prompt_goes_on_as_the_prompt_itself_would(
    mode, stored, folder_of, capsys, name, text
):
    folder = folder_of(name)
    file = stored(text, "--model", folder)
    assert "1.00 x smaller" in capsys.readouterr().out
    assert mode("store", "--load_compressed", file, "--new_tokens", "24", "--model", folder) == 0
    assert capsys.readouterr().out == generated(folder, text, 24) + "\n"


def test_the_model_says_other_things_after_other_texts(tiny_model):  # or the law above says little
    assert generated(tiny_model, TEXT, 24) != generated(tiny_model, TEXT[:-9], 24)


def test_a_quiet_run_prints_only_what_the_model_says(mode, stored, tiny_model, capsys):
    file = stored(TEXT, "--quiet")
    assert capsys.readouterr().out == ""
    assert mode("store", "--load_compressed", file, "--new_tokens", "3", "--quiet") == 0
    assert capsys.readouterr().out == generated(tiny_model, TEXT, 3) + "\n"


def test_a_damaged_prompt_is_refused(mode, stored, capsys):
    file = Path(stored(TEXT))
    file.write_bytes(file.read_bytes()[:-1])
    assert mode("store", "--load_compressed", str(file)) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_prompt_of_another_model_is_refused(mode, stored, folder_of, capsys):
    file = stored("abc")
    assert mode("store", "--load_compressed", file, "--model", folder_of("gpt2")) == 2
    assert "was made with tiny-llama" in capsys.readouterr().err
    file = stored("abc", "--model", folder_of("llama_gqa"))
    assert mode("store", "--load_compressed", file, "--model", folder_of("mistral")) == 2
    assert "was made with llama_gqa" in capsys.readouterr().err  # whose weights are the same


def test_a_prompt_of_a_method_that_is_not_known_is_refused(mode, stored, capsys):
    file = Path(stored(TEXT))
    tensors, header = sealed.read(file)
    sealed.write(file, tensors, header | {"method": "zip"})
    with pytest.raises(UsageError, match=r"cannot be restored \(The method zip is not known\)"):
        files.load(file)
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file)) == 2
    assert "The method zip is not known" in capsys.readouterr().err


def test_a_pipe_and_a_folder_are_not_waited_for(mode, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.kv")
    for file in (tmp_path / "pipe.kv", tmp_path):
        assert mode("store", "--load_compressed", str(file)) == 2
        assert "is no file: give one that --save_compressed has written" in capsys.readouterr().err


WITH_STATES = ["falcon_h1", "qwen3_next", "bamba", "deepseek_v32", "deepseek_v4"]
WITH_STATES += families.KEEPS_MORE


@pytest.mark.parametrize("name", WITH_STATES)
@torch.no_grad()
def test_states_are_stored_as_they_are_and_gone_on_from(mode, stored, folder_of, capsys, name):
    folder = folder_of(name)
    file = stored(TEXT * 2, "--model", folder)
    said = capsys.readouterr().out
    loaded = load(folder, device="cpu")
    ids = loaded.ids_of(TEXT * 2)
    own = extraction.prefill(loaded, ids[:-1])
    kept = states_of(own.past)
    back = files.load(file)
    assert back.states.keys() == kept.keys()
    assert all(torch.equal(back.states[path], x) for path, x in kept.items())
    assert f"with {nbytes(kept):,} bytes of states beside them as they are, in {file}" in said
    assert mode("store", "--load_compressed", file, "--new_tokens", "12", "--model", folder) == 0
    goes_on = capsys.readouterr().out
    past = filled(own.past, own.cache.in_16_bits(), loaded.torch_dtype)
    resumed = as_past(loaded, back.restore(), back.states)
    fed = ids[None, -1:]
    ours, uninterrupted = (
        loaded.model(fed, past_key_values=p, use_cache=True).logits
        for p in (resumed, copy.deepcopy(past))
    )
    assert torch.equal(ours, uninterrupted)
    expected = greedy(loaded, past, len(ids) - 1, int(ids[-1]), 12)
    assert goes_on == printable(loaded.tokenizer.decode(expected)) + "\n"


def test_what_grows_in_a_way_that_is_not_known_is_not_stored(tmp_path, monkeypatch):
    loaded = families.loaded("llama_gqa")
    really = extraction.prefill

    def with_squares(loaded, ids, **named):
        start = really(loaded, ids, **named)
        start.past.layers[0].pairs = torch.zeros(len(ids) ** 2)
        return start

    monkeypatch.setattr(extraction, "prefill", with_squares)
    text = Sample(0, "a", "prompt", TEXT)
    with pytest.raises(UsageError, match="not known how it grows with the text"):
        prompts.save(loaded, text, str(tmp_path / "a.kv"), ["none"])
    assert not any(tmp_path.iterdir())


def test_states_that_are_not_finite_are_not_stored(tmp_path, monkeypatch):
    loaded = families.fresh("deepseek_v32")
    monkeypatch.setattr(self_test, "_tried", {loaded.model})  # which would find out before
    with torch.no_grad():
        loaded.model.model.layers[1].self_attn.indexer.wk.weight.fill_(torch.nan)
    text = Sample(0, "a", "prompt", TEXT[:6])  # all of which is seen, so the rest is right
    with pytest.raises(UsageError, match="hold NaN or Inf in float32"):
        prompts.save(loaded, text, str(tmp_path / "a.kv"), ["none"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama_gqa", "opt"])
def test_generation_ends_with_the_models_positions(mode, stored, folder_of, capsys, name):
    folder = folder_of(name)
    file = stored("a" * 200, "--model", folder)
    go_on = ["--load_compressed", file, "--model", folder, "--new_tokens"]
    assert mode("store", *go_on, "56") == 0
    assert mode("store", *go_on, "57") == 2
    said = capsys.readouterr().err
    assert "A stored prompt of 200 tokens and --new_tokens 57 are beyond the 256 positions" in said


@pytest.mark.parametrize(("method", "plain"), [("kivi", 64), ("rotated-3", 68)])
def test_a_method_that_had_nothing_to_compress_says_so(mode, tmp_path, capsys, method, plain):
    flags = ["--save_compressed", str(tmp_path / "x.kv"), "--methods", method]
    idle = f"All of it is within the {plain} tokens"
    assert mode("store", *flags, "--prompt", "a" * (plain + 1)) == 0
    assert idle in capsys.readouterr().out
    assert mode("store", *flags, "--prompt", "a" * (plain + 2)) == 0
    assert idle not in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_disk_that_fills_up_is_told_and_leaves_nothing(
    mode, tmp_path, monkeypatch, capsys, error
):
    def full(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise error("no space left")

    monkeypatch.setattr(sealed, "save_file", full)
    where = tmp_path / "kept"
    where.mkdir()
    flags = ["--save_compressed", str(where / "x.kv"), "--prompt", TEXT, "--methods", "int8"]
    assert mode("store", *flags) == 2
    said = capsys.readouterr().err
    assert "--save_compressed" in said and "cannot be written (" in said and "no space left" in said
    assert list(where.iterdir()) == []


SAVE = ["--save_compressed", "x.kv"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of --save_compressed FILE, --save_cache FILE and --load_compressed FILE"),
        (
            [*SAVE, "--save_cache", "x.cache"],
            "give one of --save_compressed FILE, --save_cache FILE and --load_compressed FILE",
        ),
        (["--load_compressed", "x.kv", "--save_cache", "x.cache"], "or the first and the last"),
        ([*SAVE, "--methods", "zip"], "zip of --methods is not known: take one of"),
        ([*SAVE, "--methods", "kivi-4,coded"], "kivi-4, coded were given"),
        ([*SAVE, "--methods", "snapkv"], "snapkv evicts tokens"),
        ([*SAVE, "--methods", "recent 0.5"], "recent 0.5 evicts tokens"),
        ([*SAVE, "--methods", "composed"], "composed evicts tokens"),
        (["--save_compressed", ""], "is empty: it takes a file"),
        (["--save_compressed", "."], "is no file: give a name"),
        (["--save_compressed", "/"], "is no file: give a name"),
        (["--save_compressed", "/dev/null"], "is no file: give a name"),
        (["--save_compressed", "nowhere/x.kv"], "cannot be written (No such file or directory)"),
        (["--save_compressed", "x" * 250], "cannot be written (File name too long)"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(
    mode, monkeypatch, tmp_path, capsys, arguments, says
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data.models.load", lambda **given: pytest.fail("the model was loaded"))
    assert mode("store", *arguments) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_of_one_token_and_a_file_that_is_not_there_are_refused(mode, tmp_path, capsys):
    flags = ["--save_compressed", str(tmp_path / "x.kv"), "--methods", "none"]
    assert mode("store", *flags, "--prompt", "a") == 2
    assert "of one token" in capsys.readouterr().err
    assert mode("store", "--load_compressed", str(tmp_path / "nowhere.kv")) == 2
    assert "is no file: give one that" in capsys.readouterr().err


def test_numbers_beyond_16_bits_are_not_stored(tmp_path):
    loaded = families.fresh("llama_gqa")
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.v_proj.weight.mul_(1e8)
    text = Sample(0, "a", "prompt", TEXT)
    with pytest.raises(UsageError, match=r"values of layer 0 .* hold NaN or Inf in 16 bits"):
        prompts.save(loaded, text, str(tmp_path / "a.kv"), ["int8"])
    assert not any(tmp_path.iterdir())
