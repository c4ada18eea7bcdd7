"""Finished looks at a text kept on disk: their tables, and what adds up over texts. A run that is
repeated or was interrupted goes on where it was, wherever its tasks are done.

A look is kept as a row is (rows.py): under a hash of all that it depends on, and sealed together
with it. What does not fit is looked at anew.

The look at the first text of a study is not kept: what it decides is no table. Its plan, and with
it the trial of `prune` and the first sensitivities of `tucker`, is made again by each run.
"""

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import config
from analysis.over_texts import RULES
from compression import sealed
from compression.stored import Tensors, under
from compression.studies.base import Tables
from compression.studies.rows import Measured, code_hash
from compression.studies.stored_tables import restored, stored
from compression.studies.work import T, Task, Work
from data import headers

FORMAT = "tables 1"
TABLES = "table/"  # the names of tensors that belong to tables begin so

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What a look is kept as. words: what JSON holds."""

    tables: Tables
    tensors: Tensors = field(default_factory=dict)
    words: Any = None


class Keepable(Task[T]):
    """A task on one text, whose result can be kept. ids: all of its tokens that matter."""

    ids: torch.Tensor

    @property
    @abstractmethod
    def asked(self) -> list[str | int]:
        """All that the result depends on beside the model, the tokens and config.py."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Tokens that are read."""

    @abstractmethod
    def to_kept(self, result: T) -> Kept | None:
        """None where the result holds something that cannot be kept."""

    @abstractmethod
    def from_kept(self, kept: Kept) -> T:
        """Raises ValueError for what is no such result."""


def kept_or_done(work: Work, tasks: Sequence[Keepable[T]], what: str) -> Iterator[tuple[int, T]]:
    """As `Work.as_done`: first the results that are kept from an earlier run, wherever that was
    done, then new ones, each kept as soon as it is there."""
    files = [_file(work, task) for task in tasks]
    missing = []
    for i, (file, task) in enumerate(zip(files, tasks, strict=True)):
        kept = _get(file, task) if file.exists() else None
        if kept is None:
            missing.append(i)
        else:
            yield i, kept
    for place, result in work.as_done([tasks[i] for i in missing], what):
        i = missing[place]
        _put(files[i], tasks[i].to_kept(result))
        yield i, result


def _file(measured: Measured, task: Keepable[T]) -> Path:
    """Where a result is kept: all of config.py is part of the name, as what a look depends on
    there is nowhere listed."""
    settings = {name: value for name, value in vars(config).items() if name.isupper()}
    run = [measured.identity, measured.reading(task.context), code_hash(), version("pandas")]
    parts = [*run, task.ids.tolist(), task.context, *task.asked, settings]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return config.cache_folder() / "tables" / f"{key}.tables"


def _get(file: Path, task: Keepable[T]) -> T | None:
    """None where what is kept does not fit, which is said."""
    try:
        return task.from_kept(_read(file))
    except (OSError, ValueError) as error:
        log.warning("The tables %s cannot be used (%s): looking anew.", file, error)
        return None


def _put(file: Path, kept: Kept | None) -> None:
    """Keep a result, whole or not at all. A folder that cannot be written keeps none."""
    if kept is None:
        return
    tensors, words = dict(kept.tensors), {}
    for stem, table in kept.tables.items():
        words[stem], of_table = stored(table, f"{TABLES}{stem}")
        tensors |= of_table
    header = {"format": FORMAT, "key": file.stem, "tables": json.dumps(words)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sealed.write(file, tensors, header | {"words": json.dumps(kept.words)})
    except OSError as error:
        log.info("A finished look is not kept: %s", error)


def _read(file: Path) -> Kept:
    """Raises ValueError for a file that is damaged, holds no tables, or those of another look."""
    tensors, header = sealed.read(file)
    if header.get("format") != FORMAT or header.get("key") != file.stem:
        raise ValueError("it is of another look")
    words = headers.words(header.get("tables"))
    if not isinstance(words, dict) or not words.keys() <= RULES.keys():  # names of files, too
        raise ValueError("it holds no tables")
    of_tables = under(tensors, TABLES)
    tables = {stem: restored(each, of_tables, stem) for stem, each in words.items()}
    for stem, table in tables.items():
        if not {*RULES[stem].keys} - {"bin"} <= set(table):  # "bin" is counted, see `over_texts`
            raise ValueError(f"{stem} lacks a column")
    return Kept(tables, tensors, headers.words(header.get("words")))
