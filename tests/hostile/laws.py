"""Runs one case, and holds what came of it to the laws of every refusal."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.commands import ROOT, run
from tests.hostile.case import Case
from tests.hostile.sandbox import Sandbox, changed, is_new_row

LONGEST_S = 60  # that a refusal may take, on a busy machine
SPEAKERS = ("main.py: ", "run_tucker_analysis.py: ")


class TooLong(BaseException):
    """Of no kind that a command might take for its own."""


@dataclass(frozen=True)
class Outcome:
    """What a case came to. changes: paths that came, went or changed, new rows apart."""

    code: int
    printed: str
    said: str
    changes: list[str]

    @property
    def sentence(self) -> str:
        lines = [line for line in self.said.split("\n") if line.strip()]
        return lines[-1] if lines else ""

    def _says(self, words: str) -> bool:
        """Whether the sentence holds these words, or those after a |."""
        return any(word.lower() in self.sentence.lower() for word in words.split("|"))

    def broken(self, case: Case) -> list[str]:
        """The laws that it breaks, in words."""
        lines = [line for line in self.said.split("\n") if line.strip()]
        notes = [line for line in lines if line.startswith("note: ")]
        sentences = [line for line in lines if line not in notes]
        lacking = [words for words in case.says if not self._says(words)]
        files = [f for f in self.changes if not any(fnmatch(f, p) for p in case.changes)]
        laws = {
            f"exit code {self.code}, not {case.code}": self.code in case.codes,
            "a traceback": "Traceback" not in self.said,
            f"{len(sentences)} lines, not one": len(sentences) == bool(case.says),
            "no word of main.py": not case.says or self.sentence.startswith(SPEAKERS),
            f"nothing of {', '.join(lacking)}": not lacking,
            "notes": case.notes or not notes,
            "something on stdout": not self.printed,
            "raw control characters": self.said.replace("\n", "").isprintable(),
            f"changed {', '.join(files)}": not files,
            "something unfinished left": not any(".unfinished-" in f for f in self.changes),
        }
        return [law for law, holds in laws.items() if not holds]


def outcome(case: Case, sandbox: Sandbox) -> Outcome:
    """Run it in the sandbox, which is as it was afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        sandbox.enter(patch)
        if case.early:
            _refuse_to_load(patch)
        if case.prepare is not None:
            case.prepare(sandbox.folder, patch)
        before = sandbox.content()
        apart = case.redirection or case.sent or case.script
        code, printed, said = _process(case, sandbox.folder) if apart else _here(case)
        changes = changed(before, sandbox.content())
        losses = [path for path in changes if not is_new_row(sandbox.folder, path, before)]
    if changes or case.prepare is not None:
        sandbox.reset()
    return Outcome(code, printed, said, losses)


def _refuse_to_load(patch: pytest.MonkeyPatch) -> None:
    def late(**given: object) -> None:
        raise RuntimeError("it was not refused before the work began")

    patch.setattr("data.models.load", late)
    patch.setattr("visualization.terminal.listing.listing", late)


def _here(case: Case) -> tuple[int, str, str]:
    """In this process, with streams that show what they lack as main.py's do."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
        for _ in range(2)
    )
    with redirect_stdout(out), redirect_stderr(err), _in_time():
        try:
            code = run(*case.arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except TooLong as error:
            code = _unwritten(err, f"{error}", 124)
        except Exception as error:  # what the command let through is what is looked for
            code = _unwritten(err, f"Traceback: {type(error).__name__}: {error}", 1)
    return code, _written(out), _written(err)


def _unwritten(stream: io.TextIOWrapper, line: str, code: int) -> int:
    print(line, file=stream)
    return code


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


@contextmanager
def _in_time() -> Iterator[None]:
    def end(*_: object) -> None:
        raise TooLong(f"it takes longer than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _process(case: Case, folder: Path) -> tuple[int, str, str]:
    shell = f'"$0" "$@" {case.redirection}'  # exec: a signal is meant for Python
    command = [
        "bash",
        "-c",
        f"exec {shell}",
        sys.executable,
        str(ROOT / (case.script or "main.py")),
    ]
    child = subprocess.Popen(
        [*command, *case.arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    if case.sent:
        _send(child, case, folder)
    try:
        printed, said = child.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        printed, said = child.communicate()
    return child.returncode, printed.decode(), said.decode()


def _send(child: subprocess.Popen[bytes], case: Case, folder: Path) -> None:
    """As soon as its results are on the way; Ctrl-C goes to all of a terminal's processes."""
    while child.poll() is None and not any(folder.rglob(".unfinished-*")):
        time.sleep(0.001)
    send = os.killpg if case.sent == signal.SIGINT else os.kill
    if child.poll() is None:
        send(child.pid, case.sent)
