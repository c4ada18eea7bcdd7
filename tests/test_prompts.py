"""Prompts whose compressed cache is kept in a file, and gone on from."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from compression import files, prompts, sealed
from compression.stored import nbytes
from config import UsageError
from data import extraction
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


def within(part, change):
    """A change of what a part of the header holds as JSON."""

    def changed(tensors, header):
        tree = json.loads(header[part])
        change(tree)
        return tensors, header | {part: json.dumps(tree)}

    return changed


def fewer_layers(tensors, header):
    kept = {name: x for name, x in tensors.items() if name.startswith("0.")}
    return within("shape", lambda tree: tree["layers"].pop())(kept, header)


def fewer_tokens(tensors, header):
    """Of one layer only, which the model would not go on from."""
    _, header = within("shape", lambda tree: tree["layers"][0].update(n_tokens=3))(tensors, header)
    short = {name: x[:, :3].clone() for name, x in tensors.items() if name.startswith("0.")}
    return tensors | short, header


def two_heads_as_one(tensors, header):
    def wider(tree):
        for layer in tree["layers"]:
            layer |= {"n_heads": 1, "key_dim": 2 * layer["key_dim"]}
            layer |= {"value_dim": 2 * layer["value_dim"]}

    joined = {name: x.view(1, x.shape[1], -1) for name, x in tensors.items()}
    return within("shape", wider)(joined, header)


HOSTILE = {
    "no last token": within("facts", lambda tree: tree.pop("last")),
    "no count": within("facts", lambda tree: tree.pop("cached")),
    "another count": within("facts", lambda tree: tree.update(cached="3")),
    "no number": within("facts", lambda tree: tree.update(cached="many")),
    "beyond the vocabulary": within("facts", lambda tree: tree.update(last="300")),
    "below it": within("facts", lambda tree: tree.update(last="-1")),
    "a number without end": within("facts", lambda tree: tree.update(last="9" * 5000)),
    "fewer layers": fewer_layers,
    "fewer tokens": fewer_tokens,
    "two heads as one": two_heads_as_one,
    "another kind": within("shape", lambda tree: tree["layers"][0].update(kind="sliding")),
    "more tokens": within("shape", lambda tree: tree["token_ids"].append(1)),
    "tokens without end": within("shape", lambda tree: tree["layers"][0].update(n_tokens=10**9)),
    "no token": within("shape", lambda tree: tree["token_ids"].insert(0, -1)),
    "no settings": lambda tensors, header: (tensors, header | {"settings": "[]"}),
    "nested without end": lambda tensors, header: (tensors, header | {"shape": "[" * 10**5}),
    "NaN": lambda tensors, header: (tensors | {"0.key": tensors["0.key"] * torch.nan}, header),
    "a tensor more": lambda tensors, header: (tensors | {"more": torch.zeros(1)}, header),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_sealed_prompt_that_is_none_of_the_models_is_refused_in_a_sentence(
    mode, stored, capsys, change
):
    file = Path(stored(TEXT))
    sealed.write(file, *change(*sealed.read(file)))
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file)) == 2
    said = capsys.readouterr()
    assert "is damaged, of an older version or no compressed cache (" in said.err
    assert str(file) in said.err and said.out == ""
    assert len(said.err.strip().splitlines()) == 1 and len(said.err) < 600


def test_names_of_a_file_reach_no_terminal_raw(mode, stored, capsys):
    file = Path(stored(TEXT))
    change = within("facts", lambda tree: tree.update(model="x", model_name="\x1b[31m" * 99))
    sealed.write(file, *change(*sealed.read(file)))
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file)) == 2
    said = capsys.readouterr().err
    assert "was made with" in said and "\x1b" not in said and len(said) < 600


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


def of_a_state(change):
    """A change of the first state of a file, by its name."""

    def changed(tensors, header):
        name = min(name for name in tensors if name.startswith(files.STATE))
        return change(dict(tensors), name), header

    return changed


def without(tensors, name):
    del tensors[name]
    return tensors


STATES = {
    "one fewer": without,
    "another name": lambda t, name: without(t | {f"{name}.\x1b[31m": t[name]}, name),
    "one more": lambda t, name: t | {"state.layers.9.x": torch.zeros(1)},
    "another dtype": lambda t, name: t | {name: t[name].half()},
    "another size": lambda t, name: t | {name: t[name][..., :-1].clone()},
    "another form": lambda t, name: t | {name: t[name].flatten()},
    "without end": lambda t, name: t | {name: t[name].new_zeros(0, 10**9)},
    "NaN": lambda t, name: t | {name: t[name] * torch.nan},
    "eight bits": lambda t, name: t | {name: t[name].to(torch.float8_e4m3fn)},
}


@pytest.mark.parametrize("name", ["falcon_h1", "deepseek_v32"])
@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states_that_are_none_of_the_models_are_refused_in_a_sentence(
    mode, stored, folder_of, capsys, change, name
):
    file = Path(stored(TEXT, "--model", folder_of(name)))
    sealed.write(file, *of_a_state(change)(*sealed.read(file)))
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file), "--model", folder_of(name)) == 2
    said = capsys.readouterr().err
    assert "is damaged, of an older version or no compressed cache (its states are not" in said
    assert len(said.strip().splitlines()) == 1 and "\x1b" not in said


def test_a_state_in_the_file_of_a_model_without_any_is_refused(mode, stored, capsys):
    file = Path(stored(TEXT))
    tensors, header = sealed.read(file)
    sealed.write(file, tensors | {"state.layers.0.keys": tensors["0.key"].clone()}, header)
    assert mode("store", "--load_compressed", str(file)) == 2
    assert "its states are not those of tiny-llama" in capsys.readouterr().err


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


def test_states_that_are_not_finite_are_not_stored(tmp_path):
    loaded = families.loaded("deepseek_v32")
    with torch.no_grad():
        loaded.model.model.layers[1].self_attn.indexer.wk.weight.fill_(torch.nan)
    text = Sample(0, "a", "prompt", TEXT[:6])  # all of which is seen, so the rest is right
    with pytest.raises(UsageError, match=r"hold NaN or Inf in float32|predicts otherwise"):
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
    assert "is no file: give one that" in capsys.readouterr().err


def test_numbers_beyond_16_bits_are_not_stored(tmp_path):
    loaded = families.loaded("llama_gqa")
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.v_proj.weight.mul_(1e8)
    text = Sample(0, "a", "prompt", TEXT)
    with pytest.raises(UsageError, match=r"values of layer 0 .* hold NaN or Inf in 16 bits"):
        prompts.save(loaded, text, str(tmp_path / "a.kv"), ["int8"])
    assert not any(tmp_path.iterdir())
