"""Where the seconds of a command go: each to one phase, and all of them to some."""

import os
import re
import struct
import sys
import time

import pytest

from tests.commands import PROMPT, ROOT, of_mode
from visualization.terminal.progress import PHASES, Progress, rounded
from visualization.terminal.record import RunRecord


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when they are told to."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_each_second_belongs_to_one_phase_and_a_part_of_a_phase_to_that_part(clock):
    progress = Progress(97.0)
    clock(1)  # start
    with progress.phase("load"):
        clock(2)
    clock(3)  # until the next one begins
    with progress.phase("analysis"):
        clock(4)
        with progress.phase("drawing"):
            clock(5)
        clock(6)
    with progress.phase("generation"):
        clock(7)
    taken = progress.taken()
    assert taken == {"start": 4, "load": 5, "analysis": 10, "generation": 7, "drawing": 5}
    assert list(taken) == [name for name in PHASES if name in taken]


def test_of_several_models_each_has_the_seconds_since_the_one_before_it(clock):
    progress = Progress(100.0)
    with progress.phase("scoring"):
        clock(2)
    assert progress.taken() == {"scoring": 2}
    clock(1)
    progress.finish()
    clock(4)
    with pytest.raises(KeyError), progress.phase("load"), progress.phase("text"):
        clock(8)
        raise KeyError  # as one that is left out
    clock(16)
    with progress.phase("drawing"):
        clock(32)
    assert progress.taken() == {"start": 4, "text": 8, "load": 16, "scoring": 1, "drawing": 32}
    progress.finish()


def test_parts_as_they_are_shown_sum_to_the_total_that_is_shown():
    seconds = {"start": 0.14, "load": 0.14, "prefill": 0.04, "analysis": 12.26, "drawing": 0.04}
    assert sum(rounded(seconds, 1).values()) == pytest.approx(round(sum(seconds.values()), 1))
    assert all(abs(rounded(seconds, 1)[name] - seconds[name]) <= 0.1 for name in seconds)
    line = RunRecord(seconds).timing_line()
    total, parts = re.match(r"Time: ([\d.]+) s \((.*)\)\. Peak memory: \d+ MiB\.", line).groups()
    shown = [float(part.split()[1]) for part in parts.split(", ")]
    assert sum(shown) == pytest.approx(float(total)) and min(shown) > 0


def on_a_terminal(*arguments: str) -> tuple[str, float]:
    """What a command writes to a terminal, and how long it took."""
    import fcntl
    import pty
    import termios

    began = time.monotonic()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ.pop("TQDM_DISABLE", None)
        os.execv(sys.executable, [sys.executable, "main.py", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    written = b""
    while True:
        try:
            part = os.read(terminal, 2**16)
        except OSError:  # how Linux says that it was closed
            part = b""
        if not part:
            break
        written += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, written
    return written.decode(), time.monotonic() - began


@pytest.mark.skipif(os.name != "posix", reason="asks for a pseudo-terminal")
def test_the_bar_starts_with_the_command_goes_on_in_order_and_ends_full(tiny_model, tmp_path):
    short = ["--prompt", PROMPT, "--sequence_length", "40", "--new_tokens", "2"]
    written, wall = on_a_terminal(*of_mode("analyze", tiny_model, tmp_path / "out", *short))
    frames = re.findall(r"(\w+) +\|[^|]*\| +(\d+) % (\d\d:\d\d)", written)
    assert frames[0] == ("start", "0", "00:00") and frames[-1][:2] == ("done", "100")
    shares = [int(share) for _, share, _ in frames]
    assert shares == sorted(shares)
    steps = list(dict.fromkeys(name for name, *_ in frames))
    assert [s for s in steps if s != "drawing"] == [
        *("start", "text", "load", "prefill", "analysis", "generation", "report", "done")
    ]
    ticks = {elapsed for name, _, elapsed in frames if name in ("start", "load")}
    assert len(ticks) > 1  # while libraries are brought in, which moves nothing else
    told = float(re.findall(r"Time: ([\d.]+) s", written)[-1])
    assert 0.8 * wall < told < wall  # the rest is Python's own start and end
