"""Prompts in files whose seal is right and whose content is not: refused in a sentence."""

import json
from pathlib import Path

import pytest
import torch

from compression import files
from tests import opened
from tests.commands import PROMPT

TEXT = PROMPT[:44]


def within(part, change):
    """A change of what a part of the header holds as JSON."""

    def changed(tensors, header):
        tree = json.loads(header[part])
        change(tree)
        return tensors, header | {part: json.dumps(tree)}

    return changed


def fewer_layers(tensors, header):
    kept = {name: x for name, x in tensors.items() if not name.startswith("1.")}
    return within("shape", lambda tree: tree["layers"].pop())(kept, header)


def fewer_tokens(tensors, header):
    """Of one layer only, which the model would not go on from."""
    _, header = within("shape", lambda tree: tree["alike"][0].update(n_tokens=3))(tensors, header)
    short = {name: x[:, :3].clone() for name, x in tensors.items() if name.startswith("0.")}
    return tensors | short, header


def two_heads_as_one(tensors, header):
    def wider(tree):
        for layer in tree["alike"]:
            layer |= {"n_heads": 1, "key_dim": 2 * layer["key_dim"]}
            layer |= {"value_dim": 2 * layer["value_dim"]}

    joined = {name: x.view(1, x.shape[1], -1) for name, x in tensors.items() if x.ndim == 3}
    return within("shape", wider)(tensors | joined, header)


def with_ids(change):
    """A change of the token ids."""

    def changed(tensors, header):
        ids = change(tensors["token_ids"].tolist())
        return tensors | {"token_ids": torch.tensor(ids, dtype=torch.int32)}, header

    return changed


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
    "another kind": within("shape", lambda tree: tree["alike"][0].update(kind="sliding")),
    "more tokens": with_ids(lambda ids: [*ids, 1]),
    "tokens without end": within("shape", lambda tree: tree["alike"][0].update(n_tokens=10**9)),
    "no token": with_ids(lambda ids: [-1, *ids]),
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
    opened.write(file, *change(*opened.read(file)))
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file)) == 2
    said = capsys.readouterr()
    assert "is damaged, of an older version or no compressed cache (" in said.err
    assert str(file) in said.err and said.out == ""
    assert len(said.err.strip().splitlines()) == 1 and len(said.err) < 600


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
    opened.write(file, *of_a_state(change)(*opened.read(file)))
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file), "--model", folder_of(name)) == 2
    said = capsys.readouterr().err
    assert "is damaged, of an older version or no compressed cache (its states are not" in said
    assert len(said.strip().splitlines()) == 1 and "\x1b" not in said


def test_a_state_in_the_file_of_a_model_without_any_is_refused(mode, stored, capsys):
    file = Path(stored(TEXT))
    tensors, header = opened.read(file)
    opened.write(file, tensors | {"state.layers.0.keys": tensors["0.key"].clone()}, header)
    assert mode("store", "--load_compressed", str(file)) == 2
    assert "its states are not those of tiny-llama" in capsys.readouterr().err


def test_names_of_a_file_reach_no_terminal_raw(mode, stored, capsys):
    file = Path(stored(TEXT))
    change = within("facts", lambda tree: tree.update(model="x", model_name="\x1b[31m" * 99))
    opened.write(file, *change(*opened.read(file)))
    capsys.readouterr()
    assert mode("store", "--load_compressed", str(file)) == 2
    said = capsys.readouterr().err
    assert "was made with" in said and "\x1b" not in said and len(said) < 600
