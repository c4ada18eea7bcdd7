"""`python -m tests.hostile [WORD...]`: the cases whose names hold one of the words, or all of them;
exit code 1 where one breaks a law."""

import sys
import tempfile
import time
from pathlib import Path

import tests.conftest  # noqa: F401 (keeps the hub out of reach, before anything is imported)
from tests.hostile.cases import CASES
from tests.hostile.laws import Outcome, outcome
from tests.hostile.sandbox import Sandbox

WIDTHS = {"input": 64, "sentence": 96, "exit": 4, "files changed": 24}


def main(words: list[str]) -> int:
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    started, broken = time.perf_counter(), 0
    print(_row(*WIDTHS))
    print(_row(*("-" * width for width in WIDTHS.values())))
    with tempfile.TemporaryDirectory() as home:
        sandbox = Sandbox(Path(home))
        for case in cases:
            came = outcome(case, sandbox)
            laws = came.broken(case)
            broken += bool(laws)
            print(_row(case.name, _sentence(came), str(came.code), ", ".join(came.changes)))
            for law in laws:
                print(f"  BROKEN: {law}")
    seconds = time.perf_counter() - started
    print(f"\n{len(cases)} bad inputs in {seconds:.0f} s, {broken} of them break a law")
    return int(broken > 0)


def _sentence(came: Outcome) -> str:
    return came.sentence.removeprefix("main.py: ") or "(nothing)"


def _row(*cells: str) -> str:
    widths = WIDTHS.values()
    parts = (_short(cell, width) for cell, width in zip(cells, widths, strict=True))
    return " | ".join(parts).rstrip()


def _short(text: str, width: int) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return (shown if len(shown) <= width else shown[: width - 1] + "…").ljust(width)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
