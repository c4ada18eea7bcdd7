"""Finished measurements kept on disk, so that a run that is repeated or was interrupted goes on.

A row is kept under a hash of all that it depends on: the model, the device that it ran on (rows
hold times), the tokens, the method with its settings and calibration, the versions of libraries,
and the code that measures.
"""

import hashlib
import json
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

import config
from data.models import LoadedModel

SOURCES = Path(__file__).parent.parent
# Settings that say where a copy of a model comes from or how it was loaded, not what it computes.
OF_A_COPY = {
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
RENEWED = ("inv_freq", "cos_cached", "sin_cached")


@cache
def code_hash() -> str:
    """Of every module that a measured number goes through."""
    digest = hashlib.sha256()
    for package in ("data", "compression"):
        for file in sorted((SOURCES / package).glob("*.py")):
            digest.update(file.read_bytes())
    for library in ("torch", "transformers"):
        digest.update(version(library).encode())
    return digest.hexdigest()


def model_identity(loaded: LoadedModel) -> str:
    """A hash of what the model computes, wherever it was loaded from: its settings, the names,
    shapes and sums of its weights and buffers, and the dtype they run in."""
    digest = hashlib.sha256(loaded.dtype.encode())
    digest.update(_settings(loaded).encode())
    for name, weights in sorted(_held(loaded.model).items()):
        numbers = weights.detach().to("cpu", torch.float32).flatten()
        sums = (numbers.sum(dtype=torch.float64), numbers.norm(dtype=torch.float64))
        steps = numbers[:: max(1, len(numbers) // 64)].tolist()
        digest.update(repr((name, tuple(weights.shape), *map(float, sums), steps)).encode())
    return digest.hexdigest()


def _settings(loaded: LoadedModel) -> str:
    settings = loaded.model.config.get_text_config().to_dict()
    return json.dumps(
        {name: value for name, value in settings.items() if name not in OF_A_COPY},
        sort_keys=True,
        default=str,
    )


def _held(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers, those that no checkpoint holds too. Rotary modules renew some of theirs
    for a long text: what these follow from is among the settings."""
    lasting = {
        name: buffer
        for name, buffer in model.named_buffers()
        if not name.endswith(RENEWED) or name.endswith("original_inv_freq")
    }
    return model.state_dict() | lasting


class Rows:
    """The rows of one model on one text and one type of device; `ids` are its context and scored
    tokens."""

    def __init__(self, model: str, ids: torch.Tensor, context: int, device: torch.device) -> None:
        self._text = [model, device.type, ids.tolist(), context, code_hash()]
        self._folder = config.cache_folder() / "rows"

    def _file(self, method) -> Path:
        side = "" if method.model_side is None else method.model_side.identity
        parts = [*self._text, method.name, method.settings(), side]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._folder / f"{key}.json"

    def get(self, method) -> dict | None:
        """The kept row of a method; None where there is none, or a damaged one."""
        try:
            return json.loads(self._file(method).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def complete(self, methods) -> bool:
        """Whether every method has its row already."""
        return all(self.get(method) is not None for method in methods)

    def put(self, method, row: dict) -> None:
        """Keep a row, whole or not at all. A folder that cannot be written keeps none."""
        file = self._file(method)
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(row), encoding="utf-8")
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
