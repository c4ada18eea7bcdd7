"""What a shell is offered at the tab key, asked for as argcomplete asks."""

import os
import subprocess
import sys

import pytest

from data.vocabulary import FAMILIES
from tests.commands import ROOT
from visualization.terminal import flags
from visualization.terminal.modes import MODES


def offered(tmp_path, line: str) -> list[str]:
    """How `python main.py` and what is typed after it may go on."""
    typed = f"python main.py {line}"
    asked = {
        "_ARGCOMPLETE": "2",  # words before the arguments
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "offered"),
    }
    ended = subprocess.run(
        [sys.executable, "main.py"], cwd=ROOT, env=os.environ | asked, capture_output=True
    )
    assert ended.returncode == 0 and ended.stdout == b"", ended.stderr
    return (tmp_path / "offered").read_text().split()


def test_modes_are_offered_and_then_the_flags_of_the_one_that_is_typed(tmp_path):
    assert set(offered(tmp_path, "--mode ")) == set(MODES)
    assert set(offered(tmp_path, "--mode comp")) == {"compare", "compress"}
    taken = {f"--{flag.name}" for flag in flags.FLAGS if "calibrate" in flag.modes}
    shown = set(offered(tmp_path, "--mode calibrate --"))
    assert shown - {"--mode", "--help", "-h"} - {f"--no-{name[2:]}" for name in taken} == taken


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--mode analyze --format ", {"png", "pdf", "svg"}),
        ("--mode prune --prune_method t", {"threshold", "token"}),
        ("--mode compare --methods k", {name for name in FAMILIES if name.startswith("k")}),
        ("--mode compare --max_bits ", set()),
    ],
)
def test_the_values_of_a_flag_are_offered(tmp_path, line, values):
    assert set(offered(tmp_path, line)) == values


def test_a_shell_that_asks_where_argcomplete_is_not_installed_starts_no_run(tmp_path):
    (tmp_path / "argcomplete.py").write_text("raise ImportError")
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": "main.py ", "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "main.py", "--mode", "list_samples"],
        cwd=ROOT,
        env=os.environ | asked,
        capture_output=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
