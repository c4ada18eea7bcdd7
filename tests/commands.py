"""How tests run the command line, in this process or in one of its own."""

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import main

ROOT = Path(__file__).parent.parent
PROMPT = "The cache of a model holds the keys and values of every token that it has read. " * 2


def run(*arguments: str) -> int:
    """The exit code; pictures are drawn in this process."""
    return main.main([*arguments], workers=0)


def of_mode(mode: str, model: object, out: Path, *flags: str) -> list[str]:
    """The arguments of a run on the CPU: where nothing is given to read, of the offline corpus,
    and into a folder where the mode has pictures."""
    arguments = ["--mode", mode, "--model", str(model)]
    if mode != "list_samples":
        arguments += ["--device", "cpu"]
    if mode not in ("list_samples", "calibrate", "store"):
        arguments += ["--output_dir", str(out)]
    given = {"--prompt", "--text_file", "--load_compressed", "--use_wikitext"}
    if mode != "calibrate" and not given & set(flags):
        arguments.append("--no-use_wikitext")
    return [*arguments, *flags]


@dataclass(frozen=True)
class Done:
    """A run that several tests may read: exit code, output folder, and what it wrote to streams."""

    code: int
    out: Path
    printed: str
    said: str

    def table(self, stem: str) -> pd.DataFrame:
        return pd.read_csv(self.out / f"{stem}.csv")

    def manifest(self, mode: str) -> dict[str, Any]:
        return json.loads((self.out / f"{mode}.json").read_text())

    @property
    def files(self) -> set[str]:
        return files_below(self.out)


def done(out: Path, *arguments: str) -> Done:
    """What a run gives that writes into the folder `out`, which no other has used."""
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        code = run(*arguments)
    return Done(code, out, printed.getvalue(), said.getvalue())


def in_a_process(*arguments: str, **kw) -> subprocess.CompletedProcess:
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **kw)


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys; print('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def without_seconds(lines: list[str]) -> list[str]:
    """Sentences without the seconds in them, and what follows from those: no two runs share it."""
    timed = re.compile(r"\d+\.\d+ s |(?<=they are there sooner ).*")
    return [timed.sub("", line) for line in lines]


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def both(*stems: str) -> set[str]:
    """The pictures of these names and their tables."""
    return {f"{stem}.{ending}" for stem in stems for ending in ("png", "csv")}
