"""One bad input as plain data, and the other flags that a run in its mode would have."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

# Makes a sandbox worse than it was, and patches what a case needs patched.
Prepare: TypeAlias = Callable[[Path, pytest.MonkeyPatch], object]

TEXT, SCORED = "no-use_wikitext", {"score_tokens": "10", "num_samples": "1"}
READ = {TEXT: None, "context_tokens": "100"}
MODEL = {"model": "./model", "device": "cpu"}
OUT = {"output_dir": "out"}
STUDY = {**MODEL, **READ, **SCORED, **OUT}
# The flags of a small run that works, by mode; paths are those of the sandbox.
USUAL: dict[str, dict[str, str | None]] = {
    "analyze": {**MODEL, **READ, **OUT, "analysis_focus": "layers"},
    "analyze_generation": {**MODEL, **READ, **OUT, "new_tokens": "3"},
    "analyze_similarity": STUDY,
    "tucker": {**STUDY, "token_rank": "8", "embedding_rank": "8", "no_sensitivity": None},
    "compress": {**STUDY, "levels": "0.5"},
    "prune": STUDY,
    "compare": {**STUDY, "methods": "kivi"},
    "tasks": {**STUDY, "methods": "kivi"},
    "calibrate": MODEL,
    "store": MODEL,
    "list_samples": {"model": "./model", TEXT: None},
}
SAVES = {**READ, "methods": "int8"}
# Of a saved cache there is no use for these.
READING = {"model", "device", TEXT, "context_tokens", "score_tokens", "num_samples"}
# What a case gives on its own account takes the place of these.
INSTEAD = {
    "prompt": {TEXT, "num_samples"},
    "text_file": {TEXT, "num_samples"},
    "use_wikitext": {TEXT},
    "sequence_length": {"context_tokens"},
    "continuation": {"score_tokens"},
    "load_cache": {*READING, "no_sensitivity"},
    "save_cache": {"methods"},
    "models": {"model"},
    "device_map": {"device"},
    "energy": {"token_rank", "embedding_rank"},
    "target_ratio": {"token_rank", "embedding_rank"},
}


@dataclass(frozen=True)
class Case:
    """flags: as they are typed, beside the usual ones of the mode. says: what the sentence holds,
    a|b for either of them; empty where there is nobody to say it to. what: what is wrong beside
    the flags. early: it is refused before a model is loaded. changes: patterns of files that may
    change, none by itself. notes: whether notes above the sentence are due. redirection: of a
    shell, sent: a signal; either makes it a process of its own, and so does script: its file."""

    mode: str
    flags: tuple[str, ...]
    says: tuple[str, ...]
    what: str = ""
    code: int | tuple[int, ...] = 2
    early: bool = False
    prepare: Prepare | None = None
    changes: tuple[str, ...] = ()
    notes: bool = False
    redirection: str = ""
    sent: int = 0
    script: str = ""

    @property
    def name(self) -> str:
        script = f"{Path(self.script).name} " if self.script else ""
        mode = "" if self.script or not self.mode else f"--mode {self.mode} "
        typed = " ".join(shlex.quote(_short(part)) for part in self.flags)
        with_what = f" [{self.what}]" if self.what else ""
        return f"{script}{mode}{typed} {self.redirection}".strip() + with_what

    @property
    def codes(self) -> tuple[int, ...]:
        return self.code if isinstance(self.code, tuple) else (self.code,)

    @property
    def arguments(self) -> list[str]:
        mode = [] if self.script or not self.mode else ["--mode", self.mode]
        return [*mode, *self._usual(), *self.flags]

    def _usual(self) -> list[str]:
        named = [flag for flag in self.flags if flag.startswith("--")]
        given = {flag.removeprefix("--").split("=")[0] for flag in named}
        usual = dict(USUAL.get(self.mode, {}))
        if self.mode == "store" and "load_compressed" not in given:
            usual |= SAVES
        replaced = given | {name for flag in given for name in INSTEAD.get(flag, ())}
        kept = {name: value for name, value in usual.items() if name not in replaced}
        return [part for name, value in kept.items() for part in _typed(name, value)]


def _short(part: str) -> str:
    return part if len(part) <= 60 else f"{part[:20]}... {len(part)} characters"


def _typed(name: str, value: str | None) -> list[str]:
    return [f"--{name}"] if value is None else [f"--{name}", value]


def early(mode: str, flags: str, *says: str, **more: object) -> Case:
    """A case that flags alone decide, written as in a shell."""
    return Case(mode, tuple(shlex.split(flags)), says, early=True, **more)  # type: ignore[arg-type]


def late(mode: str, flags: str, *says: str, **more: object) -> Case:
    """A case that shows only when the model, the text or a file has been looked at."""
    return Case(mode, tuple(shlex.split(flags)), says, **more)  # type: ignore[arg-type]
