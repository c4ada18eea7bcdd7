"""Texts in a person's own files: a folder of them, or a .jsonl file with one in each line."""

import json
import os
import threading

import pytest

from config import UsageError
from data import chosen_texts, scored_texts, text_files
from tests import families


def folder_with(folder, **files: str):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, "utf-8")
    return folder


def lines(*documents: object) -> str:
    return "".join(f"{json.dumps(document, ensure_ascii=False)}\n" for document in documents)


def jsonl(folder, content: str | bytes):
    file = folder / "corpus.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read(path):
    return chosen_texts.candidates(text_file=str(path))


def test_each_text_of_a_folder_is_one_in_the_order_of_names(tmp_path):
    folder_with(tmp_path, b_md="second", a_txt="first", C_TXT="capital", notes_csv="x,y")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "d.txt").write_text("below")
    (tmp_path / "folder.txt").mkdir()
    found = list(read(tmp_path))
    assert [s.text for s in found] == ["capital", "first", "second"]
    assert [s.title for s in found] == ["C.TXT", "a.txt", "b.md"]
    assert [s.index for s in found] == [0, 1, 2]
    assert {s.source for s in found} == {tmp_path.name}


def test_each_line_is_a_text_and_may_hold_any_line_separator(tmp_path):
    content = lines({"text": "one\u2028still one"}, {"text": "two", "other": 1}) + "\n \n"
    content += lines({"text": " "}, {"text": "four"})
    found = list(read(jsonl(tmp_path, content)))
    assert [s.text for s in found] == ["one\u2028still one", "two", "four"]
    assert [s.title for s in found] == ["line 1", "line 2", "line 6"]
    assert found[2].name == "corpus.jsonl #2: line 6"


def test_places_lengths_and_repetition_are_those_of_a_sequence(tmp_path):
    own = read(jsonl(tmp_path, lines(*({"text": f"text {i}"} for i in range(5)))))
    assert len(own) == 5 and own[3].text == "text 3" and list(own) == list(own)
    assert [s.index for s in own[1:3]] == [1, 2]
    with pytest.raises(IndexError):
        own[5]


def test_no_more_is_read_than_is_asked_for(tmp_path):
    """Behind the texts that are used stands what would be refused."""
    loaded = families.loaded("llama_gqa")
    good = lines({"text": "x" * 50}, {"text": "y" * 50})
    file = jsonl(tmp_path, good.encode() + b"\xff no JSON\n")
    chosen = scored_texts.looked_at(loaded, read(file), 40, 0, 2)
    assert [s.title for s, _ in chosen] == ["line 1", "line 2"]
    with pytest.raises(UsageError, match=r"corpus.jsonl, line 3 is not UTF-8"):
        scored_texts.looked_at(loaded, read(file), 40, 0, 3)
    folder_with(tmp_path, a_txt="x" * 50, b_txt="y" * 50, c_txt="\0")
    assert len(scored_texts.looked_at(loaded, read(tmp_path), 40, 0, 2)) == 2
    with pytest.raises(UsageError, match=r"c.txt is binary"):
        scored_texts.looked_at(loaded, read(tmp_path), 40, 0, 3)


def test_lines_are_read_one_at_a_time(tmp_path, monkeypatch):
    """The limit is that of one text, however large the file is."""
    monkeypatch.setattr(text_files, "LARGEST_FILE", 100)
    file = jsonl(tmp_path, lines(*({"text": f"{i} " + "x" * 60} for i in range(50))))
    assert len(read(file)) == 50
    file.write_text(lines({"text": "short"}, {"text": "x" * 200}))
    with pytest.raises(UsageError, match=r"line 2 is longer than"):
        len(read(file))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lines({"text": "a"}).encode() + b"{oops\n", "line 2 is not JSON"),
        (lines({"text": "a"}, ["text"]), "line 2 has no text field"),
        (lines({"text": "a"}, {"text": None}), "line 2 has no text field"),
        (lines({"text": "a"}) + '\n{"text": "\\ud800"}', "line 3 holds broken characters"),
        (lines({"text": "a"}).encode("utf-16"), "line 1 is not UTF-8"),
        ("", "holds no text"),
        ("\n \n" + lines({"text": " "}), "holds no text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, says):
    with pytest.raises(UsageError, match=f"`text_file` .*corpus.jsonl.*{says}"):
        list(read(jsonl(tmp_path, content)))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a\0b", "is binary"), (b"\xff\xfe", "is not UTF-8"), (b" \n", "holds no text")],
)
def test_a_bad_file_of_a_folder_is_named(tmp_path, content, says):
    folder_with(tmp_path, a_txt="fine")
    (tmp_path / "b\x1b.txt").write_bytes(content)
    with pytest.raises(UsageError, match=says) as error:
        list(read(tmp_path))
    assert "b\\x1b.txt" in str(error.value)


def test_a_file_that_is_gone_again_is_one_sentence(tmp_path):
    own = read(folder_with(tmp_path, a_txt="a", b_txt="b"))
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UsageError, match=r"b.txt cannot be read: No such file"):
        list(own)


def test_a_folder_without_texts_is_refused(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"is a folder without a .txt or .md file: give one"):
        read(tmp_path)


def test_a_pipe_of_lines_is_read_once_and_gives_all_of_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    content = lines({"text": "one"}, {"text": "two"})
    writer = threading.Thread(target=(tmp_path / "pipe.jsonl").write_text, args=(content,))
    writer.start()
    own = read(tmp_path / "pipe.jsonl")
    writer.join()
    assert [s.text for s in own] == [s.text for s in own] == ["one", "two"]


def test_several_texts_of_what_holds_one_are_refused(tmp_path):
    folder_with(tmp_path, a_txt="fine")
    for path in (tmp_path / "a.txt", tmp_path, jsonl(tmp_path, lines({"text": "fine"}))):
        with pytest.raises(UsageError, match=r"`num_samples` is 2, .* one text, .*(a.txt|line 1)"):
            chosen_texts.refuse_several_of_one(read(path), 2)
        chosen_texts.refuse_several_of_one(read(path), 1)
        chosen_texts.refuse_several_of_one(read(path), None)


def test_who_reads_one_of_several_says_so(tmp_path, caplog):
    chosen_texts.only_first(read(folder_with(tmp_path, a_txt="fine")))
    chosen_texts.only_first(chosen_texts.candidates(use_wikitext=False))
    assert not caplog.messages
    assert chosen_texts.only_first(read(folder_with(tmp_path, b_txt="too"))).title == "a.txt"
    assert caplog.messages == [
        f"`text_file` holds more than one text: reading the first, {tmp_path.name} #0: a.txt."
    ]


def test_of_several_texts_the_shorter_ones_are_left_out(tmp_path, caplog):
    loaded = families.loaded("llama_gqa")
    lengths = (60, 10, 70, 80)
    own = read(jsonl(tmp_path, lines(*({"text": "x" * n} for n in lengths))))
    chosen = scored_texts.looked_at(loaded, own, 50, 5, 2)
    assert [(s.index, len(ids)) for s, ids in chosen] == [(0, 50), (2, 50)]
    assert caplog.messages == ["1 of the first 3 texts have fewer than 50 tokens and are left out."]
    whole = scored_texts.looked_at(loaded, own, None, 5, 4)
    assert [len(ids) for _, ids in whole] == list(lengths)
    with pytest.raises(UsageError, match="None of the 4 texts has `context_tokens` 90 tokens"):
        scored_texts.looked_at(loaded, own, 90, 0, 2)
    with pytest.raises(UsageError, match="A text of 250 tokens and 9 new ones are beyond the 256"):
        scored_texts.looked_at(loaded, own, 250, 9, 2)
