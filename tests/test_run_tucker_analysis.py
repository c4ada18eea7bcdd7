"""The documented Tucker script is main.py: what ends it ends the run, and its end is the run's."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import PROMPT, ROOT

SCRIPT = "compression/run_tucker_analysis.py"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="asks for signals")


def heard() -> None:
    """A shell's background job ignores Ctrl-C, one of nohup a hang-up, and all they start too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("sent", "codes"), [(signal.SIGTERM, {143}), (signal.SIGINT, {130}),
                                             (signal.SIGHUP, {129, -1})])  # fmt: skip
def test_a_signal_to_the_script_ends_the_run(tiny_model, tmp_path, sent, codes):
    out = tmp_path / "out"
    where = ["--model", str(tiny_model), "--device", "cpu", "--output_dir", str(out)]
    short = ["--prompt", PROMPT, "--context_tokens", "40", "--score_tokens", "5"]
    script = subprocess.Popen(
        [sys.executable, SCRIPT, *where, *short],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heard,
    )
    while not any(out.glob(".unfinished-*/*")):  # it works
        assert script.poll() is None
        time.sleep(0.01)
    script.send_signal(sent)
    _, said = script.communicate(timeout=60)  # nobody holds its pipes any more
    assert script.returncode in codes and b"Traceback" not in said
    assert not any(out.glob("[!.]*"))
    assert sent == signal.SIGHUP or not any(out.iterdir())
