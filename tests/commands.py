"""How tests run the command line, in this process or in one of its own."""

import subprocess
import sys
from pathlib import Path

import main

ROOT = Path(__file__).parent.parent
PROMPT = "The cache of a model holds the keys and values of every token that it has read. " * 2


def run(*arguments: str) -> int:
    return main.main([*arguments])


def in_a_process(*arguments: str, **kw) -> subprocess.CompletedProcess:
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **kw)


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
