"""One run at a time: who waits says so, who is killed holds nothing, and no lock file stays."""

import errno
import subprocess
import sys
import threading

import pytest

from data import locks
from data.locks import only_run, taken
from tests.commands import ROOT

HOLDS = """if True:
    import sys, time
    from pathlib import Path
    from data.locks import only_run
    with only_run(Path(sys.argv[1]), "waiting"):
        print(flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock until it is told otherwise."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_the_later_waits_and_says_so(holder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.05)
    assert taken(tmp_path / "lock") is None
    inside = threading.Event()

    def later():
        with only_run(tmp_path / "lock", "Another one is at it."):
            inside.set()

    waiting = threading.Thread(target=later)
    waiting.start()
    assert not inside.wait(0.3)
    assert caplog.messages == ["Another one is at it."]
    holder.communicate(b"\n")
    assert inside.wait(30)
    waiting.join()
    assert not any(tmp_path.iterdir())


def test_a_short_wait_is_not_worth_a_word_and_none_needs_to(tmp_path, caplog):
    with only_run(tmp_path / "lock", "waiting"):
        assert taken(tmp_path / "lock") is None
    with only_run(tmp_path / "lock", "waiting"):
        pass
    assert not caplog.messages and not any(tmp_path.iterdir())


def test_who_is_killed_holds_nothing(holder, tmp_path, caplog):
    holder.kill()
    holder.wait()
    with only_run(tmp_path / "lock", "waiting"):
        assert not caplog.messages
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("code", sorted(locks.NO_LOCKS))
def test_a_disk_without_locks_is_told_of_and_results_are_kept(tmp_path, monkeypatch, caplog, code):
    def none(*_: object) -> None:
        raise OSError(code, "no locks here")

    monkeypatch.setattr("fcntl.flock", none)
    with only_run(tmp_path / "lock", "waiting"):
        pass
    assert caplog.messages == [f"{tmp_path} has no locks: let only one run write there at a time."]


def test_a_lock_that_may_not_be_made_is_an_error(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(OSError, match="broken"), only_run(tmp_path / "lock", "waiting"):
        pytest.fail("it went on")
