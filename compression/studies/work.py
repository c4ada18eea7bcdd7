"""The tasks of a run, and where they are done: in this process, one after the other, or on the
workers of a cluster (cluster.py). A run asks for results in the order of its tasks, whichever way
they are done, so its tables are the same."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from tqdm import tqdm

from compression.evaluate import Judge
from data import extraction, memory
from data.cache import KVCache
from data.loaded_model import LoadedModel
from data.scoring import Continuation

T = TypeVar("T")
Phase = Callable[[str], AbstractContextManager[object]]  # entered for as long as a phase lasts
Content = Callable[[KVCache], KVCache]  # from what the model has read to what is judged


def untimed(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def as_read(cache: KVCache) -> KVCache:
    return cache


class Worker:
    """One process with one model, which does a task at a time.

    The text that was read last stays: the tasks of one text come after each other.
    """

    def __init__(
        self, loaded: LoadedModel, phase: Phase = untimed, content: Content = as_read
    ) -> None:
        self.loaded = loaded
        self.phase = phase
        self._content = content
        self._read: tuple[tuple[Any, ...], Judge] | None = None

    def judge(self, ids: torch.Tensor, context_tokens: int, probe: bool) -> Judge:
        """See `judge_of`; prefills only what is not the text that was read last."""
        text = (tuple(ids.tolist()), context_tokens, probe)
        if self._read is None or self._read[0] != text:
            self._read = None  # for one cache at a time
            parts = ids, context_tokens, probe, self.phase, self._content
            self._read = text, judge_of(self.loaded, *parts)
        return self._read[1]

    def done(self, task: "Task[T]") -> T:
        with memory.told(self.loaded, task.n_tokens):
            return task.run(self)


class Task(ABC, Generic[T]):
    """A part of a run that stands alone; what it is made of and what it gives can be sent to
    another process."""

    @property
    def n_tokens(self) -> int:
        """Tokens that the model reads at once for it."""
        return 0

    @property
    def place(self) -> object:
        """Tasks of one place are done by the same worker where that can be: they read one text."""
        return None

    @abstractmethod
    def run(self, worker: Worker) -> T: ...


@dataclass(frozen=True)
class Model:
    """What a run says of its model. facts: of a manifest. max_positions: None where the model sets
    no limit. device_peak_nbytes: the most that an accelerator has held."""

    name: str
    facts: dict[str, str]
    max_positions: int | None
    weight_nbytes: int
    device_peak_nbytes: int = 0

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Model":
        return cls(
            loaded.name,
            loaded.facts,
            loaded.max_positions,
            loaded.weight_nbytes,
            loaded.device_peak_nbytes,
        )


class AboutModel(Task[Model]):
    def run(self, worker: Worker) -> Model:
        return Model.of(worker.loaded)


class Identity(Task[str]):
    """See `LoadedModel.identity`."""

    def run(self, worker: Worker) -> str:
        return worker.loaded.identity


@dataclass(frozen=True)
class Reading(Task[list[str | int | None]]):
    """See `LoadedModel.reading`."""

    length: int

    def run(self, worker: Worker) -> list[str | int | None]:
        return worker.loaded.reading(self.length)


class Work(ABC):
    """Where the tasks of a run are done, all by one model. phase: is entered for as long as each
    phase of a run lasts."""

    phase: Phase

    @abstractmethod
    def as_done(self, tasks: Sequence[Task[T]], what: str) -> Iterator[tuple[int, T]]:
        """The place of each task in `tasks` and its result, in the order in which they are done.
        what: they are, in a word for a progress bar."""

    def each(self, tasks: Sequence[Task[T]], what: str) -> list[T]:
        """The results, in the order of the tasks."""
        results = dict(self.as_done(tasks, what))
        return [results[i] for i in range(len(tasks))]

    def one(self, task: Task[T]) -> T:
        (result,) = self.each([task], "")
        return result

    @property
    def model(self) -> Model:
        """As it is now: the most that a device has held grows."""
        return self.one(AboutModel())

    @cached_property
    def identity(self) -> str:
        return self.one(Identity())

    def reading(self, n_tokens: int) -> list[str | int | None]:
        """See `LoadedModel.reading`."""
        if n_tokens not in self._readings:
            self._readings[n_tokens] = self.one(Reading(n_tokens))
        return self._readings[n_tokens]

    @cached_property
    def _readings(self) -> dict[int, list[str | int | None]]:
        return {}


class Here(Work):
    """In this process."""

    def __init__(
        self, loaded: LoadedModel, phase: Phase = untimed, content: Content = as_read
    ) -> None:
        self.phase = phase
        self._worker = Worker(loaded, phase, content)

    def as_done(self, tasks: Sequence[Task[T]], what: str) -> Iterator[tuple[int, T]]:
        with bar(len(tasks), what) as done:
            for i, task in enumerate(tasks):
                yield i, self._worker.done(task)
                done.update()


def bar(n_tasks: int, what: str) -> "tqdm[Any]":
    """A bar over so many tasks; of a single one none is shown."""
    if n_tasks < 2:
        return tqdm(total=n_tasks, disable=True)
    return tqdm(total=n_tasks, desc=what.capitalize(), unit=what, leave=False)


def judge_of(
    loaded: LoadedModel,
    ids: torch.Tensor,
    context_tokens: int,
    probe: bool = True,
    phase: Phase = untimed,
    content: Content = as_read,
) -> Judge:
    """Prefills the first `context_tokens` of (tokens,) token ids; those after the next one are
    scored, at least one. probe: whether the attention that tokens receive is measured. content:
    gives what is judged in the place of the keys and values that were read."""
    with phase("prefill"):
        start = extraction.prefill(loaded, ids[:context_tokens], probe=probe)
    with phase("scoring"):
        cache = content(start.cache)
        return Judge(cache, Continuation(loaded, start.past, ids[context_tokens:]))
