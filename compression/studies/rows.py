"""Finished measurements kept on disk, so that a run that is repeated or was interrupted goes on,
wherever its tasks are done.

A row, with the tables that it sums up, is kept under a hash of all that it depends on: the model,
where it ran (rows hold times) and in which chunks it read, the tokens, the method with its settings
and calibration, the versions of libraries, and the code that measures. It is sealed together with
that hash, so that neither a changed number nor the row of another measurement is believed: what
does not fit is measured anew.
"""

import hashlib
import json
import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

import config
from compression import ledger, scored_tokens, sealed, token_bits
from compression.base import Compressor
from compression.evaluate import LEDGER, TOKEN_BITS, TOKENS, Scored
from compression.stored import Tensors, refuse_left
from compression.studies.stored_tables import restored, stored
from data import headers

SOURCES = Path(__file__).parent.parent.parent
FORMAT = "row 2"
TABLES = {  # by name, with their columns
    TOKENS: scored_tokens.COLUMNS,
    LEDGER: ledger.COLUMNS,
    TOKEN_BITS: token_bits.COLUMNS,
}
MEASURING = ("data", "analysis", "compression")  # packages that a measured number goes through

log = logging.getLogger(__name__)


class Measured(Protocol):
    """What numbers are measured on: `Work`, which may be done elsewhere; see `LoadedModel`."""

    @property
    def identity(self) -> str: ...

    def reading(self, n_tokens: int) -> list[str | int | None]: ...


@cache
def code_hash() -> str:
    """Of every module that a measured number goes through."""
    digest = hashlib.sha256()
    for package in MEASURING:
        for file in sorted((SOURCES / package).rglob("*.py")):
            digest.update(file.read_bytes())
    for library in ("torch", "transformers"):
        digest.update(version(library).encode())
    return digest.hexdigest()


class Rows:
    """The rows of one model on one text and one type of device; `ids` are its context and scored
    tokens, `what` tells rows apart that measure something else on the same text."""

    def __init__(
        self, measured: Measured, ids: torch.Tensor, context: int, what: str = "scores"
    ) -> None:
        run = [measured.identity, measured.reading(context)]
        self._text = [*run, ids.tolist(), context, what, code_hash()]
        self._folder = config.cache_folder() / "rows"
        self._told: set[Path] = set()

    def _file(self, method: Compressor) -> Path:
        calibration = "" if method.calibration is None else method.calibration.identity
        parts = [*self._text, method.name, method.settings(), calibration]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._folder / f"{key}.row"

    def get(self, method: Compressor) -> Scored | None:
        """The kept row of a method; None where there is none, or one that does not fit, which is
        said once."""
        file = self._file(method)
        try:
            return _read(file) if file.exists() else None
        except (OSError, ValueError) as error:
            if file not in self._told:
                log.warning("The row %s cannot be used (%s): measuring anew.", file, error)
            self._told.add(file)
            return None

    def put(self, method: Compressor, scored: Scored) -> None:
        """Keep a row, whole or not at all. A folder that cannot be written keeps none."""
        file = self._file(method)
        tables: dict[str, object] = {}
        tensors: Tensors = {}
        for name, table in scored.tables.items():
            tables[name], of_table = stored(table, name)
            tensors |= of_table
        header = {"format": FORMAT, "key": file.stem}
        header |= {"row": json.dumps(scored.row), "tables": json.dumps(tables)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sealed.write(file, tensors, header)
        except OSError as error:
            log.info("A finished row is not kept: %s", error)


def _read(file: Path) -> Scored:
    """Raises ValueError for a file that is damaged, no row, or the row of another measurement."""
    tensors, header = sealed.read(file)
    if header.get("format") != FORMAT or header.get("key") != file.stem:
        raise ValueError("it is of another measurement")
    row, words = (headers.words(header.get(name)) for name in ("row", "tables"))
    if not isinstance(row, dict) or any(isinstance(x, list | dict) for x in row.values()):
        raise ValueError("it holds no row")
    if not isinstance(words, dict) or not words.keys() <= TABLES.keys():
        raise ValueError("it holds no tables")
    tables = {name: restored(each, tensors, name) for name, each in words.items()}
    refuse_left(tensors)
    if any(set(table) != set(TABLES[name]) for name, table in tables.items()):
        raise ValueError("its tables have other columns")
    if len(tables.get(TOKENS, ())) != row.get("scored_tokens", 0):
        raise ValueError("it is not told token by token")
    return Scored(row, tables)
