"""What a worker on another machine runs: it loads the model once, does task after task, and says
what came of each, notices and refusals included."""

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from config import UsageError

PACKAGES = ("data", "analysis", "compression")


@dataclass(frozen=True)
class Done:
    value: Any
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """What a person asked for cannot work, see UsageError."""

    reason: str
    advice: str
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """A fault of the program. said: what, and where."""

    said: str
    notices: tuple[str, ...]


class Runner:
    """The class of the workers. model: arguments of models.load; what that refuses is told as what
    a task refuses."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._model = model
        self._worker: Any = None

    def ready(self) -> None:
        """Answers once the process has loaded the model, or cannot: the first task says why."""
        with suppress(UsageError):
            self._hired()

    def done(self, task: Any) -> Done | Refused | Failed:
        with _notices() as told:
            try:
                value = self._hired().done(task)
            except UsageError as error:
                return Refused(error.reason, error.advice, tuple(told))
            except Exception as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                said = f"{type(error).__name__}: {error}, on a worker, {frame.filename}"
                return Failed(f"{said}, line {frame.lineno}", tuple(told))
        return Done(value, tuple(told))

    def _hired(self) -> Any:
        if self._worker is None:
            from compression.studies.work import Worker
            from data import models

            self._worker = Worker(models.load(**self._model))
        return self._worker


@contextmanager
def _notices() -> Iterator[list[str]]:
    """The warnings of our packages while it is entered."""
    told: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler = Kept(logging.WARNING)
    for name in PACKAGES:
        logging.getLogger(name).addHandler(handler)
    try:
        yield told
    finally:
        for name in PACKAGES:
            logging.getLogger(name).removeHandler(handler)
