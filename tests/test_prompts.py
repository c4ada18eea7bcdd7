"""Prompts whose compressed cache is kept in a file, and gone on from."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from compression import files, prompts, sealed
from config import UsageError
from data.models import load
from data.texts import printable

TEXT = "The cache of a model holds keys and values. "


def generated(folder, text: str, n: int) -> str:
    """What the model itself says after a text."""
    loaded = load(str(folder), device="cpu")
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    usual = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        found = loaded.model.generate(ids, max_new_tokens=n, **usual)[0, ids.shape[1] :]
    return printable(loaded.tokenizer.decode(found))


@pytest.fixture
def stored(mode, tmp_path):
    """Stores a text as `none`, on the tiny model unless another is named; the file."""

    def store(text: str, *flags: str) -> str:
        file = str(tmp_path / "prompt.kv")
        as_none = ["--methods", "none", "--save_compressed", file, "--prompt", text]
        assert mode("store", *as_none, *flags) == 0
        return file

    return store


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


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_next"])
def test_a_model_with_a_state_beside_its_cache_is_refused_before_it_is_calibrated(
    mode, folder_of, monkeypatch, tmp_path, capsys, name
):
    monkeypatch.setattr(prompts, "calibration_of", lambda *_: pytest.fail("it was calibrated"))
    flags = ["--save_compressed", str(tmp_path / "x.kv"), "--prompt", TEXT, "--methods", "coded"]
    assert mode("store", *flags, "--model", folder_of(name)) == 2
    assert f"{name} keeps more than keys and values" in capsys.readouterr().err
    assert not (tmp_path / "x.kv").exists()


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
        ([], "give one of --save_compressed FILE and --load_compressed FILE"),
        ([*SAVE, "--load_compressed", "x.kv"], "give one of --save_compressed FILE and"),
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
    assert "cannot be read as a compressed cache" in capsys.readouterr().err
