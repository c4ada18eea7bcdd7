import hashlib
import os
import socket
import time

import pytest
from datasets import Dataset

import config
from config import UsageError
from data import chosen_texts, corpora, hub, text_files, texts


@pytest.fixture(autouse=True)
def forget():
    """Corpora and the hub's answer are remembered for the length of a run."""
    for remembered in (corpora.wikitext_samples, corpora.reference_samples, hub.reachable):
        remembered.cache_clear()
    yield
    for remembered in (corpora.wikitext_samples, corpora.reference_samples, hub.reachable):
        remembered.cache_clear()


@pytest.fixture
def wikitext_in_cache(tmp_path, monkeypatch):
    """A hub cache that holds the test split: three articles, the second of them short."""
    body = [" Some words . \n"] * 500
    rows = ["", " = First = \n", "", *body, "", " = = Part = = \n", "", " = 1 henry = \n", *body]
    rows += ["", " = Short = \n", "", " Words . \n", "", " = Third = One = \n", "", *body]
    repository = tmp_path / "datasets--Salesforce--wikitext"
    file = repository / "snapshots" / corpora.WIKITEXT_REVISION / corpora.WIKITEXT_FILE
    file.parent.mkdir(parents=True)
    Dataset.from_dict({"text": rows}).to_parquet(str(file))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return file


def test_articles_are_joined_from_their_lines(wikitext_in_cache):
    first, third = corpora.wikitext_samples()
    assert (first.index, first.title) == (0, "First")
    assert (third.index, third.title) == (1, "Third = One")  # the short one is no sample
    assert first.text.startswith("= First =") and "= = Part = =" in first.text
    assert " = 1 henry = " in first.text  # looks like a title, but stands in running text
    assert first.source == "WikiText-103 test"


def test_the_index_chooses_the_article_from_which_on_texts_are_taken(wikitext_in_cache):
    first, third = corpora.wikitext_samples()
    assert chosen_texts.candidates() == (first, third)
    assert chosen_texts.candidates(wikitext_index=1) == (third,)


def test_out_of_reach_falls_back_loudly(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    chosen = chosen_texts.candidates(use_wikitext=True)[0]
    assert chosen.source == corpora.REFERENCE_SOURCE
    assert caplog.text.count("using the offline corpus") == 1


def test_a_hub_that_does_not_answer_is_given_up_on(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(config, "HUB_PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call, never says a word
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert corpora.wikitext_samples() is None
    assert time.monotonic() - began < 5


def test_the_offline_corpus_is_long_coherent_text_in_a_fixed_order():
    samples = corpora.reference_samples()
    assert [s.index for s in samples] == list(range(len(samples)))
    assert len(samples) >= 15
    topics = [s.title.split(":")[0] for s in samples]
    assert topics == sorted(topics)
    assert all(len(s.text) >= config.MIN_SAMPLE_CHARACTERS for s in samples)


def test_the_offline_corpus_is_taken_without_asking_the_hub():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "reachable", lambda: pytest.fail("asked the hub"))
        assert chosen_texts.candidates(use_wikitext=False)[0].source == corpora.REFERENCE_SOURCE


def test_an_index_out_of_range_names_the_range():
    last = len(corpora.reference_samples()) - 1
    with pytest.raises(UsageError, match=f"`wikitext_index` is 999: .* samples 0 to {last}"):
        chosen_texts.candidates(use_wikitext=False, wikitext_index=999)[0]


def test_a_prompt_is_taken_as_it_is():
    sample = chosen_texts.candidates(prompt="  Hello\nworld ")[0]
    assert sample.text == "  Hello\nworld " and sample.title == "Hello world"
    assert sample.sha256 == hashlib.sha256(b"  Hello\nworld ").hexdigest()


def test_a_text_file_is_read_whole(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("Füße\nand more", encoding="utf-8")
    sample = chosen_texts.candidates(text_file=str(file))[0]
    assert (sample.text, sample.title, sample.source) == ("Füße\nand more", "a.txt", "file")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\t ", "holds no text"),
        ("binary.txt", b"abc\0def", "is binary"),
        ("latin.txt", "Füße".encode("latin-1"), "is not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{oops\n', "line 2 is not JSON"),
        ("other.jsonl", b'{"body": "a"}\n', "line 1 has no text field"),
        ("number.jsonl", b'{"text": 3}\n', "line 1 has no text field"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, name, content, says):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        tuple(chosen_texts.candidates(text_file=str(file)))


@pytest.mark.parametrize("content", ["123" * 3000, "[" * 100_000])
def test_json_beyond_measure_is_refused(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UsageError, match="line 1 "):
        chosen_texts.candidates(text_file=str(tmp_path / "a.jsonl"))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfHello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "Hello"}\n')
    assert text_files.read(str(tmp_path / "a.txt")) == "Hello"
    assert chosen_texts.candidates(text_file=str(tmp_path / "a.jsonl"))[0].text == "Hello"


def test_half_a_character_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abc\\ud800 def"}')
    with pytest.raises(UsageError, match="broken characters"):
        chosen_texts.candidates(text_file=str(tmp_path / "a.jsonl"))
    with pytest.raises(UsageError, match="broken characters"):
        chosen_texts.candidates(prompt="abc\udcff")[0]


def test_a_damaged_download_falls_back_loudly(wikitext_in_cache, caplog):
    wikitext_in_cache.write_bytes(b"no parquet at all")
    assert chosen_texts.candidates()[0].source == corpora.REFERENCE_SOURCE
    assert "cannot be read" in caplog.text and "using the offline corpus" in caplog.text


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        text_files.read(str(tmp_path / "none.txt"))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        text_files.read(str(tmp_path))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/random"])
def test_a_device_is_refused(device):
    with pytest.raises(UsageError, match=f"`text_file` {device} is a device"):
        text_files.read(device)


def test_a_pipe_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIPE_PATIENCE_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    with pytest.raises(UsageError, match="is a pipe that did not end in"):
        text_files.read(str(tmp_path / "pipe"))
    assert time.monotonic() - began < 2


def test_a_pipe_that_ends_is_read():
    there, here = os.pipe()
    os.write(here, b"An essay from a pipe.")
    os.close(here)
    assert text_files.read(f"/dev/fd/{there}") == "An essay from a pipe."
    os.close(there)


def test_a_file_beyond_the_limit_is_refused_without_reading_all_of_it(tmp_path):
    file = tmp_path / "large.txt"
    with file.open("wb") as handle:
        handle.truncate(3 * text_files.LARGEST_FILE)  # takes no room
    with pytest.raises(UsageError, match="is larger than 256 MiB: give a part of it"):
        text_files.read(str(file))


def test_names_of_texts_cannot_leave_their_line_or_move_the_cursor(tmp_path):
    file = tmp_path / "a b\x1b[2J\n\u202e.txt"
    file.write_text("Hello")
    assert chosen_texts.candidates(text_file=str(file))[0].title == "a b\\x1b[2J\\n\\u202e.txt"


def test_an_empty_prompt_is_refused():
    with pytest.raises(UsageError, match="`prompt` holds no text"):
        chosen_texts.candidates(prompt=" \n")[0]


def test_what_is_shown_cannot_leave_its_line_or_move_the_cursor():
    assert texts.visible("a b\n\x1b[2J\u202e") == "a␣b\\n\\x1b[2J\\u202e"
    assert texts.first_line("a\n\x1b[2Jb", 10) == "a [2Jb"
    assert len(texts.first_line("word " * 100, 40)) == 40
