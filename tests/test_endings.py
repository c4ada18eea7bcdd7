"""How a command ends: one sentence for whatever went wrong, and nothing else in the terminal."""

import subprocess
import sys

import pytest
import torch

import main
from compression.studies import tucker
from config import UsageError
from data import text_files
from tests.commands import ROOT, run
from visualization.terminal import endings


def ended(error: BaseException, capsys, debug: bool = False) -> tuple[int, str]:
    def command() -> None:
        raise error

    code = endings.exit_code(command, debug)
    printed = capsys.readouterr()
    assert printed.out == ""
    return code, printed.err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("`prompt` is 3", "take 4"), 2, "main.py: --prompt is 3: take 4.\n"),
        (KeyError("x"), 1, "main.py: KeyError ('x') in tests/test_endings.py, line"),
        (OSError(28, "No space left on device"), 1, "main.py: OSError ([Errno 28] No space left"),
        (RuntimeError(), 1, "main.py: RuntimeError (without a message) in "),
        (ValueError("a\nb\x1b[2J"), 1, "main.py: ValueError (a b\\x1b[2J) in "),
        (MemoryError(), 2, "main.py: Memory ran out: read fewer tokens (--context_tokens)"),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "main.py: Memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to "
                      "allocate 8 bytes."), 2, "main.py: Memory ran out"),
        (KeyboardInterrupt(), 130, "main.py: interrupted"),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_is_one_sentence(capsys, error, code, says):
    found, said = ended(error, capsys)
    assert found == code
    assert said.lstrip("\n").startswith(says) and said.strip().count("\n") == 0
    if code == 1:
        assert "this is a fault of the program" in said and "--debug shows the traceback" in said


@pytest.mark.parametrize("error", [UsageError("no"), KeyError("x"), MemoryError()])
def test_debug_shows_the_traceback_and_then_the_sentence(capsys, error):
    _, said = ended(error, capsys, debug=True)
    assert said.startswith("Traceback (most recent call last)") and "in command" in said
    assert said.splitlines()[-1].startswith("main.py: ") and "--debug" not in said


def test_a_fault_inside_a_mode_is_told_with_its_place(flags, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tucker, "components", lambda *_: {}["nothing"])
    short = ["--mode", "tucker", "--context_tokens", "60", "--score_tokens", "5"]
    flags = [flag for flag in flags if flag not in ("--sequence_length", "60")]
    ranks = ["--token_rank", "4", "--embedding_rank", "4", "--recent_tokens", "4"]
    assert run(*flags, *short, *ranks, "--no_sensitivity") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "KeyError ('nothing') in tests/test_endings.py" in said
    assert not any((tmp_path / "out").iterdir())


def test_what_is_printed_can_do_nothing_to_a_terminal(tmp_path, capsys):
    strange = tmp_path / "a\x1b[2J\u202eb.txt"
    assert run("--text_file", str(strange), "--model", "./no\x1bwhere") == 2
    printed = capsys.readouterr()
    assert printed.err.strip().isprintable() and "\\x1b" in printed.err
    strange.write_text("too short")
    with pytest.raises(UsageError):
        text_files.read(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("arguments", ["--help", "--mode tucker --help", "--mode list_samples"])
def test_output_that_cannot_be_written_is_an_error(arguments):
    command = f"{sys.executable} main.py {arguments} >/dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "main.py: Standard output cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tucker_script_is_that_mode_and_no_other(capsys):
    with pytest.raises(SystemExit):
        main.main(["--mode", "tucker", "--help"])
    assert "compression/run_tucker_analysis.py" in capsys.readouterr().out
    assert run("--mode", "tucker", "--mode", "compare") == 2
    assert "--mode was given as tucker and compare: keep one" in capsys.readouterr().err
