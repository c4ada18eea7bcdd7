"""Tokens that a tokenizer puts around every text: the first belongs before each text, the last
behind none, for every text here is gone on from."""

from dataclasses import replace

import pytest
import torch
from tokenizers import processors

from compression import files
from data import models, sensitivity
from data.extraction import tokenise
from data.texts import Sample, printable
from data.token_ids import around, without_end
from tests import families
from tests.commands import PROMPT, run

BOS, EOS = 290, 291
TEMPLATES = {
    "neither": "$A",
    "first": "<s> $A",
    "last": "$A </s>",
    "both": "<s> $A </s>",
    "two last": "<s> $A </s> </s>",
}


def tokenizer(template: str):
    """The byte tokenizer of the families with these tokens around each text."""
    made = families.tokenizer()
    raw = made.backend_tokenizer
    raw.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return made


def loaded(template: str):
    return replace(families.loaded("llama_gqa"), tokenizer=tokenizer(TEMPLATES[template]))


def letters(text: str) -> list[int]:
    return families.tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("text", ["abc", PROMPT * 20, "x"])
def test_a_text_begins_as_the_tokenizer_begins_it_and_does_not_end_as_it_ends_it(template, text):
    model = loaded(template)
    first = [BOS] if TEMPLATES[template].startswith("<s>") else []
    expected = [*first, *letters(text)]
    assert model.ids_of(text).tolist() == expected
    for most in (1, 3, len(expected), len(expected) + 1, len(expected) + 2):
        assert model.ids_of(text, most).tolist() == expected[:most]
    assert model.ids_of(text, special_tokens=False).tolist() == letters(text)
    assert model.beginning.tolist() == first
    short = tokenise(model, Sample(0, "a", "prompt", text[:3]), sequence_length=60)
    assert short.tolist() == [*first, *letters(text[:3])]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_left_out_is_said_once(template, caplog):
    model = loaded(template)
    for _ in range(3):
        model.ids_of("abc")
    said = [r.getMessage() for r in caplog.records if "ends every text with" in r.getMessage()]
    assert len(said) == ("</s>" in TEMPLATES[template])


def test_only_what_the_tokenizer_itself_appends_is_left_out():
    model = loaded("both")
    model.tokenizer.add_special_tokens({"eos_token": "z"})
    inside = model.tokenizer("z", add_special_tokens=False)["input_ids"]
    assert model.ids_of("abz").tolist() == [BOS, *letters("ab"), *inside]
    assert without_end([1, 2, 2], [2]) == [1, 2]
    assert without_end([1, 3], [2]) == [1, 3] and without_end([1, 2], []) == [1, 2]
    assert without_end([2], [2, 2]) == [2]
    assert around(lambda t: [7], lambda t: [8, 9]) == ([], [])  # of which nothing can be told


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_window_of_calibration_begins_as_a_text_does(template):
    model = loaded(template)
    text = "".join(chr(97 + i % 26) for i in range(4000))
    first = model.beginning.tolist()
    windows = sensitivity.windows(model, text, contexts=(64, 32, 16), n_scored=8)
    assert [(len(ids), n) for ids, n in windows] == [(73, 64), (41, 32), (25, 16)]
    for ids, _ in windows:
        after = ids[len(first) :].tolist()
        assert ids[: len(first)].tolist() == first
        assert BOS not in after and EOS not in after
    stretches = [bytes(ids[len(first) :].tolist()) for ids, _ in windows]
    assert all(bytes(letters(text)).find(stretch) >= 0 for stretch in stretches)


def test_a_stored_prompt_goes_on_after_its_last_word(tmp_path, capsys, empty_cache):
    """What follows a text that has ended is another text."""
    families.save(families.model("llama_gqa"), tmp_path / "model")
    tokenizer("<s> $A </s>").save_pretrained(tmp_path / "model")
    usual = ["--mode", "store", "--model", str(tmp_path / "model"), "--device", "cpu"]
    file = str(tmp_path / "a.kv")
    go = [*usual, "--prompt", "A short one", "--save_compressed", file, "--methods", "none"]
    assert run(*go) == 0
    assert "ends every text with" in capsys.readouterr().err
    assert files.read(file).facts["last"] == str(letters("e")[0])
    assert files.read(file).shape.token_ids == (BOS, *letters("A short on"))
    assert run(*usual, "--load_compressed", file, "--new_tokens", "5") == 0
    model = models.load(str(tmp_path / "model"), device="cpu")
    ids = torch.tensor([[BOS, *letters("A short one")]])
    expected = model.model.generate(
        ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    said = printable(model.tokenizer.decode(expected[0, ids.shape[1] :].tolist()))
    assert capsys.readouterr().out == said + "\n"
