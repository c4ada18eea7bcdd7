"""Where the results of a command go: in words to a person, or as one JSON object to a program."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from copy import copy
from typing import Any

from visualization.terminal import streams
from visualization.terminal.layout import Paper


class Results:
    """With --json an object of all that is added goes to stdout at the end, and what is said to
    stderr; with --quiet nothing is said."""

    def __init__(self, typed: Sequence[str]) -> None:
        """typed: the arguments of the command, which may be refused later on."""
        self.as_json = "--json" in typed
        self.quiet = "--quiet" in typed
        self._facts: dict[str, Any] = {}
        self._models: list[dict[str, Any]] = []
        self._notes: list[str] = []

    @contextmanager
    def on_their_way(self) -> Iterator[None]:
        """Where the object is all that stdout takes, whatever is printed goes to stderr."""
        if not self.as_json:
            yield
            return
        with redirect_stdout(sys.stderr):
            yield

    @property
    def paper(self) -> Paper:
        return Paper.of(sys.stdout)

    def add(self, **facts: Any) -> None:
        """For the object, in place of what had the same names."""
        self._facts |= facts

    def of_one_model(self) -> "Results":
        """Those of one model of several, which are a part of these."""
        part = copy(self)
        part._facts, part._models = {}, []
        self._models.append(part._facts)
        return part

    def say(self, text: str, asked_for: bool = False) -> None:
        """To a person. text: escaped. asked_for: it is what the command is for, and no finding, so
        that --quiet leaves it."""
        if self.quiet and (self.as_json or not asked_for):
            return
        if self.as_json:
            with suppress(OSError):  # it is not what was asked for
                print(text, file=sys.stderr, flush=True)
        else:
            streams.put(text)

    def heard(self, notice: str) -> bool:
        """Keep a notice for the object; whether it is said to a person as well."""
        self._notes.append(notice)
        return not (self.as_json and self.quiet)

    def refuse(self, sentence: str) -> None:
        """Say why there are no results, or none that were asked for."""
        self._facts["error"] = sentence
        if not (self.as_json and self.quiet):
            streams.complain(sentence)

    def end(self) -> None:
        """Print the object, if it was asked for: in ASCII, which every terminal and file takes."""
        if self.as_json:
            streams.tell(json.dumps(self.object, allow_nan=False))

    @property
    def object(self) -> dict[str, Any]:
        models = {"models": self._models} if self._models else {}
        notes = {"notes": self._notes} if self._notes else {}
        return {**self._facts, **models, **notes}
