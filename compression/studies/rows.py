"""Finished measurements kept on disk, so that a run that is repeated or was interrupted goes on.

A row is kept under a hash of all that it depends on: the model, the device that it ran on (rows
hold times), the tokens, the method with its settings and calibration, the versions of libraries,
and the code that measures.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import config
from compression.base import Compressor
from data.models import LoadedModel
from data.writing import whole_or_nothing

SOURCES = Path(__file__).parent.parent.parent
MEASURING = ("data", "analysis", "compression")  # packages that a measured number goes through

log = logging.getLogger(__name__)


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
        self, loaded: LoadedModel, ids: torch.Tensor, context: int, what: str = "scores"
    ) -> None:
        device = loaded.device.type
        self._text = [loaded.identity, device, ids.tolist(), context, what, code_hash()]
        self._folder = config.cache_folder() / "rows"

    def _file(self, method: Compressor) -> Path:
        calibration = "" if method.calibration is None else method.calibration.identity
        parts = [*self._text, method.name, method.settings(), calibration]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._folder / f"{key}.json"

    def get(self, method: Compressor) -> dict[str, Any] | None:
        """The kept row of a method; None where there is none, or a damaged one."""
        try:
            row: dict[str, Any] = json.loads(self._file(method).read_text(encoding="utf-8"))
            return row
        except (OSError, ValueError):
            return None

    def all(self, methods: Iterable[Compressor]) -> list[dict[str, Any]] | None:
        """The kept rows of these methods; None where one of them has none."""
        rows = []
        for method in methods:
            row = self.get(method)
            if row is None:
                return None
            rows.append(row)
        return rows

    def put(self, method: Compressor, row: dict[str, Any]) -> None:
        """Keep a row, whole or not at all. A folder that cannot be written keeps none."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_or_nothing(self._file(method)) as part:
                part.write_text(json.dumps(row), encoding="utf-8")
        except OSError as error:
            log.info("A finished row is not kept: %s", error)
