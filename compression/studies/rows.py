"""Finished measurements kept on disk, so that a run that is repeated or was interrupted goes on,
wherever its tasks are done.

A row is kept under a hash of all that it depends on: the model, the device that it ran on (rows
hold times), the tokens, the method with its settings and calibration, the versions of libraries,
and the code that measures. It is sealed together with that hash, so that neither a changed number
nor the row of another measurement is believed: what does not fit is measured anew.
"""

import hashlib
import json
import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

import config
from compression import sealed
from compression.base import Compressor
from data import headers

SOURCES = Path(__file__).parent.parent.parent
FORMAT = "row 1"
MEASURING = ("data", "analysis", "compression")  # packages that a measured number goes through

Row = dict[str, Any]  # a number or a word by the name of its column

log = logging.getLogger(__name__)


class Measured(Protocol):
    """What numbers are measured on: `Work`, which may be done elsewhere.

    identity: see `LoadedModel.identity`. device: the type of device.
    """

    @property
    def identity(self) -> str: ...
    @property
    def device(self) -> str: ...


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
        where = [measured.identity, measured.device]
        self._text = [*where, ids.tolist(), context, what, code_hash()]
        self._folder = config.cache_folder() / "rows"
        self._told: set[Path] = set()

    def _file(self, method: Compressor) -> Path:
        calibration = "" if method.calibration is None else method.calibration.identity
        parts = [*self._text, method.name, method.settings(), calibration]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._folder / f"{key}.row"

    def get(self, method: Compressor) -> Row | None:
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

    def put(self, method: Compressor, row: Row) -> None:
        """Keep a row, whole or not at all. A folder that cannot be written keeps none."""
        file = self._file(method)
        header = {"format": FORMAT, "key": file.stem, "row": json.dumps(row)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sealed.write(file, {}, header)
        except OSError as error:
            log.info("A finished row is not kept: %s", error)


def _read(file: Path) -> Row:
    """Raises ValueError for a file that is damaged, no row, or the row of another measurement."""
    _, header = sealed.read(file)
    if header.get("format") != FORMAT or header.get("key") != file.stem:
        raise ValueError("it is of another measurement")
    row = headers.words(header.get("row"))
    if not isinstance(row, dict) or any(isinstance(x, list | dict) for x in row.values()):
        raise ValueError("it holds no row")
    return row
