"""Wrong input, full disks, interruptions, streams that are gone: one sentence, and nothing lost."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

import config
from tests import families
from tests.commands import PROMPT, ROOT, files_below, in_a_process, run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode", "compress_all"], "--mode is 'compress_all': it takes one of analyze, "),
        (["--sequence_length", "-3"], "--sequence_length is -3"),
        (["--sequence_length", "300", "--prompt", "x" * 300], "beyond the 256 positions"),
        (["--text_file", "nowhere.txt"], "--prompt and --text_file were both given"),
        (["--mode", "list_samples"], "and --mode list_samples does not take it"),
        (["--mode", "tucker", "--mode", "prune"], "--mode was given as tucker and prune: keep one"),
        (["--model", "./nowhere"], "does not exist"),
        (
            ["--mode", "analyze_generation", "--measure"],
            "--measure was given, and --mode analyze_generation does not take it",
        ),
        (["--mode", "tucker", "--sink_tokens", "-1"], "--sink_tokens is -1"),
        (["--mode", "tucker", "--score_tokens", "120"], "need a text of 181 tokens"),
        (["--mode", "tucker", "--energy", "2"], "--energy is 2: it takes a share"),
        (["--mode", "tucker", "--energy", ".5", "--target_ratio", "2"], "both given"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(flags, tmp_path, capsys, arguments, says):
    assert run(*flags, *arguments) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.out == ""
    assert printed.err.startswith("main.py: ") and printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    out = tmp_path / "out"
    assert not out.exists() or not any(out.iterdir())


def test_nonsense_in_config_is_named_on_start(monkeypatch, capsys):
    monkeypatch.setattr(config, "FIGURE_DPI", "high")
    assert run("--mode", "list_samples") == 2
    assert "config.py: FIGURE_DPI is 'high'" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_work(
    flags, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    assert run(*flags, "--output_dir", str(tmp_path / "file" / "out")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_earlier_results_as_they_were(flags, tmp_path):
    out = tmp_path / "out"
    assert run(*flags, "--analysis_focus", "layers") == 0
    before = {name: (out / name).read_bytes() for name in files_below(out)}
    small_files = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    full = in_a_process(*flags, "--analysis_focus", "layers", preexec_fn=small_files)
    assert full.returncode == 2, full.stderr
    assert "cannot be written (File too large)" in full.stderr
    assert "Traceback" not in full.stderr
    assert {name: (out / name).read_bytes() for name in files_below(out)} == before


@pytest.mark.parametrize(
    ("sent", "when", "code"),
    [
        (signal.SIGTERM, ".unfinished-*", 143),
        (signal.SIGHUP, ".unfinished-*", 129),
        (signal.SIGINT, ".unfinished-*/layers/*.csv", 130),
    ],
    ids=["killed at the start", "its terminal closed", "Ctrl-C while it generates and draws"],
)
def test_an_interrupted_run_leaves_no_traceback_and_no_half_result(
    flags, tmp_path, sent, when, code
):
    child = subprocess.Popen(
        [sys.executable, "main.py", *flags, "--new_tokens", "190"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(sent, signal.SIG_DFL),
    )
    out = tmp_path / "out"
    while not any(out.glob(when)):  # it has come so far
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(sent)
    _, complaint = child.communicate(timeout=60)
    assert child.returncode == code, complaint
    assert b"Traceback" not in complaint
    assert not any(out.iterdir())


@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), ("2>&-", 0), (">/dev/full", 2), ("| head -1", 0)]
)
def test_streams_that_take_nothing(redirection, code):
    listing = f"{sys.executable} main.py --mode list_samples --no-use_wikitext {redirection}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = ["bash", "-c", f"set -o pipefail; {listing}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert (done.stderr == "") == (code == 0)


def test_nan_weights_are_named_with_their_layer(tmp_path, capsys):
    broken = families.model("llama_gqa")
    broken.model.layers[0].self_attn.k_proj.weight.data.fill_(float("nan"))
    families.save(broken, tmp_path / "broken")
    where = ["--model", str(tmp_path / "broken"), "--device", "cpu", "--prompt", PROMPT]
    assert run(*where, "--output_dir", str(tmp_path / "out")) == 2
    assert "keys of layer 0 of broken hold NaN or Inf" in capsys.readouterr().err
