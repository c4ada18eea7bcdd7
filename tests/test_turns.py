"""A stored prompt that is gone on from: questions of it, and conversations from file to file."""

from itertools import pairwise

import pytest
import torch

from compression import files, prompts, turns
from compression.coded.chunked import CHUNK
from compression.serving import conversation
from compression.serving.compressed_cache import CompressedCache
from config import UsageError
from data.extraction import prefill
from data.resume import as_past, likeliest_after
from data.texts import Sample, printable
from tests import families
from tests.chats import chat

TEXT = "The cache of a model holds keys and values. "
QUESTION = Sample(0, "a question", "prompt", "What does it hold?")


@pytest.fixture
def learned(monkeypatch):
    """Of a family its model, and a codec that needs no calibrating."""

    def of(family):
        loaded, codec, _ = chat(family)
        monkeypatch.setattr(prompts, "calibration_of", lambda *_: codec.calibration)
        monkeypatch.setattr(turns, "earlier_calibration", lambda *_: codec.calibration)
        return loaded, codec

    return of


def stored(loaded, file, method, text=TEXT * 2):
    prompts.save(loaded, Sample(0, "a text", "a test", text), str(file), methods=[method])
    return str(file)


def by_hand(loaded, file, calibration, n, text=QUESTION.text):
    """What plain transformers says greedily after a stored prompt and a text behind it."""
    content = files.read(file)
    past = as_past(loaded, content.compressed(calibration).restore(), content.states)
    more = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([[*content.shape.token_ids, int(content.facts["last"]), *more]])
    usual = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        whole = loaded.model.generate(whole, past_key_values=past, max_new_tokens=n, **usual)
    return printable(loaded.tokenizer.decode(whole[0, -n:]))


@pytest.mark.parametrize("method", ["none", "kivi-4", "coded_chunks 1.4e-04"])
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gemma2", "falcon_h1"])
def test_a_question_is_read_after_what_is_stored(family, method, learned, tmp_path):
    loaded, codec = learned(family)
    file = stored(loaded, tmp_path / "prompt.kv", method)
    calibration = codec.calibration if method.startswith("coded") else None
    said, lines = turns.go_on(loaded, file, 12, QUESTION)
    assert (said, lines) == (by_hand(loaded, file, calibration, 12), [])
    others = [Sample(0, "", "prompt", text) for text in ("Is it?", "xyz", "1 2 3 4", "WHY? Why?")]
    answers = {turns.go_on(loaded, file, 12, each)[0] for each in others}
    assert answers != {said}  # or the law says little


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
@pytest.mark.parametrize("recent", [0, 3])
def test_a_conversation_goes_on_from_file_to_file_and_codes_a_chunk_once(
    family, recent, learned, tmp_path, monkeypatch
):
    """Says what plain transformers says from each restored file; whole chunks of earlier files are
    those of later ones."""
    loaded, codec = learned(family)
    settings = {"step": codec.step, "chunk_tokens": 16, "recent_tokens": recent}
    monkeypatch.setattr(prompts, "chosen", lambda *_: ("coded_chunks", settings))
    monkeypatch.setattr(conversation, "RECENT_TOKENS", 5)
    files_of = [str(tmp_path / f"{i}.kv") for i in range(3)]
    stored(loaded, files_of[0], "")
    for before, after in pairwise(files_of):
        content = files.read(before)
        expected = by_hand(loaded, before, codec.calibration, 30)
        said, (line,) = turns.go_on(loaded, before, 30, QUESTION, after)
        assert said == expected
        now = files.read(after)
        n_new = 1 + len(QUESTION.text) + 29
        assert f"{now.n_tokens + 1} tokens, {n_new} of them new" in line
        assert now.shape.token_ids[: content.n_tokens] == content.shape.token_ids
        assert now.facts["text"] == "a test #0: a text"
        chunks = [name for name in now.stored if name.startswith(CHUNK)]
        assert now.n_tokens // 16 - 1 <= len(chunks) <= now.n_tokens // 16
        kept = min(len([n for n in content.stored if n.startswith(CHUNK)]), content.n_tokens // 16)
        assert kept
        for k in range(kept):
            assert torch.equal(now.stored[f"{CHUNK}{k}"], content.stored[f"{CHUNK}{k}"])
        generated = [*now.shape.token_ids[-29:], int(now.facts["last"])]  # the last is not read
        assert printable(loaded.tokenizer.decode(generated)) == said


def test_a_conversation_may_be_kept_in_the_same_file(learned, tmp_path):
    loaded, _ = learned("llama_gqa")
    file = stored(loaded, tmp_path / "chat.kv", "coded_chunks 1.4e-04")
    before = files.read(file).n_tokens
    turns.go_on(loaded, file, 4, QUESTION, file)
    turns.go_on(loaded, file, 4, None, file)
    assert files.read(file).n_tokens == before + len(QUESTION.text) + 8


def test_what_the_model_said_is_not_lost_where_it_cannot_be_stored(learned, tmp_path, monkeypatch):
    loaded, _ = learned("llama_gqa")
    file = stored(loaded, tmp_path / "chat.kv", "coded_chunks 1.4e-04")
    said, _ = turns.go_on(loaded, file, 6, QUESTION)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save", full)
    with pytest.raises(UsageError, match="No space left on device") as refused:
        turns.go_on(loaded, file, 6, QUESTION, str(tmp_path / "more.kv"))
    assert repr(said) in str(refused.value)


@pytest.mark.parametrize(
    ("family", "method", "says"),
    [
        ("llama_gqa", "kivi-4", "is stored as kivi, and what is added .* as coded_chunks"),
        ("gemma2", "coded_chunks 1.4e-04", "keeps a window or a state in some layers"),
        ("falcon_h1", "coded_chunks 1.4e-04", "keeps a window or a state in some layers"),
    ],
)
def test_what_cannot_be_stored_again_is_refused(family, method, says, learned, tmp_path):
    loaded, _ = learned(family)
    file = stored(loaded, tmp_path / "prompt.kv", method)
    with pytest.raises(UsageError, match=says):
        turns.go_on(loaded, file, 4, QUESTION, str(tmp_path / "more.kv"))
    assert not (tmp_path / "more.kv").exists()


def test_what_rests_is_what_a_model_goes_on_with(learned, tmp_path):
    """The same predictions from chunks that rest as from the restored cache."""
    loaded, codec = learned("llama_gqa")
    file = stored(loaded, tmp_path / "prompt.kv", "coded_chunks 1.4e-04")
    content = files.read(file)
    compressed = content.compressed(codec.calibration)
    own = prefill(loaded, families.token_ids(3)).past.layers
    past = conversation.opened(loaded.model.config, compressed, own)
    assert isinstance(past, CompressedCache) and past.get_seq_length() == content.n_tokens
    fed, n = torch.tensor([5, 6, 7]), content.n_tokens
    restored = as_past(loaded, compressed.restore())
    one, two = (list(likeliest_after(loaded, each, n, fed, 9)) for each in (past, restored))
    assert one == two


def test_from_the_command_line(mode, stored, capsys, tmp_path, tiny_model):
    file = stored(TEXT)
    capsys.readouterr()
    ask = ["--load_compressed", file, "--new_tokens", "5"]
    assert mode("store", *ask, "--prompt", "What does it hold?") == 0
    asked = capsys.readouterr().out
    (tmp_path / "question.txt").write_text("What does it hold?")
    assert mode("store", *ask, "--text_file", str(tmp_path / "question.txt")) == 0
    assert capsys.readouterr().out == asked
    assert mode("store", *ask, "--prompt", "x", "--save_compressed", str(tmp_path / "a.kv")) == 2
    assert "store the prompt as coded_chunks" in capsys.readouterr().err
    assert mode("store", *ask, "--save_cache", str(tmp_path / "a.cache")) == 2
    assert mode("store", *ask, "--wikitext_index", "3") == 2
