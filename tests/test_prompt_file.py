"""Where a prompt is stored: nothing but an earlier prompt is replaced, whatever its name says."""

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compression import files, prompt_file, prompts
from compression.file_parts import FORMAT
from config import UsageError
from data.texts import Sample
from tests import families
from tests.commands import PROMPT, files_below


@pytest.fixture
def store(mode):
    """Stores a text; the exit code."""

    def go(file: Path | str, *flags: str) -> int:
        return mode("store", "--methods", "none", "--save_compressed", str(file), *flags)

    return go


def test_the_format_of_our_files_is_known_by_its_beginning():
    assert FORMAT.startswith(prompt_file.OURS)


def test_an_earlier_prompt_is_replaced_and_one_of_another_version_too(store, tmp_path):
    file = tmp_path / "prompt.kv"
    save_file({"a": torch.zeros(1)}, file, metadata={"format": "compressed cache 0"})
    for text in ("one text", "another text"):
        assert store(file, "--prompt", text) == 0
        assert files.read(file).facts["text"].endswith(text)
    file.write_bytes(file.read_bytes()[:-1])  # damaged, but ours
    assert store(file, "--prompt", "a third text") == 0


def test_the_text_of_the_run_is_not_replaced(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("essay.txt").write_text(PROMPT)
    Path("link.kv").symlink_to("essay.txt")
    os.link("essay.txt", "hard.kv")
    for name in ("essay.txt", "./essay.txt", str(tmp_path / "essay.txt"), "link.kv", "hard.kv"):
        assert store(name, "--text_file", "essay.txt") == 2
        said = capsys.readouterr().err
        assert f"--save_compressed {Path(name)} is the text that is read: give a new name" in said
    assert files_below(tmp_path) == {"essay.txt", "link.kv", "hard.kv"}
    assert all(Path(name).read_text() == PROMPT for name in files_below(tmp_path))


def test_no_file_of_the_model_is_replaced(store, folder_of, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(folder_of("llama_gqa"), folder)
    (tmp_path / "link.kv").symlink_to(folder / "model.safetensors")
    os.link(folder / "config.json", tmp_path / "hard.kv")
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    inside = [folder / name for name in before]
    for file in (*inside, tmp_path / "link.kv"):
        assert store(file, "--model", str(folder), "--prompt", PROMPT) == 2
        assert f"--save_compressed {file} is a file of the model" in capsys.readouterr().err
    assert store(tmp_path / "hard.kv", "--model", str(folder), "--prompt", PROMPT) == 2
    assert "is there and is no compressed prompt" in capsys.readouterr().err
    assert {name: (folder / name).read_bytes() for name in files_below(folder)} == before


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"\xff" * 40, b"[" * 20, (20_000).to_bytes(8, "little") + b"[" * 20_000,
     (2).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]",
     (20).to_bytes(8, "little") + b'{"__metadata__": 12}', b"GGUF" + b"\0" * 60],
)  # fmt: skip
def test_no_other_file_is_replaced(store, tmp_path, monkeypatch, capsys, content):
    monkeypatch.setattr("data.models.load", lambda **given: pytest.fail("the model was loaded"))
    file = tmp_path / "prompt.kv"
    file.write_bytes(content)
    assert store(file, "--prompt", PROMPT) == 2
    assert "is there and is no compressed prompt" in capsys.readouterr().err
    assert file.read_bytes() == content and files_below(tmp_path) == {"prompt.kv"}


def test_other_tensors_are_not_replaced(store, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.kv", metadata={"format": "pt"})
    save_file({"a": torch.zeros(1)}, tmp_path / "b.kv")
    assert store(tmp_path / "a.kv", "--prompt", PROMPT) == 2
    assert store(tmp_path / "b.kv", "--prompt", PROMPT) == 2


def test_nothing_is_stored_among_what_is_kept_between_runs(store, empty_cache, capsys):
    kept = empty_cache / "smollm2-135m"
    kept.mkdir(parents=True)
    assert store(kept / "prompt.kv", "--prompt", PROMPT) == 2
    assert "is where the toolkit keeps its own files" in capsys.readouterr().err
    assert not any(kept.iterdir())


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_is_followed_and_stays(store, tmp_path, dangling):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.kv").symlink_to(tmp_path / "elsewhere/prompt.kv")
    assert dangling or store(tmp_path / "elsewhere/prompt.kv", "--prompt", "an earlier text") == 0
    assert store(tmp_path / "link.kv", "--prompt", PROMPT) == 0
    assert (tmp_path / "link.kv").is_symlink()
    assert files_below(tmp_path / "elsewhere") == {"prompt.kv"}
    assert "The cache" in files.read(tmp_path / "elsewhere/prompt.kv").facts["text"]


def test_who_may_read_other_outputs_may_read_it(store, tmp_path):
    (tmp_path / "usual").write_text("")
    assert store(tmp_path / "prompt.kv", "--prompt", PROMPT) == 0
    usual, ours = ((tmp_path / name).stat().st_mode for name in ("usual", "prompt.kv"))
    assert ours == usual


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\0b", "a path is text in UTF-8 and without a zero byte"),
        ("a\udcff.kv", "a path is text in UTF-8 and without a zero byte"),
        ("", "is no file"),
        ("folder", "is no file"),
        ("pipe", "is no file"),
        ("/dev/null", "is no file"),
        ("circle", "cannot be written"),
        ("file/prompt.kv", "cannot be written (Not a directory)"),
    ],
)
def test_odd_names_are_refused_before_the_work_by_whoever_is_asked(
    tmp_path, monkeypatch, name, says
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")
    Path("file").write_text("")
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr("data.extraction.prefill", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(UsageError) as refused:
        prompts.refuse(name, None, ["none"])
    assert says in str(refused.value) and "`save_compressed`" in str(refused.value)
    with pytest.raises(UsageError) as refused:
        text = Sample(0, "a text", "prompt", PROMPT)
        prompts.save(families.loaded("llama_gqa"), text, name, ["none"])
    assert says in str(refused.value) and set(tmp_path.rglob("*")) == before


def test_a_file_that_came_to_be_while_the_model_worked_is_not_replaced(tmp_path, monkeypatch):
    really = prompts.extraction.prefill

    def meanwhile(*given, **named):
        (tmp_path / "prompt.kv").write_text("of somebody else")
        return really(*given, **named)

    monkeypatch.setattr(prompts.extraction, "prefill", meanwhile)
    text = Sample(0, "a text", "prompt", PROMPT)
    with pytest.raises(UsageError, match="is there and is no compressed prompt"):
        prompts.save(families.loaded("llama_gqa"), text, str(tmp_path / "prompt.kv"), ["none"])
    assert (tmp_path / "prompt.kv").read_text() == "of somebody else"


def test_a_text_may_come_through_a_pipe_and_not_from_a_folder_without_one(store, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_text, args=(PROMPT,))
    writing.start()
    assert store(tmp_path / "prompt.kv", "--text_file", str(tmp_path / "pipe")) == 0
    writing.join()
    assert files.read(tmp_path / "prompt.kv").facts["cached"] == str(len(PROMPT) - 1)
    assert store(tmp_path / "other.kv", "--text_file", str(tmp_path)) == 2
    assert "is a folder without a .txt or .md file" in capsys.readouterr().err
